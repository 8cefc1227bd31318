"""Where a token stands, by sines and cosines: added to it in space, turned into it in time.

Shapes: S sequences, A heads, N tokens of a sequence, R rows and K columns of patches, D width.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

BASE = 10_000.0  # of the slowest wavelength (Vaswani et al. 2017; RoPE keeps it)
TRAINED_SIDE = 64  # latent pixels: side of the square pictures (512 px) that Open-Sora 1.1 takes as scale 1


def geometric_frequencies(count: int) -> Tensor:
    """``count`` angular frequencies from 1 down to almost 1 / BASE, in even ratios."""
    return BASE ** (-torch.arange(count) / count)


def rotate(x_SAND: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary positions (Su et al., RoFormer, eq. 34): channels 2i and 2i + 1 of token n turn by n * frequencies[i]."""
    angles = torch.arange(x_SAND.shape[-2], device=x_SAND.device)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    even, odd = x_SAND.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).to(x_SAND.dtype)


class SpatialPositions(nn.Module):
    """Place of a patch in its view, as Open-Sora 1.1 counts it: half the channels tell the column, half the row.

    Rows and columns are stretched to one square of the picture's area, so that a wide picture's patches stand where those of
    a square one of the same size do.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", geometric_frequencies(width // 4), persistent=False)

    def forward(self, height: int, width: int, patch: int) -> Tensor:
        """[R, K, D] for latents of height x width pixels, ``patch`` of which make a token."""
        rows, cols = math.ceil(height / patch), math.ceil(width / patch)
        side = round(math.sqrt(rows * cols)) * TRAINED_SIDE / math.sqrt(height * width)
        row, col = self._waves(rows, side), self._waves(cols, side)
        row, col = rearrange(row, "r d -> r 1 d"), rearrange(col, "k d -> 1 k d")
        return torch.cat([col.expand(rows, -1, -1), row.expand(-1, cols, -1)], dim=-1)

    def _waves(self, count: int, side: float) -> Tensor:
        """[count, D / 2]: sines, then cosines, of ``count`` places from 0 to almost ``side``."""
        frequencies: Tensor = self.frequencies  # type: ignore[assignment]
        angles = (torch.arange(count, device=frequencies.device) * (side / count))[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)
