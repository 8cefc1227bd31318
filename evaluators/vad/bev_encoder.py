"""The bird's-eye-view encoder: attention to the grid before, then to the cameras (Li et al., BEVFormer, ECCV 2022).

Shapes: B batch, V cameras, Q cells of the grid, Z heights, N cells of all feature levels, D width, A heads, L levels,
P samples, d a head's width, S grids attended to: the past one, then the present one.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from evaluators.vad.bev_geometry import Sight, cell_centers
from evaluators.vad.config import VadConfig
from evaluators.vad.deformable import Deformable, attend_at, in_shares, over_levels
from evaluators.vad.layers import FeedForward

GRIDS = 2  # past and present


class TemporalSelfAttention(Deformable):
    """x + attention of every cell to the past grid and to the present one, each at its own samples; their mean."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__(config.width, config.heads, GRIDS, config.bev_points, query_width=GRIDS * config.width)
        self.output_proj = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.bev_hw = config.bev_hw

    def forward(self, bev_BQD: Tensor, position_QD: Tensor, centers_BQ2: Tensor, grids_BSQD: Tensor | None) -> Tensor:
        """[B, Q, D].

        Args:
            centers_BQ2: centres of the cells as shares of the range, moved with the ego.
            grids_BSQD: past and present; None on the first frame, when both are ``bev_BQD``.
        """
        if grids_BSQD is None:
            grids_BSQD = bev_BQD[:, None].expand(-1, GRIDS, -1, -1)
        query = torch.cat([grids_BSQD[:, 0], bev_BQD + position_QD], dim=-1)
        offsets = rearrange(in_shares(self.offsets(query), [self.bev_hw] * GRIDS), "b q a s p xy -> (b s) q a 1 p xy")
        # A softmax for each grid: each has weights that sum to one.
        weights = rearrange(self.logits(query).softmax(-1), "b q a s p -> (b s) q a 1 p")
        places = centers_BQ2.repeat_interleave(GRIDS, 0)[:, :, None, None, None] + offsets
        values = self.values(rearrange(grids_BSQD, "b s q d -> (b s) q d"))
        mixed = rearrange(attend_at(values, [self.bev_hw], places, weights), "(b s) q d -> b s q d", s=GRIDS).mean(1)
        return bev_BQD + self.dropout(self.output_proj(mixed))


class PillarAttention(Deformable):
    """Deformable attention around the points above a cell as one camera sees them.

    Sample p of a head lies around the point at height p mod Z.
    """

    def forward(self, query_BQD: Tensor, value_BNAd: Tensor, sizes_hw: list[tuple[int, int]], places_BQZ2: Tensor) -> Tensor:
        """[B, Q, D], without an output projection."""
        offsets = in_shares(self.offsets(query_BQD), sizes_hw)
        around = places_BQZ2.repeat(1, 1, self.points // places_BQZ2.shape[2], 1)[:, :, None, None]
        return attend_at(value_BNAd, sizes_hw, around + offsets, over_levels(self.logits(query_BQD)))


class SpatialCrossAttention(nn.Module):
    """x + the mean over the cameras that see a cell of what they show there."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        self.deformable_attention = PillarAttention(config.width, config.heads, config.feature_levels, config.camera_points)
        self.output_proj = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, bev_BQD: Tensor, features_BVND: Tensor, sizes_hw: list[tuple[int, int]], sight: Sight) -> Tensor:
        """[B, Q, D].

        Every sample is looked up by its own visibility; the public code takes that of the first sample of a batch, which
        is the same for the one sample it runs with.
        """
        shown = []
        for sample, (bev_QD, features_VND) in enumerate(zip(bev_BQD, features_BVND, strict=True)):
            values = self.deformable_attention.values(features_VND)
            total = torch.zeros_like(bev_QD)
            for camera, visible_Q in enumerate(sight.visible_BVQ[sample]):
                cells = visible_Q.nonzero()[:, 0]
                if not len(cells):
                    continue
                places = sight.places_BVQZ2[sample, camera, cells]
                found = self.deformable_attention(bev_QD[cells][None], values[camera][None], sizes_hw, places[None])
                total = total.index_add(0, cells, found[0])
            shown.append(total)
        cameras = sight.visible_BVQ.sum(1).clamp(min=1)
        return bev_BQD + self.dropout(self.output_proj(torch.stack(shown) / cameras[..., None]))


class EncoderLayer(nn.Module):
    """Past and present grids, cameras, feed-forward network, each followed by its norm."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([TemporalSelfAttention(config), SpatialCrossAttention(config)])
        self.ffns = nn.ModuleList([FeedForward(config)])
        self.norms = nn.ModuleList([nn.LayerNorm(config.width) for _ in range(3)])

    def forward(
        self, bev_BQD: Tensor, position_QD: Tensor, centers_BQ2: Tensor, grids_BSQD: Tensor | None,
        features_BVND: Tensor, sizes_hw: list[tuple[int, int]], sight: Sight,
    ) -> Tensor:  # fmt: skip
        """[B, Q, D]."""
        bev = self.norms[0](self.attentions[0](bev_BQD, position_QD, centers_BQ2, grids_BSQD))
        bev = self.norms[1](self.attentions[1](bev, features_BVND, sizes_hw, sight))
        return self.norms[2](self.ffns[0](bev))


class BevEncoder(nn.Module):
    """Grid queries to the grid of a frame."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        self.bev_hw = config.bev_hw
        self.layers = nn.ModuleList([EncoderLayer(config) for _ in range(config.encoder_layers)])

    def forward(
        self, queries_BQD: Tensor, position_QD: Tensor, shift_B2: Tensor, past_BQD: Tensor | None,
        features_BVND: Tensor, sizes_hw: list[tuple[int, int]], sight: Sight,
    ) -> Tensor:  # fmt: skip
        """[B, Q, D].

        Args:
            shift_B2: how far the ego has moved, as shares of the range.
            past_BQD: the grid of the frame before, already turned to the present heading.
        """
        # The public code shifts the centres in place, so those of the present grid move with those of the past one.
        centers = cell_centers(self.bev_hw).to(queries_BQD) + shift_B2[:, None]
        # With a past, every layer attends to the first layer's queries as the present grid, not to its own.
        grids = None if past_BQD is None else torch.stack([past_BQD, queries_BQD], dim=1)
        bev = queries_BQD
        for layer in self.layers:
            bev = layer(bev, position_QD, centers, grids, features_BVND, sizes_hw, sight)
        return bev
