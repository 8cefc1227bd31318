"""The ground's colour: a texture painted from the city's surface codes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dwm.mipmap import Mipmap

_COLORS = torch.tensor(
    [
        [0.36, 0.42, 0.24],  # terrain
        [0.58, 0.56, 0.53],  # sidewalk
        [0.25, 0.25, 0.27],  # asphalt
        [0.9, 0.9, 0.88],  # white_line
        [0.86, 0.66, 0.12],  # yellow_line
        [0.88, 0.88, 0.86],  # crossing
        [0.33, 0.32, 0.34],  # parking
    ]
)
_NOISE = torch.tensor([0.16, 0.08, 0.09, 0.04, 0.04, 0.04, 0.07])  # amplitude of each surface's own texture


def ground_texture(surface: NDArray[np.uint8], metres_per_pixel: float, seed: int, device: torch.device) -> Mipmap:
    """Albedo of the plane z = 0 from a raster of surface codes with its origin at (0, 0)."""
    codes = torch.from_numpy(surface.astype(np.int64))
    albedo = _COLORS[codes].permute(2, 0, 1)
    albedo = (albedo * (1 + _NOISE[codes] * _octaves(codes.shape, seed))).clamp(0, 1)
    return Mipmap(albedo.to(device), metres_per_pixel, (0.0, 0.0))


def _octaves(shape: torch.Size, seed: int) -> Tensor:
    """Smooth noise in about [-1, 1], patches from half a metre to tens of metres."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    total = torch.zeros(1, 1, rows, columns)
    for cell, weight in ((4, 0.35), (24, 0.3), (160, 0.35)):
        coarse = torch.rand(1, 1, rows // cell + 2, columns // cell + 2, generator=generator) * 2 - 1
        total += weight * F.interpolate(coarse, size=(rows, columns), mode="bilinear", align_corners=False)
    return total[0, 0] * 1.6
