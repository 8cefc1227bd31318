"""Whether an ego path can be driven, stays on the road and touches no one. Every rejection tells the number and the limit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.signal import savgol_filter

from dwm.geometry import box_corners, yaw_from_rotation
from dwm.scenario.types import AgentBoxes
from dwm.scenes.types import MAP_LAYERS, SceneMap
from dwm.traffic.simulate import EGO_SIZE_WLH_M, REAR_AXLE_TO_CENTRE_M

Array = NDArray[np.float64]
SMOOTHING_S = 1.25
SLOWEST_TURN_MPS = 1.5  # below, curvature is noise divided by almost nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a passenger car can do, and how far off the road it may get."""

    acceleration_mps2: float = 3.0
    deceleration_mps2: float = 7.0
    lateral_acceleration_mps2: float = 4.0
    jerk_mps3: float = 12.0
    curvature_per_m: float = 0.2
    steering_rate_radps: float = 0.9
    wheelbase_m: float = 2.84
    off_road_tolerance_m: float = 0.5
    off_road_share: float = 0.05


LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A broken limit: a slug and, in words, the number and the limit."""

    reason: str
    detail: str


def check_kinematics(poses: Array, fps: float, limits: Limits = LIMITS, first: int = 0) -> Violation | None:
    """The worst broken limit of poses [T, 4, 4] at frames >= ``first``, or None.

    Derivatives are those of a Savitzky-Golay fit (cubic over 1.25 s), so that the noise of logged poses does not count.
    Raises nothing: a path too short for the fit is accepted.
    """
    window = max(round(SMOOTHING_S * fps) // 2 * 2 + 1, 5)
    if len(poses) < window or first >= len(poses):
        return None
    names = ("acceleration", "deceleration", "lateral acceleration", "jerk", "curvature", "steering rate")
    units = ("m/s^2", "m/s^2", "m/s^2", "m/s^3", "1/m", "rad/s")
    bounds = (
        limits.acceleration_mps2, limits.deceleration_mps2, limits.lateral_acceleration_mps2, limits.jerk_mps3,
        limits.curvature_per_m, limits.steering_rate_radps,
    )  # fmt: skip
    values = [v[first:] for v in _motion(poses, fps, window, limits.wheelbase_m)]
    worst = [(float(v.max()) / bound, i) for i, (v, bound) in enumerate(zip(values, bounds, strict=True))]
    ratio, i = max(worst)
    if ratio <= 1.0:
        return None
    frame = int(np.argmax(values[i])) + first
    return Violation(
        reason="kinematics",
        detail=f"{names[i]} {values[i].max():.2f} {units[i]} exceeds {bounds[i]:g} {units[i]} at {frame / fps:.2f} s",
    )


def _motion(poses: Array, fps: float, window: int, wheelbase_m: float) -> tuple[Array, ...]:
    """Acceleration, deceleration, lateral acceleration, jerk, curvature and steering rate, each [T] and >= 0."""
    xy, yaw = poses[:, :2, 3] - poses[0, :2, 3], np.unwrap(yaw_from_rotation(poses))

    def derive(x: Array, order: int) -> Array:
        return np.asarray(savgol_filter(x, window, 3, deriv=order, delta=1 / fps, axis=0))

    heading = np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    speed = (derive(xy, 1) * heading).sum(axis=-1)
    along = (derive(xy, 2) * heading).sum(axis=-1)
    yaw_rate = derive(yaw, 1)
    turning = np.abs(speed) > SLOWEST_TURN_MPS
    curvature = np.where(turning, yaw_rate / np.where(turning, speed, 1.0), 0.0)
    steering_rate = np.where(turning, np.gradient(np.arctan(wheelbase_m * curvature)) * fps, 0.0)
    # At the edge between turning and not, the difference is that of the mask.
    steady = turning & np.roll(turning, 1) & np.roll(turning, -1)
    return (
        np.maximum(along, 0.0), np.maximum(-along, 0.0), np.abs(speed * yaw_rate), np.hypot(*derive(xy, 3).T),
        np.abs(curvature), np.where(steady, np.abs(steering_rate), 0.0),
    )  # fmt: skip


def ego_boxes(poses: Array) -> tuple[Array, Array]:
    """Centres [T, 2] and headings [T] of the ego's box."""
    yaw = yaw_from_rotation(poses)
    return poses[:, :2, 3] + REAR_AXLE_TO_CENTRE_M * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1), yaw


