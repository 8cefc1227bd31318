"""Named changes of the ego path, as pure functions on the baseline path.

All keep to the baseline's geometry: speed changes re-time it, lateral ones shift it sideways. A severity in [0, 1] maps to
the parameters' documented range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from dwm.errors import InputError
from dwm.geometry import rotation_from_yaw, yaw_from_rotation
from dwm.scenario.types import Perturbation
from dwm.scenes.types import EgoTrack

Array = NDArray[np.float64]
BASELINE = Perturbation(name="baseline", params={}, severity=0.0)
BRAKE_JERK_MPS3 = 8.0
DRIVE_OFF_MPS2 = 1.5
DRIVE_OFF_JERK_MPS3 = 2.0
SUBSTEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbationFamily:
    """One kind of perturbation: how to draw its parameters and how to apply them."""

    name: str
    parameters: tuple[str, ...]
    sample: Callable[[float, np.random.Generator], dict[str, float]]
    # (baseline, times [T] in s from its start, parameters) -> poses [T, 4, 4]
    apply: Callable[[EgoTrack, Array, dict[str, float]], Array]
    # How much baseline, in multiples of the clip, the perturbed path may use up.
    horizon: Callable[[dict[str, float]], float]


def ramp(x: Array) -> Array:
    """Quintic step from 0 (x <= 0) to 1 (x >= 1) with zero slope and curvature at both ends."""
    u = np.clip(x, 0.0, 1.0)
    return u**3 * (10 - 15 * u + 6 * u**2)


def sample_perturbation(name: str, severity: float, rng: np.random.Generator) -> Perturbation:
    """A perturbation of a family; severity in [0, 1] is how far it is from the baseline."""
    if not 0.0 <= severity <= 1.0:
        raise InputError("severity", f"{severity} is not in [0, 1]", "give a severity between 0 and 1")
    if name == BASELINE.name:
        return BASELINE
    return Perturbation(name=name, params=family(name).sample(severity, rng), severity=float(severity))


def family(name: str) -> PerturbationFamily:
    """The family of that name; InputError names the known ones."""
    if name not in PERTURBATIONS:
        known = ", ".join((BASELINE.name, *PERTURBATIONS))
        raise InputError("perturbation", f"no perturbation '{name}'", f"choose one of: {known}")
    return PERTURBATIONS[name]


def horizon(perturbation: Perturbation) -> float:
    """How much of the baseline, in multiples of the clip's duration, ``perturb`` needs."""
    return 1.0 if perturbation.name == BASELINE.name else family(perturbation.name).horizon(_checked(perturbation))


def perturb(baseline: EgoTrack, timestamps_us: NDArray[np.int64], perturbation: Perturbation) -> Array:
    """Ego poses [T, 4, 4] at the given times; the onset counts from the first of them."""
    if perturbation.name == BASELINE.name:
        own = np.array_equal(timestamps_us, baseline.timestamps_us[: len(timestamps_us)])
        return baseline.ego_to_global[: len(timestamps_us)].copy() if own else baseline.at(timestamps_us)
    times = (timestamps_us - baseline.timestamps_us[0]) * 1e-6
    return family(perturbation.name).apply(baseline, times, _checked(perturbation))


def _checked(perturbation: Perturbation) -> dict[str, float]:
    expected = family(perturbation.name).parameters
    if set(perturbation.params) != set(expected):
        raise InputError(
            f"perturbation '{perturbation.name}'",
            f"parameters are {sorted(perturbation.params)}",
            f"give exactly {sorted(expected)}",
        )
    return perturbation.params


