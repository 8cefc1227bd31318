"""How close the logged ego came to others: time gaps at shared places, and vulnerable road users beside its path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.scenario.manoeuvres import EgoMotion
from dwm.scenes.tracks import Annotations, SceneTracks
from dwm.scenes.types import DETECTION_CLASSES
from dwm.traffic.simulate import EGO_SIZE_WLH_M, REAR_AXLE_TO_CENTRE_M

Array = NDArray[np.float64]
STEPS_PER_KEY = 5  # agents are interpolated to 10 Hz: faster ones would jump over the ego's path
ROAD_USERS = tuple(DETECTION_CLASSES.index(name) for name in DETECTION_CLASSES if name not in ("traffic_cone", "barrier"))
VULNERABLE = tuple(DETECTION_CLASSES.index(name) for name in ("pedestrian", "bicycle", "motorcycle"))
OVERLAP_M = 0.3  # by how much footprints share the path: annotated boxes are not more exact
MIN_AGENT_MPS = 0.5  # nobody collides with what stands beside the path
MIN_EGO_MPS = 3.0
PATH_SIDE_M, PATH_AHEAD_S = 2.5, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Encounters:
    """Moments of a scene, in seconds from its first key frame."""

    gap_times_s: Array  # [G] when the ego and another were at the same place
    gaps_s: Array  # [G] time between the one leaving and the other arriving
    vulnerable_times_s: Array  # [V] when somebody vulnerable was beside the path to come

    def min_gap_s(self, start_s: float, end_s: float) -> float:
        """The smallest gap in a stretch; infinite without an encounter."""
        inside = (self.gap_times_s >= start_s) & (self.gap_times_s <= end_s)
        return float(self.gaps_s[inside].min(initial=np.inf))

    def vulnerable_near(self, start_s: float, end_s: float) -> bool:
        """Whether somebody vulnerable was beside the path in a stretch."""
        return bool(((self.vulnerable_times_s >= start_s) & (self.vulnerable_times_s <= end_s)).any())


def encounters(tracks: SceneTracks, motion: EgoMotion) -> Encounters:
    """Post-encroachment times (Allen, Shin, Cooper, 1978) along the driven path, and vulnerable users within 2.5 m of it.

    The ego follows: its front arrives where the other was. The other follows: only if it crosses, so that being
    tailgated does not count. Agents move straight between key frames.
    """
    agents = _moving(tracks.annotations, (tracks.key_timestamps_us - tracks.key_timestamps_us[0]) * 1e-6)
    none = np.zeros(0)
    if len(motion.times_s) < 3 or motion.speed_mps.max() < MIN_EGO_MPS or not len(agents.times_s):
        return Encounters(gap_times_s=none, gaps_s=none, vulnerable_times_s=none)
    arc, path = _distance(motion.xy_m)
    along, side, heading = _on_path(agents.xy_m, path, arc)
    turn = agents.yaw_rad - heading
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    half_w, half_l = agents.size_wl_m.T / 2
    half_along, half_side = half_l * cos + half_w * sin, half_l * sin + half_w * cos
    front = REAR_AXLE_TO_CENTRE_M + EGO_SIZE_WLH_M[1] / 2
    arrives = _time_at(along - front - half_along, arc, motion.times_s)
    leaves = _time_at(along - front + EGO_SIZE_WLH_M[1] + half_along, arc, motion.times_s)
    shared = (np.abs(side) <= EGO_SIZE_WLH_M[0] / 2 + half_side - OVERLAP_M) & (agents.speed_mps >= MIN_AGENT_MPS)
    after, before = arrives - agents.times_s, agents.times_s - leaves
    gap = np.where(after > 0, after, np.where((before > 0) & (sin > cos), before, np.nan))
    speed = np.interp(np.where(after > 0, arrives, leaves), motion.times_s, motion.speed_mps)
    counts = shared & np.isin(agents.label, ROAD_USERS) & np.isfinite(gap) & (speed >= MIN_EGO_MPS)
    ahead = np.isin(agents.label, VULNERABLE) & (np.abs(side) <= PATH_SIDE_M) & (after >= 0) & (after <= PATH_AHEAD_S)
    return Encounters(gap_times_s=agents.times_s[counts], gaps_s=gap[counts], vulnerable_times_s=agents.times_s[ahead])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Agents:
    """P places of agents between their key frames."""

    times_s: Array  # [P]
    xy_m: Array  # [P, 2]
    yaw_rad: Array  # [P]
    speed_mps: Array  # [P]
    size_wl_m: Array  # [P, 2]
    label: NDArray[np.int64]  # [P]


def _moving(rows: Annotations, key_s: Array) -> _Agents:
    pairs = np.flatnonzero((np.diff(rows.instance) == 0) & (np.diff(rows.key_index) == 1))
    start, end = key_s[rows.key_index[pairs]], key_s[rows.key_index[pairs + 1]]
    way = rows.xy_m[pairs + 1] - rows.xy_m[pairs]
    speed = np.linalg.norm(way, axis=1) / (end - start)
    part = (np.arange(STEPS_PER_KEY) / STEPS_PER_KEY)[None]
    flat = lambda values: np.repeat(values, STEPS_PER_KEY, axis=0)  # noqa: E731
    return _Agents(
        times_s=(start[:, None] + part * (end - start)[:, None]).ravel(),
        xy_m=(rows.xy_m[pairs][:, None] + part[..., None] * way[:, None]).reshape(-1, 2), yaw_rad=flat(rows.yaw_rad[pairs]),
        speed_mps=flat(speed), size_wl_m=flat(rows.size_wl_m[pairs]), label=flat(rows.label[pairs]),
    )  # fmt: skip


def _distance(xy_m: Array) -> tuple[Array, Array]:
    """Distance driven [N] and the path [M, 3]: x, y and distance, with at least 0.2 m between points."""
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(xy_m, axis=0), axis=1))])
    _, first = np.unique(np.floor(arc / 0.2), return_index=True)
    return arc, np.column_stack([xy_m[first], arc[first]])


def _on_path(xy_m: Array, path: Array, arc: Array) -> tuple[Array, Array, Array]:
    """Distance along the path, to its left, and the path's heading there, of points [P, 2]; beyond its ends straight on."""
    if len(path) < 2:
        nothing = np.full(len(xy_m), np.inf)
        return nothing, nothing, np.zeros(len(xy_m))
    nearest = np.concatenate([
        np.argmin(((part[:, None] - path[None, :, :2]) ** 2).sum(-1), axis=1) for part in np.array_split(xy_m, len(xy_m) // 4096 + 1)
    ])  # fmt: skip
    step = np.gradient(path[:, :2], axis=0)
    heading = np.arctan2(step[:, 1], step[:, 0])[nearest]
    x, y = (xy_m - path[nearest, :2]).T
    along, side = x * np.cos(heading) + y * np.sin(heading), y * np.cos(heading) - x * np.sin(heading)
    return path[nearest, 2] + along, side, heading


def _time_at(position_m: Array, arc: Array, times_s: Array) -> Array:
    """When so much is driven for the first time; NaN before and after the log."""
    keep = np.concatenate([[True], np.diff(arc) > 1e-9])
    return np.interp(position_m, arc[keep], times_s[keep], left=np.nan, right=np.nan)
