"""A car beside the ego's line moves over in front of the ego: one of the log where there is one, else a newcomer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import wrap_angle
from dwm.scenario.events import VEHICLE_APPEARS_M, Happening, Moment, Newcomer, Rerouted, Stage
from dwm.scenario.paths import at_times, ramp, ramp_slope
from dwm.scenario.reaction import FRONT_M, Line
from dwm.scenario.sideways import ROAD_PER_METRE, next_lane_m
from dwm.scenario.types import Infeasible
from dwm.traffic.populate import KINDS

Array = NDArray[np.float64]
BESIDE_M, BESIDE_AHEAD_M, BESIDE_RAD = (1.8, 5.5), (4.0, 35.0), 0.4  # which car can cut in: aside, gap ahead, heading
PULLING_OUT_MPS2 = 1.2  # mean acceleration of a car of the log that cuts in


def cut_in(stage: Stage, moment: Moment, params: dict[str, float]) -> Happening:
    """A car beside the ego's line moves over in front of the ego from the moment on, then goes on at ``speed_factor`` of the ego's.

    It is the car of the log on that side, driving or parked, whose gap is nearest to ``gap_m``; without any, a newcomer that keeps
    ``gap_m``.
    """
    after = max(params["speed_factor"] * moment.speed_mps, 1.0)
    return _of_the_log(stage, moment, after, params) or _newcomer(stage, moment, after, params), None


def _newcomer(stage: Stage, moment: Moment, after_mps: float, params: dict[str, float]) -> Newcomer:
    onset, kind = moment.time_s, KINDS["car"]
    pose = at_times(stage.track, np.array([onset]), np.array([onset]))[0]
    offset = next_lane_m(stage.scene.map, pose, float(np.sign(params["side"])), onset)
    ahead = moment.driven_m + params["gap_m"] - VEHICLE_APPEARS_M  # how far it gets until then
    if ahead < onset:
        nearest = VEHICLE_APPEARS_M + ahead - onset
        raise Infeasible("too_near", f"the car would begin {nearest:.1f} m ahead, needs {VEHICLE_APPEARS_M:g} m")
    t, duration = stage.times_s - onset, params["duration_s"]
    place = VEHICLE_APPEARS_M + ahead + FRONT_M + kind.size_wlh_m[1] / 2
    s, left, turned = _moving_over(t, (ahead / onset, after_mps), duration, duration, place, offset)
    return stage.newcomer("cut_in", kind, Line(stage.track.ego_to_global), s, left, turned)


def _of_the_log(stage: Stage, moment: Moment, after_mps: float, params: dict[str, float]) -> Rerouted | None:
    """The log's car that is to cut in, on its new path; None where no car is beside the line ahead."""
    line, first = Line(stage.track.ego_to_global), int(np.searchsorted(stage.times_s, moment.time_s))
    found = _beside(stage, line, first, moment.driven_m, params)
    if found is None:
        return None
    agent, from_m, aside_m = found
    frames, duration = len(stage.times_s), params["duration_s"]
    centers, yaws = stage.table.centers_m[agent, :frames].copy(), stage.table.yaws_rad[agent, :frames].copy()
    step = np.linalg.norm(centers[first, :2] - centers[first - 1, :2])
    before = float(step / (stage.times_s[first] - stage.times_s[first - 1]))
    gaining = max(duration, abs(after_mps - before) / PULLING_OUT_MPS2)
    t = stage.times_s[first:] - stage.times_s[first]
    s, left, turned = _moving_over(t, (before, after_mps), duration, gaining, from_m, aside_m)
    points, heading = line.at(s, left)
    heading = heading + turned
    # As it stands in the log at first: a little across the line, and on its own ground.
    askew, above = wrap_angle(yaws[first] - heading[0]), centers[first, 2] - points[0, 2]
    centers[first:] = points + np.array([0.0, 0.0, above])
    yaws[first:] = heading + askew * left / aside_m
    return Rerouted(agent=agent, size_wlh_m=stage.scene.agents[agent].size_wlh_m, centers_m=centers, yaw_rad=yaws, first=first)


def _moving_over(
    t_s: Array, speeds_mps: tuple[float, float], duration_s: float, gaining_s: float, from_m: float, aside_m: float
) -> tuple[Array, Array, Array]:
    """Along a line from ``from_m`` and ``aside_m`` to its left at time 0 onto it: distance, left [m] and turn [rad], each [T].

    The speed goes from the first to the second within ``gaining_s``.
    """
    before, after = speeds_mps
    pace = before + (after - before) * ramp(t_s / gaining_s)
    s = np.concatenate([[0.0], np.cumsum((pace[1:] + pace[:-1]) / 2 * np.diff(t_s))])
    s += from_m - np.interp(0.0, t_s, s)
    length = max(duration_s * (before + after) / 2, ROAD_PER_METRE * abs(aside_m))
    u = (s - from_m) / length
    return s, aside_m * (1 - ramp(u)), np.arctan(-aside_m * ramp_slope(u) / length)


def _beside(stage: Stage, line: Line, frame: int, driven_m: float, params: dict[str, float]) -> tuple[int, float, float] | None:
    """Agent, distance along the line and to its left of the car that heads as the line does, with the best gap.

    Nobody may drive between it and the ego: a car that moves over in front of the ego's leader does not cut in.
    """
    agents, table = stage.scene.agents, stage.table
    there = [
        i for i, agent in enumerate(agents)
        if agent.category.startswith("vehicle.") and frame and table.present[i, frame - 1 : frame + 1].all()
    ]  # fmt: skip
    along, left = line.locate(table.centers_m[there, frame, :2], driven_m, driven_m + BESIDE_AHEAD_M[1])
    half = np.array([agents[i].size_wlh_m[1] / 2 for i in there])
    ahead = (np.abs(left) < BESIDE_M[0]) & (along > driven_m + FRONT_M)
    leader_m = (along - half)[ahead].min(initial=np.inf)
    gap, aside = along - half - driven_m - FRONT_M, left * np.sign(params["side"])
    turned = np.abs(wrap_angle(table.yaws_rad[there, frame] - line.at(along)[1]))
    fits = (
        np.array([agents[i].detection_class == "car" for i in there], dtype=bool)
        & (BESIDE_M[0] < aside) & (aside < BESIDE_M[1]) & (turned < BESIDE_RAD)
        & (BESIDE_AHEAD_M[0] < gap) & (gap < BESIDE_AHEAD_M[1]) & (along + half < leader_m)
    )  # fmt: skip
    if not fits.any():
        return None
    best = int(np.argmin(np.where(fits, np.abs(gap - params["gap_m"]), np.inf)))
    return there[best], float(along[best]), float(left[best])
