"""A small network that reads the ego's motion off two moments of six cameras (inverse dynamics).

Shapes: B pairs, V views, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dwm.models.weights import register_model


@dataclass(frozen=True, slots=True, kw_only=True)
class EgoMotionConfig:
    """Sizes of the network."""

    image_hw: tuple[int, int] = (64, 112)  # that images are resized to [px]
    views: int = 6
    widths: tuple[int, ...] = (32, 48, 96, 128)  # channels after each convolution of stride 2
    reading: int = 64  # numbers that a view is read into
    hidden: int = 256
    scale: tuple[float, float, float] = (1.0, 0.1, 0.03)  # of x [m], y [m], yaw [rad]: what an output of 1 stands for
    position_scale_m: float = 2.0  # of the cameras' positions as inputs


class EgoMotion(nn.Module):
    """Both images of a view and its rays -> numbers of the view; those of all views -> one step (``evaluators.ego_motion.path``)."""

    def __init__(self, config: EgoMotionConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        before = 12  # two images, ray directions, camera position
        for width in config.widths:
            layers += [nn.Conv2d(before, width, 5 if before == 12 else 3, 2, 2 if before == 12 else 1), nn.SiLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width), nn.SiLU()]
            before = width
        shrink = 2 ** len(config.widths)
        cells = -(-config.image_hw[0] // shrink) * -(-config.image_hw[1] // shrink)
        self.look = nn.Sequential(*layers)
        self.read = nn.Linear(before * cells, config.reading)
        self.decide = nn.Sequential(
            nn.Linear(config.views * config.reading, config.hidden), nn.SiLU(), nn.Linear(config.hidden, 3)
        )  # fmt: skip
        self.register_buffer("scale", torch.tensor(config.scale), persistent=False)

    def forward(self, before_BV3HW: Tensor, after_BV3HW: Tensor, rays_BV6HW: Tensor) -> Tensor:
        """Steps [B, 3] from images in [-1, 1] and ``rays_of``."""
        seen = torch.cat([before_BV3HW, after_BV3HW - before_BV3HW, rays_BV6HW], dim=2)
        views = self.look(seen.flatten(0, 1)).flatten(1)
        return self.decide(self.read(views).unflatten(0, seen.shape[:2]).flatten(1)) * self.scale


def rays_of(intrinsics_BV33: Tensor, camera_to_ego_BV44: Tensor, image_hw: tuple[int, int], position_scale_m: float) -> Tensor:
    """Unit ray directions and positions [B, V, 6, H, W] in the ego frame, for images of that size."""
    height, width = image_hw
    rows, cols = torch.meshgrid(torch.arange(height) + 0.0, torch.arange(width) + 0.0, indexing="ij")
    pixels = torch.stack([cols, rows, torch.ones_like(rows)]).flatten(1)
    directions = camera_to_ego_BV44[..., :3, :3] @ torch.linalg.inv(intrinsics_BV33) @ pixels
    directions = directions / directions.norm(dim=-2, keepdim=True)
    positions = camera_to_ego_BV44[..., :3, 3:].expand_as(directions) / position_scale_m
    return torch.cat([directions, positions], dim=-2).unflatten(-1, (height, width))


def to_input(images: NDArray[Any]) -> Tensor:
    """Images [..., H, W, 3] of 0 to 255 as [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, -3), dtype=np.float32)) / 127.5 - 1


register_model("ego_motion", EgoMotionConfig, EgoMotion)
