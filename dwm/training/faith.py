"""Teaches the model to believe what it is told.

What reprojection and appearance show is a little out of place: nobody knows how far away a front really stands. Trained on
that alone, the model learns the mean over all the places where an edge might be, and a minute of windows blurs every picture
to nothing. So many clips are told the truth instead, as soft as what stands for it, and the model learns to show what it
sees. A roll-out then keeps the look it was given, out of place or not.

Shapes: B batch, T frames, V views, C latent channels, coarse to fine, h w latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dwm.training.clips import ClipBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class FaithConfig:
    """How often the truth is told."""

    memory_share: float = 0.0  # clips whose memory is true where it covers
    appearance_share: float = 0.0  # views whose appearance is true where no memory covers
    blur: float = 2.0  # largest exponent of the loss of fine channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Faith:
    """One draw."""

    gain_BC: Tensor
    memory_B: Tensor  # bool
    appearance_BV: Tensor  # bool

    def __call__(self, batch: ClipBatch, covered_BTV1HW: Tensor) -> ClipBatch:
        """The batch with truth in place of what is told; ``covered`` is the share that its memory covers."""
        truth = batch.latents_BTVCHW * self.gain_BC[:, None, None, :, None, None].to(batch.latents_BTVCHW)
        told = self.appearance_BV[:, None, :, None, None, None].to(truth) * (1 - covered_BTV1HW)
        known = batch.appearance_known_BTV1HW
        memory = self.memory_B.to(truth.device)[:, None, None, None, None, None]
        return replace(
            batch,
            memory_BTVCHW=torch.where(memory, truth, batch.memory_BTVCHW),
            # Where the memory covers, appearance stays what it is: nothing there may be better than the memory.
            appearance_BTVCHW=told * truth + (1 - told) * batch.appearance_BTVCHW,
            appearance_known_BTV1HW=told + (1 - told) * known,
        )


def draw_faith(generator: torch.Generator, batch: int, views: int, channels: int, config: FaithConfig) -> Faith:
    """Who is told the truth, on the CPU."""
    soft = torch.rand(batch, 1, generator=generator) * config.blur
    return Faith(
        gain_BC=torch.exp(-soft * torch.arange(channels) / channels),
        memory_B=torch.rand(batch, generator=generator) < config.memory_share,
        appearance_BV=torch.rand(batch, views, generator=generator) < config.appearance_share,
    )
