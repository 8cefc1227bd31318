"""Which tokens a training step hides from the world model (MaskGWM, arXiv 2502.11663, section 3.2).

Every row of tokens loses the same number of them, so what is left of a batch packs into a narrower grid without holes, and
attention over it is dense: no attention mask.

Shapes: B batch, T frames, V views, R rows and K columns of tokens, J of these columns once packed, C latent channels, h w
latent pixels, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMask:
    """Tokens that are not seen, and what stands in their place."""

    dropped_BTVRK: Tensor  # bool; equally many in every row
    columns: int  # J, tokens that every row keeps; a number and not read off the tensor, which would wait for the GPU
    noise_BTVCHW: Tensor  # the noise of the noisy latents: mask tokens tell of it (eq. 3)
    over_time_B: Tensor  # bool: drawn anew for every frame (row-wise M_time), else the same in all frames (M_spatial)

    def hide(self, latents_BTVCHW: Tensor) -> Tensor:
        """Latents with zeros at dropped tokens."""
        *_, height, width = latents_BTVCHW.shape
        *_, rows, cols = self.dropped_BTVRK.shape
        dropped = self.dropped_BTVRK.repeat_interleave(height // rows, -2).repeat_interleave(width // cols, -1)
        return latents_BTVCHW.masked_fill(dropped.unsqueeze(3), 0.0)

    def pack(self, tokens_BTVRKD: Tensor) -> Tensor:
        """The visible tokens [B, T, V, R, J, D], moved left within their rows; their order stays."""
        return tokens_BTVRKD.gather(4, self._kept(tokens_BTVRKD.shape[-1]))

    def unpack(self, packed_BTVRJD: Tensor, fill_BTVRKD: Tensor) -> Tensor:
        """[B, T, V, R, K, D]: packed tokens back at their places, ``fill`` at the dropped ones."""
        return fill_BTVRKD.scatter(4, self._kept(packed_BTVRJD.shape[-1]), packed_BTVRJD)

    def _kept(self, width: int) -> Tensor:
        """Column of each packed token, [B, T, V, R, J, D]."""
        order = self.dropped_BTVRK.byte().argsort(dim=-1, stable=True)
        return order[..., : self.columns, None].expand(*order.shape[:-1], self.columns, width)


def draw_mask(generator: torch.Generator, noise_BTVCHW: Tensor, patch: int, *, ratio: float, time_share: float) -> TokenMask:
    """A mask drawn on the CPU, for tokens of ``patch`` x ``patch`` latent pixels; it moves to where the noise is.

    Of the K tokens of each row ``ratio`` K are dropped, rounded to the nearest number (halves up) and never all. A clip has
    M_time with probability ``time_share``: every row of every frame draws its own. Otherwise it has M_spatial: every row
    draws once for all frames. Views draw apart.
    """
    batch, frames, views, _, height, width = noise_BTVCHW.shape
    rows, cols = height // patch, width // patch
    count = min(int(ratio * cols + 0.5), cols - 1)
    over_time = torch.rand(batch, generator=generator) < time_share
    place = torch.rand(batch, frames, views, rows, cols, generator=generator).argsort(dim=-1)
    place = torch.where(over_time[:, None, None, None, None], place, place[:, :1])
    return TokenMask(
        dropped_BTVRK=(place < count).to(noise_BTVCHW.device),
        columns=cols - count,
        noise_BTVCHW=noise_BTVCHW,
        over_time_B=over_time.to(noise_BTVCHW.device),
    )
