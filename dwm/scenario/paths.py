"""Pieces that all changes of an ego path are made of: smooth steps, distance along a path, poses at other times."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from dwm.geometry import rotation_from_yaw, yaw_from_rotation
from dwm.scenes.types import EgoTrack

Array = NDArray[np.float64]


def ramp(x: Array) -> Array:
    """Quintic step from 0 (x <= 0) to 1 (x >= 1) with zero slope and curvature at both ends."""
    u = np.clip(x, 0.0, 1.0)
    return u**3 * (10 - 15 * u + 6 * u**2)


def ramp_slope(x: Array) -> Array:
    """Derivative of ``ramp``."""
    u = np.clip(x, 0.0, 1.0)
    return 30 * u**2 * (1 - u) ** 2


def seconds(track: EgoTrack) -> Array:
    """Times [N] since the track's first pose."""
    return (track.timestamps_us - track.timestamps_us[0]) * 1e-6


def micros(track: EgoTrack, times_s: Array) -> NDArray[np.int64]:
    """Timestamps [T] of times in s from the track's first pose."""
    return np.round(times_s * 1e6).astype(np.int64) + track.timestamps_us[0]


def arc_length(poses: Array) -> Array:
    """Distance driven [T] along poses [T, 4, 4], in the plane."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(poses[:, :2, 3], axis=0), axis=1))])


def speed_along(track: EgoTrack) -> Array:
    """Speed [N] in m/s by central differences."""
    own = seconds(track)
    return np.gradient(arc_length(track.ego_to_global), own) if len(own) > 1 else np.zeros(1)


def increasing(arc: Array, own: Array) -> tuple[Array, Array]:
    """Samples with strictly growing distance: standing still maps to the moment of arrival."""
    keep = np.concatenate([[True], np.diff(arc) > 1e-9])
    return arc[keep], own[keep]


def shifted(poses: Array, shift_m: Array, slope: Array) -> Array:
    """Poses [T, 4, 4] moved to their left by ``shift_m`` [T] and turned by its slope [T] over the distance driven."""
    yaw = yaw_from_rotation(poses)
    out = poses.copy()
    out[:, 0, 3] -= shift_m * np.sin(yaw)
    out[:, 1, 3] += shift_m * np.cos(yaw)
    out[:, :3, :3] = rotation_from_yaw(np.arctan(slope)) @ poses[:, :3, :3]
    return out


def at_times(baseline: EgoTrack, warped_s: Array, times_s: Array) -> Array:
    """Baseline poses at warped times; smooth between samples, exact where nothing is warped."""
    own = seconds(baseline)
    poses = baseline.at(micros(baseline, warped_s))
    if len(own) > 3:
        # Linear interpolation would show as jerk.
        smooth = CubicSpline(own, baseline.ego_to_global[:, :3, 3], axis=0)(np.clip(warped_s, own[0], own[-1]))
        same = np.abs(warped_s - times_s) < 1e-9
        poses[:, :3, 3] = np.where(same[:, None], poses[:, :3, 3], smooth)
    return poses
