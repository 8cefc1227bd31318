"""Changes of the ego path that keep its line and change its pace."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dwm.scenario.paths import arc_length, at_times, increasing, micros, seconds, speed_along
from dwm.scenes.types import EgoTrack, SceneMap

Array = NDArray[np.float64]
BRAKE_JERK_MPS3 = 8.0
DRIVE_OFF_MPS2 = 1.5
DRIVE_OFF_JERK_MPS3 = 2.0
SUBSTEPS = 20
_STANDING_MPS = 0.5


def speed_scale(baseline: EgoTrack, times_s: Array, params: dict[str, float], scene_map: SceneMap | None) -> Array:
    """Run through the baseline at ``factor`` times its speed, from ``onset_s`` on, reached after ``ramp_s``."""
    onset, width, gain = params["onset_s"], max(params["ramp_s"], 1e-6), params["factor"] - 1.0
    x = (times_s - onset) / width
    u = np.clip(x, 0.0, 1.0)
    # The integral of the quintic ramp.
    integral = width * (u**4 * (2.5 - 3 * u + u**2) + np.maximum(x - 1.0, 0.0))
    return at_times(baseline, times_s + gain * integral, times_s)


def hard_brake(baseline: EgoTrack, times_s: Array, params: dict[str, float], scene_map: SceneMap | None) -> Array:
    """Brake to standstill at ``decel_mps2`` (jerk-limited), stand for ``hold_s``, drive off, continue as the baseline."""
    return at_times(baseline, _braked(baseline, times_s, params["onset_s"], params["decel_mps2"], params["hold_s"]), times_s)


def stop_and_go(baseline: EgoTrack, times_s: Array, params: dict[str, float], scene_map: SceneMap | None) -> Array:
    """A queue: ``stops`` times a brake to standstill as in ``hard_brake``, ``roll_s`` from one drive-off to the next brake."""
    track, onset = baseline, params["onset_s"]
    for _ in range(round(params["stops"])):
        # Each stop is one of the path that the stops before it have left.
        warped = _braked(track, times_s, onset, params["decel_mps2"], params["hold_s"])
        v0 = float(np.interp(onset, seconds(track), speed_along(track)))
        track = EgoTrack(timestamps_us=micros(baseline, times_s), ego_to_global=at_times(track, warped, times_s))
        standing = brake_duration_s(v0, params["decel_mps2"]) + params["hold_s"] if v0 >= _STANDING_MPS else 0.0
        onset += standing + params["roll_s"]
    return track.ego_to_global


def _braked(baseline: EgoTrack, times_s: Array, onset_s: float, decel_mps2: float, hold_s: float) -> Array:
    """The baseline's times [T] for a brake to standstill; unchanged where it stands already."""
    own, arc, speed = seconds(baseline), arc_length(baseline.ego_to_global), speed_along(baseline)
    v0, s0 = float(np.interp(onset_s, own, speed)), float(np.interp(onset_s, own, arc))
    if v0 < _STANDING_MPS:
        return times_s
    stop_s = brake_duration_s(v0, decel_mps2)
    position = s0 + brake_distance_m(np.clip(times_s - onset_s, 0.0, stop_s), v0, decel_mps2)
    away = times_s - onset_s - stop_s - hold_s
    warped = np.where(times_s <= onset_s, times_s, time_at(position, own, arc))
    stop_m = s0 + float(brake_distance_m(np.array(stop_s), v0, decel_mps2))
    return np.where(away > 0, _drive_off(own, arc, speed, stop_m, away), warped)


def brake_duration_s(speed_mps: float, decel_mps2: float, jerk_mps3: float = BRAKE_JERK_MPS3) -> float:
    """Time to standstill: v / a + a / j, with a lowered where there is no time to reach it."""
    decel = min(decel_mps2, np.sqrt(speed_mps * jerk_mps3))
    return speed_mps / decel + decel / jerk_mps3


def brake_distance_m(elapsed_s: Array, speed_mps: float, decel_mps2: float, jerk_mps3: float = BRAKE_JERK_MPS3) -> Array:
    """Distance driven while braking to standstill; in total v^2 / (2 a) + v a / (2 j), as speed falls symmetrically."""
    decel = min(decel_mps2, np.sqrt(speed_mps * jerk_mps3))
    rise, total = decel / jerk_mps3, brake_duration_s(speed_mps, decel_mps2, jerk_mps3)
    t = np.clip(elapsed_s, 0.0, total)
    # The deceleration is a trapezoid: three jerk steps before standstill, each adding j/6 (t - t_k)^3 to the distance.
    steps = ((0.0, -1.0), (rise, 1.0), (total - rise, 1.0))
    return speed_mps * t + sum(sign * jerk_mps3 / 6 * np.maximum(t - at, 0.0) ** 3 for at, sign in steps)


def _drive_off(own: Array, arc: Array, speed: Array, start_m: float, away_s: Array) -> Array:
    """Baseline times [T] while accelerating from standstill until the baseline's own speed is met, then its own pace."""
    out = np.full(len(away_s), float(time_at(np.array([start_m]), own, arc)[0]))
    s, v, a, clock, joined = start_m, 0.0, 0.0, 0.0, False
    now = float(out[0])
    road, when = increasing(arc, own)
    for i in np.flatnonzero(away_s > 0):
        dt = (away_s[i] - clock) / SUBSTEPS
        clock = away_s[i]
        if joined:
            now += dt * SUBSTEPS
            out[i] = now
            continue
        for _ in range(SUBSTEPS):
            if joined:
                now += dt
                continue
            a = min(a + DRIVE_OFF_JERK_MPS3 * dt, DRIVE_OFF_MPS2)
            v += a * dt
            s += v * dt
            now = float(np.interp(s, road, when))
            joined = v >= float(np.interp(now, own, speed)) or s >= arc[-1]
        out[i] = now
    return out


def time_at(position_m: Array, own: Array, arc: Array) -> Array:
    """When the baseline reaches a distance."""
    return np.interp(position_m, *increasing(arc, own))
