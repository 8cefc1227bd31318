"""Under bfloat16 autocast networks say nearly the same, and geometry exactly the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dwm.device import in_bfloat16
from dwm.errors import InputError
from dwm.models.conditioning import camera_rays
from dwm.models.layers import PatchEmbedding
from dwm.models.weights import load_model
from dwm.training.config import LoopConfig
from tests.dwm.test_dit_model import make_condition

WEIGHTS = Path(__file__).parents[2] / "weights"


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("size", [2, 4])
@torch.no_grad()
def test_a_patch_embedding_is_the_strided_convolution_in_either_precision(size):
    torch.manual_seed(0)
    layer, images = PatchEmbedding(16, 128, size), torch.randn(6, 16, 16, 28)
    wanted = F.conv2d(
        images.double(), layer.weight.double(), layer.bias.double() if layer.bias is not None else None, stride=size
    ).float()
    torch.testing.assert_close(layer(images), wanted, atol=1e-5, rtol=1e-5)
    with bfloat16():
        half = layer(images).float()
    assert (half - wanted).norm() < 0.01 * wanted.norm()


def test_rays_of_cameras_are_not_rounded():
    cameras = make_condition().cameras_BVK
    with bfloat16():
        rays = camera_rays(cameras, 4, 6)
    assert torch.equal(rays, camera_rays(cameras, 4, 6))


@pytest.mark.parametrize("name", ["world", "mila", "maskgwm", "longdwm_coarse", "longdwm_fine"])
@torch.no_grad()
def test_shipped_models_predict_alike_in_either_precision(name):
    """A kernel that returns wrong numbers for one layer's shape shows here: LongDWM once was off by 3 %."""
    model, config = load_model(WEIGHTS / f"proving_ground_{name}.safetensors")
    g = torch.Generator().manual_seed(0)
    clips, frames, views, channels, (rows, cols) = 1, 3, config.views, config.latent_channels, (16, 28)
    told = make_condition()
    shape = (clips, frames, views, channels, rows, cols)
    no = torch.zeros(clips, dtype=torch.bool)
    condition = replace(
        told, waypoints_BTK=told.waypoints_BTK[:1], cameras_BVK=told.cameras_BVK[:1].repeat(1, 2, 1),
        times_BT=told.times_BT[:1], fps_B=told.fps_B[:1], text_BL=told.text_BL[:1], has_text_B=~no, has_waypoints_B=~no,
        has_layout_B=no, has_memory_B=no, has_appearance_B=no, layout_BTVCHW=None, memory_BTVCHW=None,
        memory_valid_BTV1HW=None, appearance_BTVCHW=None, appearance_known_BTV1HW=None,
    )  # fmt: skip
    latents, levels = torch.randn(shape, generator=g), torch.tensor([[1.0, 0.5, 0.2]])
    wanted = model(latents, levels, condition)
    with bfloat16():
        half = model(latents, levels, condition).float()
    assert (half - wanted).norm() < 0.01 * wanted.norm()


def test_auto_is_half_where_that_is_fast_and_asked_for(monkeypatch):
    cpu = torch.device("cpu")
    for amx in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert in_bfloat16("auto", cpu, on_cpu=True) is amx
        assert not in_bfloat16("auto", cpu, on_cpu=False)
        assert in_bfloat16("bfloat16", cpu, on_cpu=False) and not in_bfloat16("float32", cpu, on_cpu=True)
    assert in_bfloat16("auto", torch.device("cuda"), on_cpu=False) and LoopConfig().precision == "auto"
    with pytest.raises(InputError, match=r"precision: 'half' is none; choose auto, bfloat16 or float32"):
        in_bfloat16("half", cpu, on_cpu=True)
