"""Is simulated traffic like logged traffic? Distributions of speed, gap, density and lateral acceleration, and how far apart they are.

Samples are taken at key frames (2 Hz). A gap is measured from bumper to bumper, straight ahead, to the first vehicle in the
corridor of a moving vehicle, as far as GAP_REACH_M; density counts moving agents around the ego.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp, wasserstein_distance

from dwm.geometry import wrap_angle
from dwm.scenario.feasibility import ego_boxes
from dwm.scenario.types import AgentBoxes, LabelSource, Scenario
from dwm.traffic.simulate import EGO_SIZE_WLH_M

Array = NDArray[np.float64]
Samples = dict[str, Array]  # quantity -> samples of one scene
UNITS = {
    "vehicle speed": "m/s", "cycle speed": "m/s", "pedestrian speed": "m/s", "ego speed": "m/s", "gap to the leader": "m",
    "moving vehicles within 50 m": "", "moving pedestrians within 50 m": "", "lateral acceleration": "m/s^2",
}  # fmt: skip
MOVING_MPS = {"vehicle": 0.5, "cycle": 0.5, "pedestrian": 0.3}
NEAR_M, GAP_REACH_M = 50.0, 50.0
CORRIDOR_M = 0.3  # on either side of touching
CYCLES = ("vehicle.bicycle", "vehicle.motorcycle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far the samples of one quantity are apart in two parts; ``interval`` is the 95 % bootstrap interval over scenes."""

    quantity: str
    count: tuple[int, int]
    mean: tuple[float, float]
    wasserstein: float  # in the unit of the quantity
    interval: tuple[float, float]
    ks: float  # largest difference of the distribution functions, 0 to 1


def group_of(category: str) -> str | None:
    """vehicle, cycle or pedestrian; None for what does not move by itself."""
    if category in CYCLES:
        return "cycle"
    return {"vehicle": "vehicle", "human": "pedestrian"}.get(category.split(".")[0])


def traffic_samples(scenario: Scenario, simulated: bool, first: int = 0, last: int | None = None) -> Samples:
    """Samples of the simulated or the logged part of a scenario, at its key frames among frames [first, last).

    Boxes count as logged or simulated by their label source; velocities that are unknown do not count.
    """
    end = scenario.log_end_index
    part = range(end, len(scenario.timestamps_us)) if simulated else range(0, end)
    last = len(scenario.timestamps_us) if last is None else last
    frames = np.array([t for t in part if scenario.is_key_frame[t] and first <= t < last], dtype=np.int64)
    agents = scenario.agents
    if len(frames) == 0:
        return {name: np.zeros(0) for name in UNITS}
    own = (LabelSource.SIMULATED,) if simulated else (LabelSource.LOG, LabelSource.INTERPOLATED)
    there = agents.present[:, frames] & np.isin(agents.label_sources[:, frames], own)
    speed = np.linalg.norm(agents.velocities_mps[:, frames], axis=-1)
    groups = np.array([group_of(category) or "" for category in agents.categories], dtype=object)
    limits = np.array([MOVING_MPS.get(group, np.inf) for group in groups])
    moving = there & (np.nan_to_num(speed) > limits[:, None])
    centre, yaw = ego_boxes(scenario.ego_to_global)
    away = np.linalg.norm(agents.centers_m[:, frames, :2] - centre[frames], axis=-1)
    wheels = np.isin(groups, ("vehicle", "cycle"))
    ego_speed = np.linalg.norm(np.gradient(centre, axis=0), axis=1)[frames] * scenario.fps if len(centre) > 1 else np.zeros(1)
    return {
        **{f"{group} speed": speed[moving & (groups == group)[:, None]] for group in MOVING_MPS},
        "ego speed": ego_speed,
        "gap to the leader": np.concatenate([_gaps(agents, there, moving, wheels, t, k, centre, yaw) for k, t in enumerate(frames)]),
        "moving vehicles within 50 m": (moving & wheels[:, None] & (away < NEAR_M)).sum(axis=0).astype(np.float64),
        "moving pedestrians within 50 m": (moving & (groups == "pedestrian")[:, None] & (away < NEAR_M)).sum(axis=0) * 1.0,
        "lateral acceleration": _lateral(agents, frames, speed, moving & wheels[:, None], scenario.fps),
    }  # fmt: skip


