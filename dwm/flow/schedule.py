"""Which noise level every frame has at every sampling step.

Shapes: B batch, T frames. Levels: 0 is pure noise, 1 is a clean frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """The way from noise to clean."""

    progressive_omega: float = 0.0  # 0: all frames together; in (0, pi/2]: earlier frames first (TPD, MiLA eq. 13-14) [rad]
    shift: float = 1.0  # above 1 spends more of the steps at noisy levels


def frame_phases(clean_mask_BT: Tensor) -> Tensor:
    """phi_s = pi/2 * s/|S| of MiLA eq. 14 for the frames outside the mask in order [B, T]; 0 inside it."""
    noisy = (~clean_mask_BT).float()
    order = noisy.cumsum(dim=1) - 1
    return (0.5 * math.pi * order / noisy.sum(dim=1, keepdim=True).clamp_min(1)).masked_fill(clean_mask_BT, 0.0)


def progressive_level(levels_BT: Tensor, clean_mask_BT: Tensor, omega: float) -> Tensor:
    """f(t, phi) of MiLA eq. 13: f(0) = 0 and f(1) = 1 for every frame, in between earlier frames are cleaner.

    Raises ValueError for omega outside (0, pi/2], where f would not be monotone.
    """
    if not 0 < omega <= math.pi / 2:
        raise ValueError(f"progressive_omega {omega} is not in (0, pi/2]")
    phase = frame_phases(clean_mask_BT)
    start, end = phase.cos(), (omega + phase).cos()
    return 1 - (((1 - levels_BT) * omega + phase).cos() - start) / (end - start)


def level_matrix(steps: int, clean_mask_BT: Tensor, config: ScheduleConfig, anchor_mask_BT: Tensor | None = None) -> Tensor:
    """Levels [steps + 1, B, T]: 0 in the first row, 1 in the last, 1 everywhere at clean frames, never falling.

    Anchors keep the common pace, progressive or not: their noise is linear (MiLA section 3.3).
    """
    if steps < 1:
        raise ValueError(f"steps {steps} must be at least 1")
    times = torch.linspace(0, 1, steps + 1)
    times = times / (config.shift - (config.shift - 1) * times)
    rows = times[:, None, None].expand(steps + 1, *clean_mask_BT.shape)
    if config.progressive_omega:
        at_pace = clean_mask_BT if anchor_mask_BT is None else clean_mask_BT | anchor_mask_BT
        progressive = torch.stack([progressive_level(row, at_pace, config.progressive_omega) for row in rows]).clamp(0, 1)
        rows = torch.where(at_pace, rows, progressive)
        rows[0], rows[-1] = 0.0, 1.0  # exactly, whatever the cosines round to
    return rows.masked_fill(clean_mask_BT, 1.0)
