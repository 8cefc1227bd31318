"""Wears out what the model is given, the way its own roll-outs do, so that it learns to restore and not to pass it on.

A roll-out feeds its frames back window after window; what it gets wrong a little each time is contrast, colour and fine
detail. Training on perfect given frames alone never shows that, and a minute later the picture has faded to nothing.

Shapes: B batch, T frames, V views, C latent channels, coarse to fine, h w latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class WearConfig:
    """How much, and how often."""

    share: float = 0.4  # clips that are worn
    fade: float = 0.8  # largest loss of contrast
    tint: float = 0.8  # deviation of the colour shift of the coarse channels, in latent units
    blur: float = 4.0  # largest exponent of the loss of fine channels
    forgotten_views: float = 0.3  # chance of each view to carry no memory at all


@dataclass(frozen=True, slots=True, kw_only=True)
class Wear:
    """One draw: latents become ``gain * latents + shift``."""

    gain_BC: Tensor
    shift_BVC: Tensor
    kept_BV: Tensor  # 0 where a view's memory is forgotten

    def __call__(self, latents_BTVCHW: Tensor) -> Tensor:
        gain, shift = self.gain_BC[:, None, None, :, None, None], self.shift_BVC[:, None, :, :, None, None]
        return latents_BTVCHW * gain.to(latents_BTVCHW) + shift.to(latents_BTVCHW)


def draw_wear(generator: torch.Generator, batch: int, views: int, channels: int, config: WearConfig) -> Wear:
    """Wear of each clip, on the CPU; a clip that is spared has gain 1 and shift 0."""
    worn = (torch.rand(batch, 1, generator=generator) < config.share).float()
    fade, tint, blur = (torch.rand(batch, 1, generator=generator) * worn for _ in range(3))
    fineness = torch.arange(channels) / channels
    gain = (1 - config.fade * fade) * torch.exp(-config.blur * blur * fineness)
    common = torch.randn(batch, 1, channels, generator=generator)
    own = torch.randn(batch, views, channels, generator=generator)
    shift = config.tint * tint[:, :, None] * (0.8 * common + 0.6 * own) * torch.exp(-8 * fineness)
    kept = (torch.rand(batch, views, generator=generator) >= config.forgotten_views).float()
    return Wear(gain_BC=gain, shift_BVC=shift, kept_BV=kept)
