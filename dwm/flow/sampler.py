"""The one primitive under every roll-out: denoise this clip with these levels and these clean frames.

Shapes: B batch, T frames, V views, C channels, h w latent pixels. Levels: 0 is pure noise, 1 is a clean frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from dwm.flow.schedule import ScheduleConfig, level_matrix
from dwm.models.conditioning import DenoiseCondition


class Denoiser(Protocol):
    """Noisy latents [B, T, V, C, h, w], levels [B, T] and condition -> predicted clean latents."""

    def __call__(self, latents_BTVCHW: Tensor, levels_BT: Tensor, condition: DenoiseCondition, /) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Frames that do not begin as pure noise (e.g. anchors to be corrected, ``dwm.flow.correcting``)."""

    latents_BTVCHW: Tensor
    levels_BT: Tensor  # level of each frame; 0 means: begin as noise like any other


@torch.inference_mode()
def denoise(
    model: Denoiser,
    noise_BTVCHW: Tensor | None,
    clean_latents_BTVCHW: Tensor,
    clean_mask_BT: Tensor,
    condition: DenoiseCondition,
    steps: int,
    guidance: float = 1.0,
    schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
    generator: torch.Generator | None = None,
    start: Start | None = None,
) -> Tensor:
    """Clean latents [B, T, V, C, h, w] after ``steps`` Euler steps; frames in ``clean_mask_BT`` come back untouched.

    ``noise_BTVCHW`` None: drawn on the CPU from ``generator``. ``guidance`` 1 is one model call a step; any other
    value is two (classifier-free guidance over text and waypoints).
    """
    if noise_BTVCHW is None:
        noise_BTVCHW = torch.randn(clean_latents_BTVCHW.shape, generator=generator).to(clean_latents_BTVCHW)
    anchors = None if start is None else (start.levels_BT > 0).cpu()
    levels = level_matrix(steps, clean_mask_BT.cpu(), schedule, anchors).to(noise_BTVCHW.device)
    latents = noise_BTVCHW
    if start is not None:
        levels = start.levels_BT + (1 - start.levels_BT) * levels
        latents = torch.where(_per_frame(start.levels_BT > 0), start.latents_BTVCHW, latents)
    latents = torch.where(_per_frame(clean_mask_BT), clean_latents_BTVCHW, latents)
    for now, after in pairwise(levels):
        predicted = _guided(model, latents, now, condition, guidance)
        # Euler on v = (x_1 - x) / (1 - t): a step covers this share of the way that is left, all of it at the end.
        share = _per_frame(torch.where(now < 1, (after - now) / (1 - now).clamp_min(1e-6), 0.0))
        latents = torch.where(share >= 1, predicted, latents + share * (predicted - latents))
    return torch.where(_per_frame(clean_mask_BT), clean_latents_BTVCHW, latents)


def _guided(model: Denoiser, latents: Tensor, levels_BT: Tensor, condition: DenoiseCondition, guidance: float) -> Tensor:
    predicted = model(latents, levels_BT, condition)
    if guidance == 1.0:
        return predicted
    blind = model(latents, levels_BT, condition.without("text", "waypoints"))
    return blind + guidance * (predicted - blind)


def _per_frame(values_BT: Tensor) -> Tensor:
    return values_BT[:, :, None, None, None, None]
