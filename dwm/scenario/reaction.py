"""The ego gives way: it keeps its line and slows down by the intelligent driver model for who is in its corridor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import box_corners, yaw_from_rotation
from dwm.scenario.paths import arc_length, at_times, increasing, micros, seconds, speed_along
from dwm.scenes.types import EgoTrack
from dwm.traffic import idm
from dwm.traffic.simulate import EGO_SIZE_WLH_M, REAR_AXLE_TO_CENTRE_M

Array = NDArray[np.float64]
FRONT_M = REAR_AXLE_TO_CENTRE_M + EGO_SIZE_WLH_M[1] / 2  # from the rear axle to the front bumper
_CORRIDOR_M = EGO_SIZE_WLH_M[0] / 2 + 0.4
_SIGHT_M = 80.0
_FORESEEN_S = (0.0, 0.75, 1.5)  # who is about to enter the corridor counts as being there
_SUBSTEPS = 8
_BRAKING_MPS2, _DRIVING_OFF_MPS2 = 6.0, 1.5
_JERK_DOWN_MPS3, _JERK_UP_MPS3 = 8.0, 2.5
_PULL_MPS2 = 0.3  # weaker calls to slow down are those of everyday traffic
_STANDING_MPS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """Somebody in the way, at every frame [T]; NaN where absent."""

    xy_m: Array  # [T, 2] box centre
    yaw_rad: Array  # [T]
    size_wlh_m: Array  # [3]


class Line:
    """The line that a path draws on the road: positions by distance along it, straight on beyond its end."""

    def __init__(self, poses: Array) -> None:
        arc, rows = increasing(arc_length(poses), np.arange(len(poses), dtype=np.float64))
        keep = rows.astype(np.int64)
        self.arc_m, self._z = arc, poses[keep, 2, 3]
        self._xy, self._yaw = poses[keep, :2, 3], np.unwrap(yaw_from_rotation(poses[keep]))
        self.length_m = float(arc[-1])

    def at(self, s_m: Array, left_m: Array | float = 0.0) -> tuple[Array, Array]:
        """Points [..., 3] on the ground and headings [...] at distances along the line and to the left of it."""
        s = np.asarray(s_m, dtype=np.float64)
        yaw = np.interp(s, self.arc_m, self._yaw)
        beyond = s - np.clip(s, 0.0, self.length_m)
        x = np.interp(s, self.arc_m, self._xy[:, 0]) + beyond * np.cos(yaw) - left_m * np.sin(yaw)
        y = np.interp(s, self.arc_m, self._xy[:, 1]) + beyond * np.sin(yaw) + left_m * np.cos(yaw)
        return np.stack([x, y, np.interp(s, self.arc_m, self._z)], axis=-1), yaw

    def locate(self, xy_m: Array, from_m: float, to_m: float) -> tuple[Array, Array]:
        """Distance along the line [N] and to its left [N] of points [N, 2], looked for on one stretch of it."""
        samples = np.arange(from_m, to_m, 1.0)
        points, yaw = self.at(samples)
        offset = xy_m[:, None] - points[None, :, :2]
        nearest = np.argmin((offset**2).sum(axis=-1), axis=1)
        dx, dy = offset[np.arange(len(xy_m)), nearest].T
        cos, sin = np.cos(yaw[nearest]), np.sin(yaw[nearest])
        return samples[nearest] + dx * cos + dy * sin, dy * cos - dx * sin


def give_way(track: EgoTrack, times_s: Array, others: Sequence[Moving]) -> Array:
    """The track's own times [T] at which the ego, slowing down for ``others``, is where at ``times_s`` [T].

    It never gets ahead of its track; once nobody is in the way it takes up the track's pace again, later.
    """
    own, arc, speed = seconds(track), arc_length(track.ego_to_global), speed_along(track)
    road, when = increasing(arc, own)
    line = Line(track.ego_to_global)
    corners = [_corners(other) for other in others]
    along = [_speeds(other, times_s) for other in others]
    out = np.empty(len(times_s))
    now, s, v, a, free = float(times_s[0]), 0.0, 0.0, 0.0, True
    out[0] = now
    for k in range(1, len(times_s)):
        dt = float(times_s[k] - times_s[k - 1]) / _SUBSTEPS
        if free:
            s, v = float(np.interp(now, own, arc)), float(np.interp(now, own, speed))
        gap, lead = _nearest(line, s, k - 1, times_s, corners, along)
        for _ in range(_SUBSTEPS):
            pull = float(idm.interaction(v, lead, gap)) if np.isfinite(gap) else 0.0
            if free and pull > -_PULL_MPS2:
                now += dt
                continue
            if free:
                a, free = (float(np.interp(now + dt, own, speed)) - v) / dt, False
            commanded = float(np.interp(now, own, speed))
            wanted = float(idm.free_acceleration(v, max(1.1 * commanded, _STANDING_MPS))) + pull
            wanted = np.clip(wanted, -_BRAKING_MPS2, _DRIVING_OFF_MPS2)
            a = float(np.clip(wanted, a - _JERK_DOWN_MPS3 * dt, a + _JERK_UP_MPS3 * dt))
            faster = max(v + a * dt, 0.0)
            moved = (v + faster) / 2 * dt
            s, gap, v = s + moved, gap - moved + lead * dt, faster
            a = max(a, 0.0) if v <= 0.0 else a
            now = max(float(np.interp(s, road, when)), now)
            free = pull > -_PULL_MPS2 and v >= float(np.interp(now, own, speed))
        out[k] = now
    return out


def react(track: EgoTrack, times_s: Array, others: Sequence[Moving]) -> EgoTrack:
    """The track driven with regard to others; it ends with the last of ``times_s`` [L]."""
    warped = give_way(track, times_s, others)
    return EgoTrack(timestamps_us=micros(track, times_s), ego_to_global=at_times(track, warped, times_s))


def _corners(other: Moving) -> Array:
    """Ground corners [T, 4, 2]."""
    center = np.concatenate([other.xy_m, np.zeros((len(other.xy_m), 1))], axis=-1)
    return box_corners(center, np.tile(other.size_wlh_m, (len(center), 1)), other.yaw_rad)[:, [0, 1, 4, 5], :2]


def _speeds(other: Moving, times_s: Array) -> Array:
    """Velocities [T, 2]; 0 beside a frame in which it is absent."""
    return np.nan_to_num(np.gradient(other.xy_m, times_s, axis=0)) if len(times_s) > 1 else np.zeros_like(other.xy_m)


def _nearest(
    line: Line, s_m: float, k: int, times_s: Array, corners: Sequence[Array], velocities: Sequence[Array]
) -> tuple[float, float]:
    """Gap to the first one in the corridor ahead, now or soon, and its speed along the line; (inf, 0) when it is clear."""
    best = (np.inf, 0.0)
    for box, velocity in zip(corners, velocities, strict=True):
        for ahead in _FORESEEN_S:
            j = min(int(np.searchsorted(times_s, times_s[k] + ahead - 1e-6)), len(times_s) - 1)
            if not np.isfinite(box[j]).all() or np.abs(box[j] - line.at(np.array(s_m))[0][:2]).max() > _SIGHT_M:
                continue
            along, left = line.locate(box[j], s_m - 5.0, s_m + _SIGHT_M)
            if left.min() > _CORRIDOR_M or left.max() < -_CORRIDOR_M or along.max() < s_m + FRONT_M:
                continue
            gap = float(along.min()) - s_m - FRONT_M
            if gap < best[0]:
                _, yaw = line.at(np.array(along.mean()))
                speed = float(velocity[j] @ np.array([np.cos(yaw), np.sin(yaw)]))
                best = (max(gap, 0.05), max(speed, 0.0))
    return best
