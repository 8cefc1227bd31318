"""Simulated traffic at the frames of a clip: the simulation takes larger steps than a video has frames.

Positions between two steps are cubic Hermite curves through the simulated positions and velocities, headings Catmull-Rom.
A agents, C steps, K frames.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
STEPS_HZ = 6.0


def stride_of(fps: float) -> int:
    """Frames in a step of the simulation."""
    return max(int(fps / STEPS_HZ + 1e-6), 1)


def step_times_us(timestamps_us: NDArray[np.int64], stride: int) -> NDArray[np.int64]:
    """Times [C] of the steps, the first at the first frame, the last not before the last frame [K]."""
    coarse = timestamps_us[::stride]
    if stride == 1 or coarse[-1] == timestamps_us[-1]:
        return coarse
    step = coarse[-1] - coarse[-2] if len(coarse) > 1 else stride * (timestamps_us[1] - timestamps_us[0])
    return np.append(coarse, coarse[-1] + step)


def at_frames(
    xy_m: Array, yaw_rad: Array, speed_mps: Array, present: NDArray[np.bool_], steps_us: NDArray[np.int64],
    timestamps_us: NDArray[np.int64],
) -> tuple[Array, Array, NDArray[np.bool_]]:  # fmt: skip
    """Positions [A, K, 2], headings [A, K] and presence [A, K] at the frames, from [A, C, ...] at the steps.

    Present between two steps is who is present at both.
    """
    if len(steps_us) == 1:
        return xy_m, yaw_rad, present
    right = np.clip(np.searchsorted(steps_us, timestamps_us, side="right"), 1, len(steps_us) - 1)
    left = right - 1
    width = (steps_us[right] - steps_us[left]) * 1e-6
    u = (timestamps_us - steps_us[left]) * 1e-6 / width
    yaw = np.unwrap(yaw_rad, axis=1)
    velocity = speed_mps[..., None] * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    places = _hermite(xy_m[:, left], xy_m[:, right], velocity[:, left], velocity[:, right], u[:, None], width[:, None])
    rate = np.gradient(yaw, steps_us * 1e-6 - steps_us[0] * 1e-6, axis=1)
    headings = _hermite(yaw[:, left], yaw[:, right], rate[:, left], rate[:, right], u, width)
    there = present[:, left] & (present[:, right] | (u == 0))
    return places, headings, np.where(u == 1, present[:, right], there)


def _hermite(a: Array, b: Array, rate_a: Array, rate_b: Array, u: Array, width_s: Array) -> Array:
    """The cubic from ``a`` to ``b`` with these slopes at its ends, at u in [0, 1]."""
    v = 1 - u
    return a * v**2 * (1 + 2 * u) + b * u**2 * (3 - 2 * u) + width_s * u * v * (rate_a * v - rate_b * u)
