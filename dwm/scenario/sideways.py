"""Changes of the ego path that move it sideways: it keeps the baseline's pace and takes another line on the road.

A car cannot slide: sideways movement is a function of the distance driven, at walking pace it is stretched over more road.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import yaw_from_rotation
from dwm.scenario.paths import arc_length, micros, ramp, ramp_slope, shifted
from dwm.scenario.types import Infeasible
from dwm.scenes.types import EgoTrack, SceneMap

Array = NDArray[np.float64]
ROAD_PER_METRE = 6.0  # distance driven for each metre sideways, at least
ASSUMED_LANE_WIDTH_M = 3.5  # where no lane is known
_BUMP_AREA = 64 * 36 / 5040  # integral of 64 u^3 (1 - u)^3 over [0, 1]


def lateral_offset(baseline: EgoTrack, times_s: Array, params: dict[str, float], scene_map: SceneMap | None) -> Array:
    """Shift to the left by ``offset_m``, over the road that the baseline covers in ``ramp_s`` from ``onset_s`` on."""
    poses = baseline.at(micros(baseline, times_s))
    return _stepped(poses, times_s, params["offset_m"], params["onset_s"], params["ramp_s"])


def lane_change(baseline: EgoTrack, times_s: Array, params: dict[str, float], scene_map: SceneMap | None) -> Array:
    """Into the next lane of the same direction, left (``side`` > 0) or right, over ``duration_s`` from ``onset_s`` on.

    Without lane vectors the lane is taken to be 3.5 m away. Raises Infeasible where there is no such lane.
    """
    poses = baseline.at(micros(baseline, times_s))
    onset, duration, side = params["onset_s"], params["duration_s"], float(np.sign(params["side"]))
    middle = poses[int(np.argmin(np.abs(times_s - onset - duration / 2)))]
    offset = next_lane_m(scene_map, middle, side, onset)
    return _stepped(poses, times_s, offset, onset, duration)


def next_lane_m(scene_map: SceneMap | None, pose: Array, side: float, time_s: float) -> float:
    """How far to the left the middle of the next lane on a side is, from an ego pose [4, 4]; Infeasible where there is none."""
    graph = scene_map.lane_graph if scene_map is not None else None
    if graph is None or not graph.lanes:
        return side * ASSUMED_LANE_WIDTH_M
    (x, y), yaw = pose[:2, 3], float(yaw_from_rotation(pose))
    here = graph.nearest(float(x), float(y), yaw)
    if here is None:
        raise Infeasible("no_lane", f"no lane within 4 m of the ego at {time_s:.1f} s")
    lane = graph.lanes[here.lane]
    token = lane.left if side > 0 else lane.right
    if token is None or token not in graph.lanes:
        word = "left" if side > 0 else "right"
        raise Infeasible("no_lane", f"lane {here.lane} has no neighbour of its direction to the {word} at {time_s:.1f} s")
    line = graph.lanes[token].centerline
    offset = line[:, :2] - (x, y)
    nearest = int(np.argmin((offset**2).sum(axis=1)))
    return float(-offset[nearest, 0] * np.sin(yaw) + offset[nearest, 1] * np.cos(yaw))


def swerve(baseline: EgoTrack, times_s: Array, params: dict[str, float], scene_map: SceneMap | None) -> Array:
    """Out to the left by ``offset_m`` at most and back, within the road of ``duration_s`` from ``onset_s`` on."""
    poses = baseline.at(micros(baseline, times_s))
    arc, begin, length = _stretch(poses, times_s, params["onset_s"], params["duration_s"])
    length = max(length, 2 * ROAD_PER_METRE * abs(params["offset_m"]))
    u = np.clip((arc - begin) / length, 0.0, 1.0)
    return shifted(poses, params["offset_m"] * 64 * (u * (1 - u)) ** 3, params["offset_m"] * _bump_slope(u) / length)


def heading_drift(baseline: EgoTrack, times_s: Array, params: dict[str, float], scene_map: SceneMap | None) -> Array:
    """An inattentive driver: the heading drifts off by up to ``angle_rad`` during ``drift_s``, then ``recover_s`` lead back."""
    poses = baseline.at(micros(baseline, times_s))
    arc, begin, length = _stretch(poses, times_s, params["onset_s"], params["drift_s"])
    if length < 1.0:
        return poses
    slope = np.tan(params["angle_rad"])
    reached = slope * length * _BUMP_AREA
    _, _, back = _stretch(poses, times_s, params["onset_s"] + params["drift_s"], params["recover_s"])
    back = max(back, ROAD_PER_METRE * abs(reached))
    out, home = np.clip((arc - begin) / length, 0.0, 1.0), (arc - begin - length) / back
    shift = slope * length * _bump_integral(out) - reached * ramp(home)
    turned = np.where(home <= 0, slope * 64 * (out * (1 - out)) ** 3, -reached * ramp_slope(home) / back)
    return shifted(poses, shift, turned)


def _stepped(poses: Array, times_s: Array, offset_m: float, onset_s: float, ramp_s: float) -> Array:
    arc, begin, length = _stretch(poses, times_s, onset_s, ramp_s)
    length = max(length, ROAD_PER_METRE * abs(offset_m))
    u = (arc - begin) / length
    return shifted(poses, offset_m * ramp(u), offset_m * ramp_slope(u) / length)


def _stretch(poses: Array, times_s: Array, onset_s: float, duration_s: float) -> tuple[Array, float, float]:
    """Distance along the path [T], where it is at the onset, and how much of it is driven within the duration."""
    arc = arc_length(poses)
    begin, end = np.interp([onset_s, onset_s + duration_s], times_s, arc)
    return arc, float(begin), max(float(end - begin), 1e-6)


def _bump_slope(u: Array) -> Array:
    return 64 * 3 * (u * (1 - u)) ** 2 * (1 - 2 * u)


def _bump_integral(u: Array) -> Array:
    """Integral of 64 u^3 (1 - u)^3 from 0."""
    return 64 * (u**4 / 4 - 3 * u**5 / 5 + u**6 / 2 - u**7 / 7)