def arc_length(poses: Array) -> Array:
    """Distance driven [T] along poses [T, 4, 4], in the plane."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(poses[:, :2, 3], axis=0), axis=1))])


def _seconds(track: EgoTrack) -> Array:
    return (track.timestamps_us - track.timestamps_us[0]) * 1e-6


def _at_times(baseline: EgoTrack, warped_s: Array, times_s: Array) -> Array:
    """Baseline poses at warped times; smooth between samples, exact where nothing is warped."""
    own = _seconds(baseline)
    micro = np.round(warped_s * 1e6).astype(np.int64) + baseline.timestamps_us[0]
    poses = baseline.at(micro)
    if len(own) > 3:
        # Linear interpolation would show as jerk.
        smooth = CubicSpline(own, baseline.ego_to_global[:, :3, 3], axis=0)(np.clip(warped_s, own[0], own[-1]))
        same = np.abs(warped_s - times_s) < 1e-9
        poses[:, :3, 3] = np.where(same[:, None], poses[:, :3, 3], smooth)
    return poses


def _apply_lateral_offset(baseline: EgoTrack, times_s: Array, params: dict[str, float]) -> Array:
    """Shift to the left by ``offset_m``, over the road that the baseline covers in ``ramp_s`` from ``onset_s`` on."""
    poses = baseline.at(np.round(times_s * 1e6).astype(np.int64) + baseline.timestamps_us[0])
    offset = params["offset_m"]
    arc = arc_length(poses)
    begin, end = np.interp([params["onset_s"], params["onset_s"] + params["ramp_s"]], times_s, arc)
    # A car cannot move sideways: at walking pace the ramp is stretched over more road.
    length = max(end - begin, 6.0 * abs(offset))
    shift = offset * ramp((arc - begin) / length)
    slope = offset * np.clip((arc - begin) / length, 0, 1) ** 2 * (1 - np.clip((arc - begin) / length, 0, 1)) ** 2 * 30 / length
    yaw = yaw_from_rotation(poses)
    out = poses.copy()
    out[:, 0, 3] -= shift * np.sin(yaw)
    out[:, 1, 3] += shift * np.cos(yaw)
    out[:, :3, :3] = rotation_from_yaw(np.arctan(slope)) @ poses[:, :3, :3]
    return out


def _apply_speed_scale(baseline: EgoTrack, times_s: Array, params: dict[str, float]) -> Array:
    """Run through the baseline at ``factor`` times its speed, from ``onset_s`` on, reached after ``ramp_s``."""
    onset, width, gain = params["onset_s"], max(params["ramp_s"], 1e-6), params["factor"] - 1.0
    x = (times_s - onset) / width
    u = np.clip(x, 0.0, 1.0)
    # The integral of the quintic ramp.
    integral = width * (u**4 * (2.5 - 3 * u + u**2) + np.maximum(x - 1.0, 0.0))
    return _at_times(baseline, times_s + gain * integral, times_s)


def _apply_hard_brake(baseline: EgoTrack, times_s: Array, params: dict[str, float]) -> Array:
    """Brake to standstill at ``decel_mps2`` (jerk-limited), stand for ``hold_s``, drive off, continue as the baseline."""
    own, arc = _seconds(baseline), arc_length(baseline.ego_to_global)
    speed = np.gradient(arc, own) if len(own) > 1 else np.zeros(1)
    onset = params["onset_s"]
    v0, s0 = float(np.interp(onset, own, speed)), float(np.interp(onset, own, arc))
    if v0 < 0.5:
        return _at_times(baseline, times_s, times_s)
    stop_s = brake_duration_s(v0, params["decel_mps2"])
    braking = np.clip(times_s - onset, 0.0, stop_s)
    position = s0 + brake_distance_m(braking, v0, params["decel_mps2"])
    away = times_s - onset - stop_s - params["hold_s"]
    warped = np.where(times_s <= onset, times_s, _time_at(position, own, arc))
    stop_m = s0 + float(brake_distance_m(np.array(stop_s), v0, params["decel_mps2"]))
    off = _drive_off(own, arc, speed, stop_m, away)
    return _at_times(baseline, np.where(away > 0, off, warped), times_s)


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
    out = np.full(len(away_s), float(_time_at(np.array([start_m]), own, arc)[0]))
    s, v, a, clock, joined = start_m, 0.0, 0.0, 0.0, False
    now = float(out[0])
    for i in np.flatnonzero(away_s > 0):
        dt = (away_s[i] - clock) / SUBSTEPS
        clock = away_s[i]
        for _ in range(SUBSTEPS):
            if joined:
                now += dt
                continue
            a = min(a + DRIVE_OFF_JERK_MPS3 * dt, DRIVE_OFF_MPS2)
            v += a * dt
            s += v * dt
            now = float(np.interp(s, *_increasing(arc, own)))
            joined = v >= float(np.interp(now, own, speed)) or s >= arc[-1]
        out[i] = now
    return out


def _time_at(position_m: Array, own: Array, arc: Array) -> Array:
    """When the baseline reaches a distance."""
    return np.interp(position_m, *_increasing(arc, own))


def _increasing(arc: Array, own: Array) -> tuple[Array, Array]:
    """Samples with strictly growing distance: standing still maps to the moment of arrival."""
    keep = np.concatenate([[True], np.diff(arc) > 1e-9])
    return arc[keep], own[keep]


def _mix(low: float, high: float, severity: float) -> float:
    return low + (high - low) * severity


def _sample_lateral_offset(severity: float, rng: np.random.Generator) -> dict[str, float]:
    """0.5 to 3 m to either side."""
    side = rng.choice([-1.0, 1.0])
    return {
        "offset_m": float(side * _mix(0.5, 3.0, severity)), "onset_s": float(rng.uniform(0.5, 3.0)),
        "ramp_s": float(rng.uniform(3.0, 5.0)),
    }  # fmt: skip


def _sample_speed_scale(severity: float, rng: np.random.Generator) -> dict[str, float]:
    """From 1 down to 0.6 or up to 1.4 times the speed."""
    side = rng.choice([-1.0, 1.0])
    return {
        "factor": float(1.0 + side * _mix(0.05, 0.4, severity)), "onset_s": float(rng.uniform(0.5, 3.0)),
        "ramp_s": float(rng.uniform(3.0, 5.0)),
    }  # fmt: skip


def _sample_hard_brake(severity: float, rng: np.random.Generator) -> dict[str, float]:
    """2 to 6 m/s^2, then standing for one to four seconds."""
    return {
        "decel_mps2": float(_mix(2.0, 6.0, severity)),
        "onset_s": float(rng.uniform(1.0, 6.0)),
        "hold_s": float(rng.uniform(1.0, 4.0)),
    }


PERTURBATIONS: dict[str, PerturbationFamily] = {
    f.name: f
    for f in (
        PerturbationFamily(
            name="lateral_offset", parameters=("offset_m", "onset_s", "ramp_s"), sample=_sample_lateral_offset,
            apply=_apply_lateral_offset, horizon=lambda params: 1.0,
        ),
        PerturbationFamily(
            name="speed_scale", parameters=("factor", "onset_s", "ramp_s"), sample=_sample_speed_scale,
            apply=_apply_speed_scale, horizon=lambda params: max(1.0, params["factor"]),
        ),
        PerturbationFamily(
            name="hard_brake", parameters=("decel_mps2", "onset_s", "hold_s"), sample=_sample_hard_brake,
            apply=_apply_hard_brake, horizon=lambda params: 1.0,
        ),
    )
}  # fmt: skip
