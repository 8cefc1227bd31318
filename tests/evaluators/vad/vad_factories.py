"""A ring of six cameras, networks small enough to compare with loops, and the public checkpoints' shapes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluators.vad.config import CONFIGS, VadConfig

# As CAMERA_ORDER: front, front right, front left, back, back left, back right; anticlockwise from forward.
YAWS_DEG = (0.0, -55.0, 55.0, 180.0, 110.0, -110.0)

TINY = replace(
    CONFIGS["vad_proving_ground"], image_hw=(32, 64), stem_channels=4, stage_blocks=(1, 1), feature_stages=(1, 2),
    width=16, heads=2, feed_forward=24, encoder_layers=2, decoder_layers=2, bev_hw=(6, 4), rotation_center_xy=(2.0, 3.0),
    camera_points=8, object_queries=5, map_instances=4, map_points=3, modes=3, steps=2,
)  # fmt: skip


def ring(image_hw: tuple[int, int], turned_deg: float = 0.0) -> Tensor:
    """LiDAR frame (x right, y forward) to pixels [6, 4, 4]: level cameras 70 degrees wide, at the origin."""
    h, w = image_hw
    focal = w / 2 / math.tan(math.radians(35.0))
    matrices = []
    for yaw_deg in YAWS_DEG:
        yaw = math.radians(yaw_deg + turned_deg)
        forward = torch.tensor([-math.sin(yaw), math.cos(yaw), 0.0])
        right = torch.tensor([math.cos(yaw), math.sin(yaw), 0.0])
        axes = torch.stack([right, torch.tensor([0.0, 0.0, -1.0]), forward])
        intrinsics = torch.tensor([[focal, 0.0, w / 2], [0.0, focal, h / 2], [0.0, 0.0, 1.0]])
        matrix = torch.eye(4)
        matrix[:3, :3] = intrinsics @ axes
        matrices.append(matrix)
    return torch.stack(matrices)


def frame(config: VadConfig, batch: int, seed: int, padded_hw: tuple[int, int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Noise images, the ring and a CAN-bus vector of an ego that has moved and turned."""
    hw = padded_hw or config.image_hw
    noise = torch.Generator().manual_seed(seed)
    images = torch.randn((batch, 6, 3, *hw), generator=noise)
    can_bus = 0.3 * torch.randn((batch, 18), generator=noise)
    can_bus[:, 17] = 10 * torch.randn(batch, generator=noise)
    return images, ring(hw).expand(batch, -1, -1, -1), can_bus


def stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in evaluation mode with no parameter left at zero or one."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=noise)
    return module.eval()


def public_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name, from lines of: name with * for a layer's index, the indices, the shape; - where there is none."""
    shapes = {}
    for line in (Path(__file__).parents[2] / "data" / f"{name}_keys.tsv").read_text().splitlines():
        template, indices, shape = line.split("\t")
        for index in indices.split(","):
            shapes[template.replace("*", index)] = () if shape == "-" else tuple(map(int, shape.split(",")))
    return shapes
