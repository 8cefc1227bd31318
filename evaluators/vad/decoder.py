"""Decoders of objects and of map points, which move their reference points layer by layer (Deformable DETR, sec. 4.3).

Shapes: B batch, Q queries, N cells of the grid, D width, C coordinates of a reference point.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from evaluators.vad.config import VadConfig
from evaluators.vad.deformable import Deformable, attend_at, in_shares, over_levels
from evaluators.vad.layers import Attention, FeedForward

EPSILON = 1e-5


def inverse_sigmoid(share: Tensor) -> Tensor:
    """Logits of values in [0, 1], finite at both ends."""
    share = share.clamp(0, 1)
    return torch.log(share.clamp(min=EPSILON) / (1 - share).clamp(min=EPSILON))


def refined(reference_BQC: Tensor, regression_BQX: Tensor, channels: Sequence[int]) -> Tensor:
    """Reference points, as shares of the range, moved by the given channels of a regression, in logits."""
    return (inverse_sigmoid(reference_BQC) + regression_BQX[..., list(channels)]).sigmoid()


class GridAttention(Deformable):
    """x + deformable attention around reference points to the bird's-eye-view grid."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__(config.width, config.heads, 1, config.bev_points)
        self.output_proj = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.bev_hw = config.bev_hw

    def forward(self, query_BQD: Tensor, position_BQD: Tensor, bev_BND: Tensor, reference_BQ2: Tensor) -> Tensor:
        query = query_BQD + position_BQD
        places = reference_BQ2[:, :, None, None, None] + in_shares(self.offsets(query), [self.bev_hw])
        mixed = attend_at(self.values(bev_BND), [self.bev_hw], places, over_levels(self.logits(query)))
        return query_BQD + self.dropout(self.output_proj(mixed))


class DecoderLayer(nn.Module):
    """Attention among queries, to the grid, and a feed-forward network, each followed by its norm."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(config), GridAttention(config)])
        self.ffns = nn.ModuleList([FeedForward(config)])
        self.norms = nn.ModuleList([nn.LayerNorm(config.width) for _ in range(3)])

    def forward(self, query_BQD: Tensor, position_BQD: Tensor, bev_BND: Tensor, reference_BQ2: Tensor) -> Tensor:
        """[B, Q, D]; ``reference_BQ2`` x, y as shares of the range."""
        query = self.norms[0](self.attentions[0](query_BQD, query_BQD, position_BQD, position_BQD))
        query = self.norms[1](self.attentions[1](query, position_BQD, bev_BND, reference_BQ2))
        return self.norms[2](self.ffns[0](query))


class Decoder(nn.Module):
    """Queries to features, regressions and reference points of every layer."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.decoder_layers)])

    def forward(
        self, query_BQD: Tensor, position_BQD: Tensor, bev_BND: Tensor, reference_BQC: Tensor,
        branches: nn.ModuleList, channels: Sequence[int],
    ) -> list[tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
        """For every layer: features [B, Q, D], regressions [B, Q, X], reference points [B, Q, C] it moved away from.

        Args:
            branches: one regression branch of X channels for each layer.
            channels: which of the X move the C coordinates of the reference points.
        """
        results = []
        query, reference = query_BQD, reference_BQC
        for layer, branch in zip(self.layers, branches, strict=True):
            query = layer(query, position_BQD, bev_BND, reference[..., :2])
            regression = branch(query)
            results.append((query, regression, reference))
            reference = refined(reference, regression, channels).detach()
        return results
