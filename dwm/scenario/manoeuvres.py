"""What the ego does in a stretch of its track, in the words of a log's description.

Headings and lateral shifts are judged on the path alone, so that they need no map: a lane change on a bend is not told
from the bend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from dwm.scenes.tracks import SceneTracks

Array = NDArray[np.float64]
RATE_HZ = 10.0
_FIT_SAMPLES = 13  # 1.25 s, as in dwm.scenario.feasibility
MOVING_MPS, STANDING_MPS, STANDING_S = 1.0, 0.3, 1.0
SHORTEST_SAMPLES = 5
TURN_RAD, TURN_S = np.radians(50.0), 8.0
U_TURN_RAD, U_TURN_S = np.radians(150.0), 15.0
BRAKE_MPS2, BRAKE_S = 3.0, 0.3
LANE_SHIFT_M, LANE_S, LANE_PARALLEL_RAD, LANE_SPEED_MPS = (2.5, 5.0), (3.0, 7.0), np.radians(4.0), 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EgoMotion:
    """The ego at RATE_HZ from the first key frame to the last; N samples."""

    times_s: Array  # [N] from the first key frame
    xy_m: Array  # [N, 2]
    yaw_rad: Array  # [N] unwrapped
    speed_mps: Array  # [N]
    acceleration_mps2: Array  # [N] along the path

    @property
    def is_judged(self) -> bool:
        """Whether the stretch is long enough to tell what happens in it."""
        return len(self.times_s) >= SHORTEST_SAMPLES

    def between(self, start_s: float, end_s: float) -> EgoMotion:
        """The samples of a stretch."""
        inside = (self.times_s >= start_s - 1e-6) & (self.times_s <= end_s + 1e-6)
        names = ("times_s", "xy_m", "yaw_rad", "speed_mps", "acceleration_mps2")
        return EgoMotion(**{name: getattr(self, name)[inside] for name in names})


def ego_motion(tracks: SceneTracks) -> EgoMotion:
    """The track at an even rate; speed and acceleration from a cubic fit over 1.25 s, shorter where the log is."""
    first, length = tracks.key_timestamps_us[0], tracks.length_s
    times = np.arange(0.0, length + 1e-6, 1 / RATE_HZ)
    own = (tracks.ego_timestamps_us - first) * 1e-6
    xy = np.stack([np.interp(times, own, tracks.ego_xy_m[:, i]) for i in range(2)], axis=-1)
    yaw = np.interp(times, own, np.unwrap(tracks.ego_yaw_rad))
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(xy, axis=0), axis=1))])
    speed, acceleration = (_derivative(arc, order) for order in (1, 2))
    return EgoMotion(times_s=times, xy_m=xy, yaw_rad=yaw, speed_mps=speed, acceleration_mps2=acceleration)


def manoeuvres(motion: EgoMotion) -> frozenset[str]:
    """Names from MANOEUVRES that happen in the stretch, or "straight"; possibly none, as when it creeps."""
    found = {name for name, (_, test) in MANOEUVRES.items() if test(motion)}
    if "u_turn" in found:
        found -= {"turn_left", "turn_right"}
    if _peak(motion.speed_mps) > MOVING_MPS and not found & {"turn_left", "turn_right", "u_turn", "lane_change"}:
        found.add("straight")
    return frozenset(found)


def _derivative(values: Array, order: int) -> Array:
    samples = min(_FIT_SAMPLES, len(values) - (len(values) + 1) % 2)
    if samples < 5:
        return np.zeros(len(values)) if len(values) < 2 else _finite(values, order)
    return np.asarray(savgol_filter(values, samples, 3, deriv=order, delta=1 / RATE_HZ), np.float64)


def _finite(values: Array, order: int) -> Array:
    for _ in range(order):
        values = np.gradient(values, 1 / RATE_HZ)
    return values


def _peak(values: Array) -> float:
    return float(values.max(initial=0.0))


def _turned(motion: EgoMotion, seconds: float) -> tuple[float, float]:
    """The largest rise and fall of the heading within so many seconds [rad]."""
    rise = fall = 0.0
    for lag in range(1, min(int(seconds * RATE_HZ), len(motion.yaw_rad) - 1) + 1):
        change = motion.yaw_rad[lag:] - motion.yaw_rad[:-lag]
        rise, fall = max(rise, float(change.max())), min(fall, float(change.min()))
    return rise, -fall


def _runs(flags: NDArray[np.bool_], seconds: float) -> list[tuple[int, int]]:
    """Stretches [first, end) in which a flag holds for at least so long."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    return [(a, b) for a, b in edges.reshape(-1, 2).tolist() if b - a >= seconds * RATE_HZ]


def _stands(motion: EgoMotion) -> list[tuple[int, int]]:
    return _runs(motion.speed_mps < STANDING_MPS, STANDING_S)


def _stops(motion: EgoMotion) -> bool:
    return any(_peak(motion.speed_mps[:first]) > MOVING_MPS for first, _ in _stands(motion))


def _starts(motion: EgoMotion) -> bool:
    return any(_peak(motion.speed_mps[end:]) > MOVING_MPS for _, end in _stands(motion))


def _changes_lane(motion: EgoMotion) -> bool:
    """Sideways by a lane's width between two parallel headings, measured across their mean."""
    low, high = (round(s * RATE_HZ) for s in LANE_S)
    for lag in range(low, min(high, len(motion.times_s) - 1) + 1):
        before, after = motion.yaw_rad[:-lag], motion.yaw_rad[lag:]
        mean, way = (before + after) / 2, motion.xy_m[lag:] - motion.xy_m[:-lag]
        sideways = np.abs(way[:, 1] * np.cos(mean) - way[:, 0] * np.sin(mean))
        fast = np.linalg.norm(way, axis=1) > LANE_SPEED_MPS * lag / RATE_HZ
        parallel = np.abs(after - before) < LANE_PARALLEL_RAD
        if (fast & parallel & (sideways >= LANE_SHIFT_M[0]) & (sideways <= LANE_SHIFT_M[1])).any():
            return True
    return False


# Name -> definition and test. "straight" follows from the others.
MANOEUVRES: dict[str, tuple[str, Callable[[EgoMotion], bool]]] = {
    "turn_left": ("heading rises by 50 degrees within 8 s", lambda m: _turned(m, TURN_S)[0] >= TURN_RAD),
    "turn_right": ("heading falls by 50 degrees within 8 s", lambda m: _turned(m, TURN_S)[1] >= TURN_RAD),
    "u_turn": ("heading changes by 150 degrees within 15 s", lambda m: max(_turned(m, U_TURN_S)) >= U_TURN_RAD),
    "lane_change": ("2.5 to 5 m sideways within 3 to 7 s, parallel before and after to 4 degrees", _changes_lane),
    "stop": ("from above 1 m/s to a second below 0.3 m/s", _stops),
    "start": ("from a second below 0.3 m/s to above 1 m/s", _starts),
    "standing": ("never above 0.3 m/s", lambda m: _peak(m.speed_mps) <= STANDING_MPS),
    "hard_brake": (
        "decelerates by 3 m/s² for 0.3 s", lambda m: bool(_runs(m.acceleration_mps2 <= -BRAKE_MPS2, BRAKE_S)),
    ),
}  # fmt: skip
STRAIGHT = "above 1 m/s at some time, and neither a turn nor a lane change"
