"""Rectified flow with a noise level per frame (MiLA eq. 4-7).

Shapes: B batch, T frames, V views, C channels, h w latent pixels. Levels t: 0 is pure noise, 1 is a clean frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dwm.flow.correcting import anchor_levels
from dwm.flow.schedule import progressive_level

VELOCITY_FLOOR = 0.05  # least 1 - t that a velocity is divided by


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseConfig:
    """How training draws noise levels, and how it weighs the errors at each."""

    logit_mean: float = -1.0  # levels are sigmoid(normal(mean, std)); below 0 leans to noisy frames
    logit_std: float = 1.2
    pure_noise_share: float = 0.25  # draws that are level 0: where sampling starts, and with few steps the step that counts
    anchor_error: float = 0.2  # alpha_1, the noise that predicted anchors are taken to carry (MiLA eq. 8)
    anchor_noise: float = 0.5  # g(0), the most noise that anchors are corrected from (MiLA eq. 12)
    progressive_omega: float = 1.5  # steepness of the progressive levels [rad], in (0, pi/2]
    robust: float = 0.15  # c of the pseudo-Huber error, in latent units: squared below, absolute above; 0 is squared throughout
    weight_cap: float = 4.0  # a frame's error counts min(1 / (1 - t)^2, cap): velocity error, bounded near clean frames


def interpolate(clean_BTVCHW: Tensor, noise_BTVCHW: Tensor, levels_BT: Tensor) -> Tensor:
    """x_t = t x_1 + (1 - t) x_0 (MiLA eq. 4-5); frames at level 1 are exactly the clean ones."""
    t = _per_frame(levels_BT)
    return torch.where(t >= 1, clean_BTVCHW, t * clean_BTVCHW + (1 - t) * noise_BTVCHW)


def velocity(predicted_clean_BTVCHW: Tensor, noisy_BTVCHW: Tensor, levels_BT: Tensor) -> Tensor:
    """dx/dt = (x_1 - x_t) / (1 - t) at the predicted x_1 (MiLA eq. 6), with 1 - t floored."""
    return (predicted_clean_BTVCHW - noisy_BTVCHW) / (1 - _per_frame(levels_BT)).clamp_min(VELOCITY_FLOOR)


def flow_loss(
    predicted_clean_BTVCHW: Tensor, clean_BTVCHW: Tensor, levels_BT: Tensor, weight_cap: float, robust: float = 0.0
) -> Tensor:
    """Mean over the frames that carry noise of min(1 / (1 - t)^2, cap) * |x_1 - prediction|^2; 0 when none does.

    Without the cap this is the flow-matching loss on velocities, since y - v = (x_1 - prediction) / (1 - t). ``robust`` c > 0
    takes 2 c^2 (sqrt(1 + (e / c)^2) - 1) for the square of each difference e (as Lee et al., "Improving the Training of
    Rectified Flows", NeurIPS 2024): places that nothing could predict do not outshout those that could be exact.
    """
    error = (predicted_clean_BTVCHW - clean_BTVCHW).square()
    if robust:
        error = 2 * robust**2 * ((1 + error / robust**2).sqrt() - 1)
    per_frame = error.mean(dim=(2, 3, 4, 5))
    noisy = (levels_BT < 1).to(per_frame.dtype)
    weight = (1 / (1 - levels_BT).clamp_min(1e-4).square()).clamp_max(weight_cap) * noisy
    return (weight * per_frame).sum() / noisy.sum().clamp_min(1)


def sample_training_noise_levels(
    generator: torch.Generator,
    clean_mask_BT: Tensor,
    *,
    kind: str = "shared",
    config: NoiseConfig,
    anchor_mask_BT: Tensor | None = None,
) -> Tensor:
    """Levels [B, T], on the CPU; 1 where ``clean_mask_BT`` is True.

    ``kind``: "shared" one level per clip, "independent" one per frame, "progressive" earlier frames cleaner (MiLA eq. 13).
    Where ``anchor_mask_BT`` (m of MiLA eq. 15) is True, frames carry the noise of a predicted anchor that is corrected, 1 - g(t):
    noised by eq. 8 and 9 they are distributed as true frames at that level.
    """
    batch, frames = clean_mask_BT.shape
    count = frames if kind == "independent" else 1
    draws = torch.randn(batch, count, generator=generator) * config.logit_std + config.logit_mean
    pure = torch.rand(batch, count, generator=generator) < config.pure_noise_share
    base = draws.sigmoid().masked_fill(pure, 0.0).expand(batch, frames)
    anchors = torch.zeros_like(clean_mask_BT) if anchor_mask_BT is None else anchor_mask_BT
    levels = base
    if kind == "progressive":
        levels = progressive_level(base, clean_mask_BT | anchors, config.progressive_omega)
    elif kind not in ("shared", "independent"):
        raise ValueError(f"kind {kind!r} is not one of shared, independent, progressive")
    corrected = anchor_levels(base, alpha_1=config.anchor_error, total=config.anchor_noise)
    levels = torch.where(anchors, corrected, levels)
    return levels.masked_fill(clean_mask_BT, 1.0)


def _per_frame(levels_BT: Tensor) -> Tensor:
    return levels_BT[:, :, None, None, None, None]
