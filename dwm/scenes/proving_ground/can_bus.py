"""The CAN-bus expansion of one scene, derived from the ego track.

Message names, keys, units and rates follow the devkit's ``can_bus/README``; values the simulation does not know
(battery, solar sensors, torque) are constants. zoesensors come at 100 Hz instead of 794 Hz to keep the files small.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import quaternion_from_yaw, yaw_from_rotation
from dwm.scenes.types import EgoTrack

Array = NDArray[np.float64]
WHEELBASE_M, STEERING_RATIO, WHEEL_RADIUS_M = 2.588, 16.2, 0.31
GRAVITY_MPS2 = 9.81
STEP_S = 0.05  # of the central differences
ROUTE_MARGIN_M = 50.0
# The devkit raises for these scene numbers, whatever the dataroot holds.
BLACKLISTED_SCENES = frozenset((*range(161, 169), *range(170, 177), *range(309, 315)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """The ego's motion at N times, in the ego frame."""

    timestamps_us: NDArray[np.int64]
    position_m: Array  # [N, 3] global
    yaw_rad: Array
    speed_mps: Array
    acceleration_mps2: Array  # [N, 2] forward, left
    yaw_rate_radps: Array

    @property
    def wheel_angle_rad(self) -> Array:
        """Steering wheel angle; positive values turn right, as the expansion defines it."""
        return -STEERING_RATIO * np.arctan2(WHEELBASE_M * self.yaw_rate_radps, np.maximum(self.speed_mps, 0.5))

    @property
    def wheel_rpm(self) -> Array:
        return self.speed_mps / (2 * np.pi * WHEEL_RADIUS_M) * 60


def motion(ego: EgoTrack, start_us: int, end_us: int, rate_hz: float) -> Motion:
    """Motion by central differences at a fixed rate over [start, end]."""
    count = int((end_us - start_us) / 1e6 * rate_hz) + 1
    times = start_us + np.round(np.arange(count) * 1e6 / rate_hz).astype(np.int64)
    step = round(STEP_S * 1e6)
    before, now, after = (ego.at(times + d) for d in (-step, 0, step))
    yaw = yaw_from_rotation(now)
    rate = _wrapped(yaw_from_rotation(after) - yaw_from_rotation(before)) / (2 * STEP_S)
    velocity = (after[:, :2, 3] - before[:, :2, 3]) / (2 * STEP_S)
    change = (after[:, :2, 3] - 2 * now[:, :2, 3] + before[:, :2, 3]) / STEP_S**2
    forward = np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
    left = np.stack([-np.sin(yaw), np.cos(yaw)], axis=1)
    acceleration = np.stack([(change * forward).sum(1), (change * left).sum(1)], axis=1)
    return Motion(
        timestamps_us=times, position_m=now[:, :3, 3], yaw_rad=yaw, speed_mps=np.abs((velocity * forward).sum(1)),
        acceleration_mps2=acceleration, yaw_rate_radps=rate,
    )  # fmt: skip


def write_can_bus(folder: Path, scene_name: str, ego: EgoTrack, start_us: int, end_us: int, route_xy_m: Array) -> None:
    """All seven message files and the meta file of a scene. ``route_xy_m`` [N, 2] is the planned path."""
    folder.mkdir(parents=True, exist_ok=True)
    fast, medium, slow = (motion(ego, start_us, end_us, rate) for rate in (100.0, 50.0, 2.0))
    messages = {
        "pose": _pose(medium), "ms_imu": _imu(fast), "steeranglefeedback": _steering(fast),
        "vehicle_monitor": _monitor(slow), "zoesensors": _sensors(fast), "zoe_veh_info": _vehicle_info(fast),
    }  # fmt: skip
    for name, rows in messages.items():
        (folder / f"{scene_name}_{name}.json").write_text(json.dumps(rows))
    (folder / f"{scene_name}_route.json").write_text(json.dumps(np.round(route_xy_m, 3).tolist()))
    meta = {name: _statistics(rows) for name, rows in messages.items()}
    (folder / f"{scene_name}_meta.json").write_text(json.dumps(meta))


def _pose(m: Motion) -> list[dict[str, Any]]:
    return [
        {"utime": int(t), "pos": p.tolist(), "orientation": q.tolist(), "vel": [float(v), 0.0, 0.0],
         "accel": [float(a[0]), float(a[1]), GRAVITY_MPS2], "rotation_rate": [0.0, 0.0, float(r)]}
        for t, p, q, v, a, r in zip(
            m.timestamps_us, m.position_m, quaternion_from_yaw(m.yaw_rad), m.speed_mps, m.acceleration_mps2, m.yaw_rate_radps,
            strict=True,
        )
    ]  # fmt: skip


