"""Which tokens a training step hides from the world model (MaskGWM section 3.2).

Shapes: B batch, T frames, V views, R rows and K columns of tokens, C latent channels, h w latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMask:
    """Tokens that are not seen, and what stands in their place."""

    dropped_BTVRK: Tensor  # bool
    noise_BTVCHW: Tensor  # the noise of the noisy latents: mask tokens tell of it (eq. 3)
    over_time_B: Tensor  # bool: drawn anew for every frame (row-wise M_time), else the same in all frames (M_spatial)

    def hide(self, latents_BTVCHW: Tensor) -> Tensor:
        """Latents with zeros at dropped tokens."""
        *_, height, width = latents_BTVCHW.shape
        *_, rows, cols = self.dropped_BTVRK.shape
        dropped = self.dropped_BTVRK.repeat_interleave(height // rows, -2).repeat_interleave(width // cols, -1)
        return latents_BTVCHW.masked_fill(dropped.unsqueeze(3), 0.0)
