"""Attention along some axes of the tokens' grid: over time, along a row of all views, or within a view.

The grid may be packed (``dwm.models.masking``): attention over time then runs down its columns, where masking has shifted
tokens to the left, and a row is what is left of it in all views (MaskGWM, arXiv 2502.11663).

Shapes: B batch, T frames, V views, R rows and K columns of tokens, A heads, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import parse_shape, rearrange
from torch import Tensor, nn

from dwm.models.layers import mlp, modulate, rms_norm, start_at_zero

# Which tokens make up a sequence, after its name: sequences, heads, tokens of a sequence, a head's width.
OVER_TIME = "(b v r k) a t d"
ALONG_ROWS = "(b t r) a (v k) d"
WITHIN_VIEW = "(b t v) a (r k) d"


class AxialBlock(nn.Module):
    """z + f(scale z + shift), f first attention, then an MLP, scale and shift each frame's own (MaskGWM eq. 5).

    Adds nothing before training. With ``reads_actions`` every frame's action is projected and added to its keys and values.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, sequences: str, *, reads_actions: bool = False) -> None:
        super().__init__()
        self.heads, self.sequences = heads, sequences
        self.modulation = nn.Linear(width, 4 * width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.query_scale = nn.Parameter(torch.ones(width // heads))
        self.key_scale = nn.Parameter(torch.ones(width // heads))
        self.action = nn.Linear(width, 2 * width) if reads_actions else None
        self.out = nn.Linear(width, width)
        self.mlp = mlp(width, int(width * mlp_ratio), width)
        start_at_zero(self.modulation, self.out, self.mlp[-1])
        if self.action is not None:
            start_at_zero(self.action)

    def forward(self, tokens_BTVRKD: Tensor, frame_BTD: Tensor, actions_BTD: Tensor | None = None) -> Tensor:
        """The same shape."""
        parts = self.modulation(F.silu(frame_BTD))[:, :, None, None, None]
        shift, scale, shift_m, scale_m = parts.chunk(4, dim=-1)
        tokens = tokens_BTVRKD + self.out(self._attend(modulate(tokens_BTVRKD, shift, scale), actions_BTD))
        return tokens + self.mlp(modulate(tokens, shift_m, scale_m))

    def _attend(self, x_BTVRKD: Tensor, actions_BTD: Tensor | None) -> Tensor:
        query, key, value = self.query_key_value(x_BTVRKD).chunk(3, dim=-1)
        if self.action is not None:
            of_key, of_value = self.action(actions_BTD)[:, :, None, None, None].chunk(2, dim=-1)
            key, value = key + of_key, value + of_value
        to_sequences = f"b t v r k (a d) -> {self.sequences}"
        query, key, value = (rearrange(part, to_sequences, a=self.heads) for part in (query, key, value))
        query, key = rms_norm(query, self.query_scale), rms_norm(key, self.key_scale)
        # Under autocast the norm comes back wider than the values.
        mixed = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value)
        return rearrange(mixed, f"{self.sequences} -> b t v r k (a d)", **parse_shape(x_BTVRKD, "b t v r k _"))
