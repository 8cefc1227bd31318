"""Joint Denoising and Correcting flow (MiLA eq. 8-12): put noise back on predicted anchor frames, to correct them.

A predicted anchor is taken as a clean frame that already carries noise of scale alpha_1 (its errors).
"""

from __future__ import annotations

import math

from torch import Tensor


def correcting_noise(alpha_1: float, total: float) -> tuple[float, float]:
    """(alpha_2, sigma) that bring an anchor with error scale ``alpha_1`` to the total noise scale g (eq. 11-12).

    Raises ValueError unless 0 <= alpha_1 < total <= 1.
    """
    if not 0 <= alpha_1 < total <= 1:
        raise ValueError(f"noise scales need 0 <= alpha_1 < total <= 1, got alpha_1 {alpha_1} and total {total}")
    alpha_2 = (total - alpha_1) / (1 - alpha_1)
    variance = (alpha_2 - 2 * alpha_1 * alpha_2 + 2 * alpha_1) / alpha_2
    return alpha_2, math.sqrt(variance)


def anchor_levels(levels: Tensor, *, alpha_1: float, total: float) -> Tensor:
    """1 - g(t), the level of an anchor in a clip at level t: g falls linearly from ``total`` at t = 0 to ``alpha_1`` at t = 1."""
    correcting_noise(alpha_1, total)
    return 1 - total + (total - alpha_1) * levels


def renoise_anchors(anchors: Tensor, noise: Tensor, *, alpha_1: float, total: float) -> Tensor:
    """x_n = (1 - alpha_2) z + alpha_2 n_2 with n_2 ~ N(0, sigma^2) (eq. 9); its level is 1 - ``total``.

    ``noise`` is standard normal; any shape.
    """
    alpha_2, sigma = correcting_noise(alpha_1, total)
    return (1 - alpha_2) * anchors + alpha_2 * sigma * noise
