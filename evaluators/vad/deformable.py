"""Multi-scale deformable attention in plain torch (Zhu et al., Deformable DETR, ICLR 2021, eq. 3).

Shapes: B batch, Q queries, N cells of all levels one after the other, A heads, L levels, P samples, d a head's width,
D = A d.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def attend_at(value_BNAd: Tensor, sizes_hw: Sequence[tuple[int, int]], places_BQALP2: Tensor, weights_BQALP: Tensor) -> Tensor:
    """Weighted sums [B, Q, D] of values sampled between cells; outside a level there are zeros.

    Args:
        sizes_hw: rows and columns of every level, whose cells are numbered row by row.
        places_BQALP2: x then y as shares of a level: 0 is its left or top edge, 1 its right or bottom edge.
    """
    sums: Tensor | None = None
    levels = value_BNAd.split([h * w for h, w in sizes_hw], dim=1)
    # One level after the other: with all of them at once the samples of the large network would not fit in memory.
    for index, (level, (h, _)) in enumerate(zip(levels, sizes_hw, strict=True)):
        plane = rearrange(level, "b (h w) a d -> (b a) d h w", h=h)
        grid = rearrange(2 * places_BQALP2[:, :, :, index] - 1, "b q a p xy -> (b a) q p xy")
        sampled = F.grid_sample(plane, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        part = (sampled * rearrange(weights_BQALP[:, :, :, index], "b q a p -> (b a) 1 q p")).sum(-1)
        sums = part if sums is None else sums + part
    assert sums is not None, "at least one level"
    return rearrange(sums, "(b a) d q -> b q (a d)", b=len(value_BNAd))


class Deformable(nn.Module):
    """The learned parts of deformable attention: where to sample, how much each sample counts, and the values.

    ``groups`` are the levels, or the grids of different times, that every head samples ``points`` times each.
    """

    def __init__(self, width: int, heads: int, groups: int, points: int, query_width: int | None = None) -> None:
        super().__init__()
        self.heads, self.groups, self.points = heads, groups, points
        samples = heads * groups * points
        self.sampling_offsets = nn.Linear(query_width or width, 2 * samples)
        self.attention_weights = nn.Linear(query_width or width, samples)
        self.value_proj = nn.Linear(width, width)

    def reset(self) -> None:
        """Start with every head looking into a direction of its own, point after point further out, all counting alike."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        reach = torch.arange(1, self.points + 1)
        offsets = torch.einsum("ac,p->apc", direction, reach.float())[:, None].expand(-1, self.groups, -1, -1)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.reshape(-1))
        for constant in (self.attention_weights.weight, self.attention_weights.bias, self.value_proj.bias):
            nn.init.zeros_(constant)
        nn.init.xavier_uniform_(self.value_proj.weight)

    def offsets(self, query_BQD: Tensor) -> Tensor:
        """Offsets [B, Q, A, groups, P, 2] in cells."""
        return rearrange(
            self.sampling_offsets(query_BQD), "b q (a g p xy) -> b q a g p xy", a=self.heads, g=self.groups, p=self.points
        )

    def logits(self, query_BQD: Tensor) -> Tensor:
        """How much each sample counts [B, Q, A, groups, P], before the softmax."""
        return rearrange(self.attention_weights(query_BQD), "b q (a g p) -> b q a g p", a=self.heads, g=self.groups)

    def values(self, cells_BND: Tensor) -> Tensor:
        """Values [B, N, A, d]."""
        return rearrange(self.value_proj(cells_BND), "b n (a d) -> b n a d", a=self.heads)


def over_levels(logits_BQALP: Tensor) -> Tensor:
    """Weights that sum to one over the samples of all levels."""
    return logits_BQALP.flatten(-2).softmax(-1).unflatten(-1, logits_BQALP.shape[-2:])


def in_shares(offsets_BQALP2: Tensor, sizes_hw: Sequence[tuple[int, int]]) -> Tensor:
    """Offsets in cells as shares of their level."""
    sizes_L2 = torch.tensor([(w, h) for h, w in sizes_hw], dtype=offsets_BQALP2.dtype, device=offsets_BQALP2.device)
    return offsets_BQALP2 / sizes_L2[:, None]