def _gaps(
    agents: AgentBoxes, there: NDArray[np.bool_], moving: NDArray[np.bool_], wheels: NDArray[np.bool_], frame: int, column: int,
    ego_xy: Array, ego_yaw: Array,
) -> Array:  # fmt: skip
    """Gaps of all moving vehicles of one frame, the ego among the leaders."""
    rows = np.flatnonzero(there[:, column] & wheels)
    xy = np.concatenate([ego_xy[frame : frame + 1], agents.centers_m[rows, frame, :2]])
    yaw = np.concatenate([ego_yaw[frame : frame + 1], agents.yaws_rad[rows, frame]])
    size = np.concatenate([[EGO_SIZE_WLH_M[:2]], agents.sizes_wlh_m[rows, :2]])
    follows = np.flatnonzero(np.concatenate([[False], moving[rows, column]]))
    gaps = bumper_gaps(xy, yaw, size)[follows]
    return gaps[np.isfinite(gaps)]


def bumper_gaps(xy_m: Array, yaw_rad: Array, size_wl_m: Array) -> Array:
    """Gap [N] of each box to the first one straight ahead that points about the same way, inf without one in reach."""
    offset = xy_m[None] - xy_m[:, None]
    cos, sin = np.cos(yaw_rad)[:, None], np.sin(yaw_rad)[:, None]
    along, aside = offset[..., 0] * cos + offset[..., 1] * sin, -offset[..., 0] * sin + offset[..., 1] * cos
    width, length = size_wl_m[:, 0], size_wl_m[:, 1]
    same_way = np.abs(wrap_angle(yaw_rad[None] - yaw_rad[:, None])) < np.pi / 4
    ahead = same_way & (along > 0) & (np.abs(aside) < (width[:, None] + width[None]) / 2 + CORRIDOR_M)
    gap = along - (length[:, None] + length[None]) / 2
    gap = np.where(ahead & (gap < GAP_REACH_M), np.maximum(gap, 0.0), np.inf)
    np.fill_diagonal(gap, np.inf)
    return gap.min(axis=1, initial=np.inf)


def _lateral(agents: AgentBoxes, frames: NDArray[np.int64], speed: Array, moving: NDArray[np.bool_], fps: float) -> Array:
    """Speed times turn rate between adjacent key frames, absolute."""
    if len(frames) < 2:
        return np.zeros(0)
    span = np.diff(frames) / fps
    rate = np.abs(wrap_angle(np.diff(agents.yaws_rad[:, frames], axis=1))) / span
    both = moving[:, 1:] & moving[:, :-1]
    return (rate * (speed[:, 1:] + speed[:, :-1]) / 2)[both]


def compare(first: Sequence[Samples], second: Sequence[Samples], draws: int = 200, seed: int = 0) -> list[Distance]:
    """Distances of two parts of the same scenes, quantity by quantity; quantities that one part lacks are left out."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(first), size=(draws, len(first)))
    found = []
    for quantity in UNITS:
        a, b = [s[quantity] for s in first], [s[quantity] for s in second]
        if sum(map(len, a)) == 0 or sum(map(len, b)) == 0:
            continue
        one, two = np.concatenate(a), np.concatenate(b)
        drawn = [_wasserstein([a[i] for i in pick], [b[i] for i in pick]) for pick in picks]
        low, high = np.nanpercentile(drawn, (2.5, 97.5))
        found.append(
            Distance(
                quantity=quantity,
                count=(len(one), len(two)),
                mean=(float(one.mean()), float(two.mean())),
                wasserstein=float(wasserstein_distance(one, two)),
                interval=(float(low), float(high)),
                ks=float(np.asarray(ks_2samp(one, two))[0]),
            )
        )
    return found


def _wasserstein(first: list[Array], second: list[Array]) -> float:
    one, two = np.concatenate(first), np.concatenate(second)
    return float(wasserstein_distance(one, two)) if len(one) and len(two) else float("nan")
