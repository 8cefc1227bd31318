"""What lamps and wet ground do to light: for the proving ground's camera, for relighting and for painted things alike."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dwm.scenes.types import DETECTION_CLASSES

RESPONSE = 1.25  # light is a pixel's value to this power
HEADLIGHT_TINT = (1.0, 0.95, 0.82)
WET_DARKENING = 0.35  # of the ground's own colour, under water
_HEADLIGHT_REACH_M = 22.0
HEAD_LAMP, TAIL_LAMP = (0.9, 0.85, 0.7), (0.7, 0.04, 0.03)  # light of a lamp that is on
WITH_LAMPS = tuple(DETECTION_CLASSES.index(name) for name in ("car", "truck", "bus", "construction_vehicle"))
_LAMP_ACROSS = (0.5, 0.92)  # place across a box, in half boxes
_LAMP_HEIGHT_M = (0.6, 0.88)  # above its lower side
_AT_NORMAL = 0.02  # share that water mirrors at normal incidence
_GLOSS = 0.25  # of what a mirror would show: water on asphalt is rough


def headlight_beam(points_P3: Tensor) -> Tensor:
    """Brightness [P], at most 1, of the own low beam at points in the ego frame."""
    forward, reach = points_P3[:, 0].clamp(min=0.1), points_P3.norm(dim=1)
    beam = torch.exp(-((points_P3[:, 1] / (0.45 * forward + 1.2)) ** 2)) * (points_P3[:, 0] > 0.5)
    return beam * torch.exp(-reach / _HEADLIGHT_REACH_M)


def lamps(
    place_P3: NDArray[np.floating], height_P: NDArray[np.floating], face: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which places on vehicles are head lamps and tail lamps, two [P].

    ``place`` is forward, left and up in half boxes, ``height`` the box's in metres; a place farther from the middle than
    ``face`` is on the front or on the back.
    """
    across, above_m = np.abs(place_P3[:, 1]), (place_P3[:, 2] + 1) * height_P / 2
    lamp = (
        (across > _LAMP_ACROSS[0]) & (across < _LAMP_ACROSS[1]) & (above_m > _LAMP_HEIGHT_M[0]) & (above_m < _LAMP_HEIGHT_M[1])
    )
    return lamp & (place_P3[:, 0] > face), lamp & (place_P3[:, 0] < -face)


def wet_ground(colours_P3: Tensor, mirrored_P3: Tensor, cosine_P: Tensor, wetness: float) -> Tensor:
    """Ground under water [P, 3]: darker, and the more of a mirror the flatter one looks at it (Schlick, 1994).

    ``mirrored`` is what stands in the mirror, ``cosine`` that of the angle between line of sight and vertical.
    """
    mirror = _AT_NORMAL + (1 - _AT_NORMAL) * (1 - cosine_P.clamp(0, 1)) ** 5
    return colours_P3 * (1 - WET_DARKENING * wetness) + wetness * _GLOSS * mirror[:, None] * mirrored_P3
