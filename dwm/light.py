"""What lamps and wet ground do to light, for the proving ground's camera and for relighting alike."""

from __future__ import annotations

import torch
from torch import Tensor

HEADLIGHT_TINT = (1.0, 0.95, 0.82)
WET_DARKENING = 0.35  # of the ground's own colour, under water
_HEADLIGHT_REACH_M = 22.0
_AT_NORMAL = 0.02  # share that water mirrors at normal incidence
_GLOSS = 0.25  # of what a mirror would show: water on asphalt is rough


def headlight_beam(points_P3: Tensor) -> Tensor:
    """Brightness [P], at most 1, of the own low beam at points in the ego frame."""
    forward, reach = points_P3[:, 0].clamp(min=0.1), points_P3.norm(dim=1)
    beam = torch.exp(-((points_P3[:, 1] / (0.45 * forward + 1.2)) ** 2)) * (points_P3[:, 0] > 0.5)
    return beam * torch.exp(-reach / _HEADLIGHT_REACH_M)


def wet_ground(colours_P3: Tensor, mirrored_P3: Tensor, cosine_P: Tensor, wetness: float) -> Tensor:
    """Ground under water [P, 3]: darker, and the more of a mirror the flatter one looks at it (Schlick, 1994).

    ``mirrored`` is what stands in the mirror, ``cosine`` that of the angle between line of sight and vertical.
    """
    mirror = _AT_NORMAL + (1 - _AT_NORMAL) * (1 - cosine_P.clamp(0, 1)) ** 5
    return colours_P3 * (1 - WET_DARKENING * wetness) + wetness * _GLOSS * mirror[:, None] * mirrored_P3