def off_road(poses: Array, scene_map: SceneMap, tolerance_m: float) -> NDArray[np.bool_] | None:
    """Frames [T] in which a corner of the ego is farther than the tolerance from drivable area; None: no such area near."""
    centre, yaw = ego_boxes(poses)
    center3 = np.concatenate([centre, np.zeros((len(centre), 1))], axis=-1)
    corners = box_corners(center3, np.tile(EGO_SIZE_WLH_M, (len(poses), 1)), yaw)[:, [0, 1, 4, 5], :2]
    mpp, layer = scene_map.metres_per_pixel, scene_map.layers[MAP_LAYERS.index("drivable")]
    pixels = np.floor((corners - scene_map.origin_xy_m) / mpp).astype(np.int64)
    pad = int(np.ceil(10.0 / mpp))
    # Pixels outside the raster are not drivable; the crop keeps the distance transform small.
    low, high = pixels.min(axis=(0, 1)) - pad, pixels.max(axis=(0, 1)) + pad + 1
    crop = np.zeros((high[1] - low[1], high[0] - low[0]), dtype=bool)
    r0, r1 = max(low[1], 0), min(high[1], layer.shape[0])
    c0, c1 = max(low[0], 0), min(high[0], layer.shape[1])
    if r1 > r0 and c1 > c0:
        crop[r0 - low[1] : r1 - low[1], c0 - low[0] : c1 - low[0]] = layer[r0:r1, c0:c1] > 0
    if not crop.any():
        return None
    distance = np.asarray(distance_transform_edt(~crop)) * mpp
    local = pixels - low
    return (distance[local[..., 1], local[..., 0]] > tolerance_m).any(axis=1)


def check_drivable(
    poses: Array, scene_map: SceneMap, limits: Limits = LIMITS, baseline: Array | None = None
) -> tuple[Violation | None, tuple[str, ...]]:
    """Whether the ego leaves the drivable area in too many frames, more than the baseline does; and notes."""
    if len(poses) == 0:
        return None, ()
    off = off_road(poses, scene_map, limits.off_road_tolerance_m)
    if off is None:
        return None, ("the map has no drivable area near the ego path: not checked",)
    base = off_road(baseline, scene_map, limits.off_road_tolerance_m) if baseline is not None else None
    allowed = limits.off_road_share + (float(base.mean()) if base is not None else 0.0)
    if off.mean() <= allowed:
        return None, ()
    return Violation(
        reason="off_road",
        detail=f"{off.mean():.1%} of frames leave the drivable area by more than {limits.off_road_tolerance_m:g} m, "
        f"exceeds {allowed:.1%}",
    ), ()


def overlaps(
    poses: Array, centers_m: Array, yaws_rad: Array, sizes_wlh_m: Array, present: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Whether the ego overlaps each agent [A, T], by the separating axes of two rectangles in the plane.

    Agents as in ``AgentBoxes``: centres [A, T, >=2], headings [A, T], sizes [A, 3].
    """
    centre, yaw = ego_boxes(poses)
    offset = np.nan_to_num(centers_m[..., :2], nan=1e9) - centre
    width, length = sizes_wlh_m[:, 0] / 2, sizes_wlh_m[:, 1] / 2
    ego_w, ego_l = EGO_SIZE_WLH_M[0] / 2, EGO_SIZE_WLH_M[1] / 2
    reach = np.hypot(width, length) + np.hypot(ego_w, ego_l)
    hit = present & (np.abs(offset).max(axis=-1) < reach[:, None])
    a, t = np.nonzero(hit)
    delta, own, other = offset[a, t], yaw[t], yaws_rad[a, t]
    separated = np.zeros(len(a), dtype=bool)
    for angle in (own, own + np.pi / 2, other, other + np.pi / 2):
        span = ego_l * np.abs(np.cos(own - angle)) + ego_w * np.abs(np.sin(own - angle))
        span += length[a] * np.abs(np.cos(other - angle)) + width[a] * np.abs(np.sin(other - angle))
        separated |= np.abs(delta[:, 0] * np.cos(angle) + delta[:, 1] * np.sin(angle)) >= span
    hit[a[separated], t[separated]] = False
    return hit


def check_collision(
    poses: Array, agents: AgentBoxes, fps: float, ignored: NDArray[np.bool_] | None = None, first: int = 0
) -> Violation | None:
    """The first overlap of the ego with an agent at frames >= ``first``; ``ignored`` [A, T] do not count."""
    hit = overlaps(poses, agents.centers_m, agents.yaws_rad, agents.sizes_wlh_m, agents.present)
    hit[:, :first] = False
    if ignored is not None:
        hit &= ~ignored
    if not hit.any():
        return None
    frame = int(np.argmax(hit.any(axis=0)))
    agent = int(np.argmax(hit[:, frame]))
    gap = float(np.linalg.norm(agents.centers_m[agent, frame, :2] - ego_boxes(poses)[0][frame]))
    return Violation(
        reason="collision",
        detail=f"the ego overlaps {agents.categories[agent]} {agents.instance_tokens[agent]} at {frame / fps:.2f} s "
        f"(centres {gap:.2f} m apart; 0 overlapping frames are allowed, {int(hit[agent].sum())} found)",
    )


def check_all(
    poses: Array,
    agents: AgentBoxes,
    scene_map: SceneMap,
    fps: float,
    *,
    baseline: Array,
    first: int = 0,
    limits: Limits = LIMITS,
    ignored: NDArray[np.bool_] | None = None,
) -> tuple[Violation | None, tuple[str, ...]]:
    """All checks on frames >= ``first``: the first violation, or None, and notes on what could not be checked."""
    road, notes = check_drivable(poses[first:], scene_map, limits, baseline[first:])
    found = (check_kinematics(poses, fps, limits, first), road, check_collision(poses, agents, fps, ignored, first))
    return next((v for v in found if v is not None), None), notes
