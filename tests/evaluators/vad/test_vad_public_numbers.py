"""The head gives the numbers of the public code.

``tests/data/vad_public_outputs.json`` holds what the head of github.com/hustvl/VAD at commit 1688c4b gave in double precision
for the weights and inputs made here, on a first frame and with a past.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evaluators.vad.config import CONFIGS
from evaluators.vad.model import VadHead, VadOutputs
from tests.evaluators.vad.vad_factories import ring

GOLDEN = Path(__file__).parents[2] / "data" / "vad_public_outputs.json"
IMAGE_HW = (96, 160)
CONFIG = replace(
    CONFIGS["vad_tiny"], bev_hw=(14, 10), rotation_center_xy=(7.0, 6.0), feature_stages=(3, 4), feature_levels=2,
    object_queries=12, map_instances=8, map_points=5,
)  # fmt: skip


def made_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Noise for every tensor, around one for the weights of norms."""
    noise, state = torch.Generator().manual_seed(5), {}
    for key in sorted(shapes):
        value = 0.1 * torch.randn(shapes[key], generator=noise, dtype=torch.float64)
        state[key] = value + 1 if key.endswith("weight") and value.dim() == 1 else value
    return state


def made_frame() -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Features of two levels, cameras, a CAN-bus vector and the grid before."""
    noise = torch.Generator().manual_seed(6)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise, dtype=torch.float64)

    features = [random(1, 6, 256, 6, 10), random(1, 6, 256, 3, 5)]
    can_bus = random(1, 18)
    can_bus[0, :3] *= 3
    can_bus[0, 16], can_bus[0, 17] = 1.1, 14.0
    return features, ring(IMAGE_HW)[None], can_bus, random(1, 140, 256)


def picked(outputs: VadOutputs) -> dict[str, list[float]]:
    """Some numbers of everything."""
    parts = {
        "bev": outputs.bev_BQD[0, ::35, :4], "classes": outputs.class_logits_LBOK[:, 0, 3], "boxes": outputs.boxes_LBO10[:, 0, 3],
        "futures": outputs.steps_BOMT2[0, 3, ::3], "modes": outputs.mode_logits_BOM[0, :2],
        "map_classes": outputs.map_class_logits_LBIJ[-1, 0], "map_points": outputs.map_points_LBIP2[-1, 0, 2],
        "plan": outputs.plan_BUT2[0],
    }  # fmt: skip
    return {name: [round(x, 7) for x in value.flatten().tolist()] for name, value in parts.items()}


@pytest.fixture
def in_double_precision() -> Iterator[None]:
    """Noise of single precision grows to a tenth of a millimetre with these weights."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_double_precision")
@pytest.mark.parametrize("moment", ["first", "with_past"])
@torch.no_grad()
def test_the_head_gives_the_numbers_of_the_public_code(moment):
    head = VadHead(CONFIG).eval()
    head.load_state_dict(made_state({key: tuple(value.shape) for key, value in head.state_dict().items()}))
    features, cameras, can_bus, past = made_frame()
    found = picked(head(head.encode(features, cameras, IMAGE_HW, can_bus, None if moment == "first" else past)))
    wanted = json.loads(GOLDEN.read_text())[moment]
    assert found.keys() == wanted.keys()
    for name, numbers in wanted.items():
        assert found[name] == pytest.approx(numbers, abs=1e-6), name