def _imu(m: Motion) -> list[dict[str, Any]]:
    return [
        {"utime": int(t), "linear_accel": [float(a[0]), float(a[1]), GRAVITY_MPS2], "q": q.tolist(),
         "rotation_rate": [0.0, 0.0, float(r)]}
        for t, a, q, r in zip(
            m.timestamps_us, m.acceleration_mps2, quaternion_from_yaw(m.yaw_rad), m.yaw_rate_radps, strict=True
        )
    ]  # fmt: skip


def _steering(m: Motion) -> list[dict[str, Any]]:
    return [{"utime": int(t), "value": float(v)} for t, v in zip(m.timestamps_us, m.wheel_angle_rad, strict=True)]


def _monitor(m: Motion) -> list[dict[str, Any]]:
    degrees = np.rad2deg(m.wheel_angle_rad)
    turn = np.gradient(degrees, 0.5) if len(degrees) > 1 else np.zeros_like(degrees)
    return [
        {"utime": int(t), "available_distance": 180, "battery_level": 80, "brake": int(np.clip(-10 * a, 0, 126)),
         "brake_switch": 2 if a < -0.3 else 1, "gear_position": 7, "left_signal": int(r > 0.1), "right_signal": int(r < -0.1),
         "rear_left_rpm": float(w), "rear_right_rpm": float(w), "steering": round(float(d), 1), "steering_speed": float(s),
         "throttle": int(np.clip(200 * a, 0, 1000)), "vehicle_speed": round(3.6 * float(v), 2),
         "yaw_rate": round(float(np.rad2deg(r)), 1)}
        for t, a, r, w, d, s, v in zip(
            m.timestamps_us, m.acceleration_mps2[:, 0], m.yaw_rate_radps, m.wheel_rpm, degrees, turn, m.speed_mps, strict=True
        )
    ]  # fmt: skip


def _sensors(m: Motion) -> list[dict[str, Any]]:
    return [
        {"utime": int(t), "brake_sensor": float(np.clip(0.375 - 0.012 * a, 0.375, 0.411)),
         "steering_sensor": round(float(np.rad2deg(s)), 1), "throttle_sensor": int(np.clip(200 * a, 0, 1000))}
        for t, a, s in zip(m.timestamps_us, m.acceleration_mps2[:, 0], m.wheel_angle_rad, strict=True)
    ]  # fmt: skip


def _vehicle_info(m: Motion) -> list[dict[str, Any]]:
    steering_deg = np.rad2deg(m.wheel_angle_rad)
    odometer_cm = np.concatenate([[0.0], np.cumsum(m.speed_mps[:-1] * np.diff(m.timestamps_us) * 1e-4)])
    return [
        {"utime": int(t), "FL_wheel_speed": float(w), "FR_wheel_speed": float(w), "RL_wheel_speed": float(w),
         "RR_wheel_speed": float(w), "left_solar": 50, "right_solar": 50, "longitudinal_accel": float(a[0]),
         "transversal_accel": float(a[1] / GRAVITY_MPS2), "meanEffTorque": 0.0, "requestedTorqueAfterProc": 0.0,
         "odom": int(o % 125), "odom_speed": 3.6 * float(v), "pedal_cc": int(np.clip(200 * a[0], 0, 1000)), "regen": 0,
         "steer_corrected": float(s), "steer_offset_can": -12.6, "steer_raw": float(s - 12.6)}
        for t, w, a, o, v, s in zip(
            m.timestamps_us, m.wheel_rpm, m.acceleration_mps2, odometer_cm, m.speed_mps, steering_deg, strict=True
        )
    ]  # fmt: skip


def _statistics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    times = np.array([row["utime"] for row in rows])
    span = float(times[-1] - times[0]) / 1e6
    keys = [key for key in rows[0] if key != "utime"]
    stats = {key: _spread(np.array([row[key] for row in rows], float)) for key in keys}
    return {"message_count": len(rows), "message_freq": len(rows) / span if span else 0.0, "timespan": span, "var_stats": stats}


def _spread(values: Array) -> dict[str, Any]:
    raw = {"max": values.max(0), "mean": values.mean(0), "min": values.min(0), "std": values.std(0)}
    return {name: np.asarray(v).tolist() for name, v in raw.items()}


def _wrapped(angle_rad: Array) -> Array:
    return (angle_rad + np.pi) % (2 * np.pi) - np.pi
