"""Intelligent driver model (Treiber, Hennecke, Helbing 2000, eq. 1-3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdmParams:
    """How a driver follows."""

    max_acceleration_mps2: float = 1.5
    comfortable_deceleration_mps2: float = 2.0
    time_headway_s: float = 1.4
    standstill_gap_m: float = 2.0
    exponent: float = 4.0
    hardest_braking_mps2: float = 8.0  # what tyres give; the model alone has no bound


IDM = IdmParams()


def free_acceleration(speed_mps: ArrayLike, desired_mps: ArrayLike, params: IdmParams = IDM) -> Array:
    """Acceleration without a leader; slowing down to a lower desired speed is never harder than comfortable."""
    ratio = np.asarray(speed_mps, dtype=np.float64) / np.maximum(desired_mps, 0.1)
    a = params.max_acceleration_mps2 * (1 - ratio**params.exponent)
    return np.maximum(a, -params.comfortable_deceleration_mps2)


def interaction(speed_mps: ArrayLike, leader_speed_mps: ArrayLike, gap_m: ArrayLike, params: IdmParams = IDM) -> Array:
    """The (negative) acceleration that a leader at a bumper-to-bumper gap adds."""
    v, gap = np.asarray(speed_mps, dtype=np.float64), np.maximum(gap_m, 0.05)
    leader = np.asarray(leader_speed_mps, dtype=np.float64)
    a, b = params.max_acceleration_mps2, params.comfortable_deceleration_mps2
    dynamic = v * params.time_headway_s + v * (v - leader) / (2 * np.sqrt(a * b))
    return -a * ((params.standstill_gap_m + np.maximum(dynamic, 0.0)) / gap) ** 2


def acceleration(
    speed_mps: ArrayLike, desired_mps: ArrayLike, leader_speed_mps: ArrayLike, gap_m: ArrayLike, params: IdmParams = IDM
) -> Array:
    """Acceleration behind one leader (gap inf: none), bounded by the hardest braking."""
    total = free_acceleration(speed_mps, desired_mps, params) + interaction(speed_mps, leader_speed_mps, gap_m, params)
    return np.maximum(total, -params.hardest_braking_mps2)


def equilibrium_gap_m(speed_mps: float, desired_mps: float, params: IdmParams = IDM) -> float:
    """The gap kept behind a leader of the same constant speed."""
    return (params.standstill_gap_m + speed_mps * params.time_headway_s) / np.sqrt(
        1 - (speed_mps / desired_mps) ** params.exponent
    )
