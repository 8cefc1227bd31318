"""Parts that all transformer layers of VAD share, under the parameter names of mmcv's transformer layers.

Shapes: B batch, Q queries, K keys, D width.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from evaluators.vad.config import VadConfig


class FeedForward(nn.Module):
    """x + MLP(x)."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(config.width, config.feed_forward), nn.ReLU(), nn.Dropout(config.dropout))
        self.layers = nn.Sequential(inner, nn.Linear(config.feed_forward, config.width), nn.Dropout(config.dropout))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Attention(nn.Module):
    """x + attention of x to keys; positions are added to queries and keys, not to values."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(config.width, config.heads, dropout=config.dropout, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, query_BQD: Tensor, key_BKD: Tensor, query_position_BQD: Tensor, key_position_BKD: Tensor,
        ignored_BK: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """[B, Q, D]; keys with ``ignored_BK`` true are not attended to, and one key at least must be left."""
        mixed, _ = self.attn(
            query_BQD + query_position_BQD, key_BKD + key_position_BKD, key_BKD,
            key_padding_mask=ignored_BK, need_weights=False,
        )  # fmt: skip
        return query_BQD + self.dropout(mixed)


class InteractionLayer(nn.Module):
    """Attention to keys and a feed-forward network, each followed by its norm."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(config)])
        self.ffns = nn.ModuleList([FeedForward(config)])
        self.norms = nn.ModuleList([nn.LayerNorm(config.width) for _ in range(2)])

    def forward(self, query_BQD: Tensor, *keys: Tensor | None) -> Tensor:
        return self.norms[1](self.ffns[0](self.norms[0](self.attentions[0](query_BQD, *keys))))


class Interaction(nn.Module):
    """One ``InteractionLayer``, one name deeper, as the checkpoints have it."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([InteractionLayer(config)])

    def forward(
        self, query_BQD: Tensor, key_BKD: Tensor, query_position_BQD: Tensor, key_position_BKD: Tensor,
        ignored_BK: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """[B, Q, D]."""
        return self.layers[0](query_BQD, key_BKD, query_position_BQD, key_position_BKD, ignored_BK)


def regression_branch(width: int, outputs: int) -> nn.Sequential:
    """Two hidden layers with relu."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))


def class_branch(width: int, outputs: int) -> nn.Sequential:
    """Two hidden layers with norm and relu; starts with scores of 0.01, which focal loss needs."""
    hidden = [part for _ in range(2) for part in (nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())]
    out = nn.Linear(width, outputs)
    nn.init.constant_(out.bias, math.log(0.01 / 0.99))
    return nn.Sequential(*hidden, out)
