"""Whether an ego path can be driven, stays on the road and touches no one. Every rejection tells the number and the limit."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from dwm.geometry import box_corners, rotation_from_yaw, yaw_from_rotation
from dwm.scenario.types import AgentBoxes
from dwm.scenes.types import MAP_LAYERS, SceneMap
from dwm.traffic.simulate import EGO_SIZE_WLH_M, REAR_AXLE_TO_CENTRE_M

Array = NDArray[np.float64]
SMOOTHING_S = 1.25
SLOWEST_TURN_MPS = 1.5  # below, curvature is noise divided by almost nothing
SMOOTH_OVER_S, FADE_S = 2.0, 0.5
NEAR_ROAD_M, SAME_PLACE_M = 10.0, 5.0


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
    off_road_tolerance_m: float = 0.3
    clearance_m: float = 0.1  # kept between the ego's box and every other


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


class RoadDistance:
    """How far points are from the drivable area of a map."""

    def __init__(self, scene_map: SceneMap) -> None:
        layer = scene_map.layers[MAP_LAYERS.index("drivable")] > 0
        self._origin, self._mpp = scene_map.origin_xy_m, scene_map.metres_per_pixel
        # From pixel to pixel; the road's edge is half a pixel nearer.
        apart = cv2.distanceTransform((~layer).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) if layer.any() else None
        self._metres = None if apart is None else np.maximum(apart - 0.5, 0.0) * self._mpp

    def of(self, xy_m: Array) -> Array:
        """Distances [...] of points [..., 2] in metres, 0 on the road; NaN beyond the raster and where it has no road at all."""
        if self._metres is None:
            return np.full(xy_m.shape[:-1], np.nan)
        col, row = np.moveaxis(np.floor((xy_m - self._origin) / self._mpp).astype(np.int64), -1, 0)
        inside = (row >= 0) & (row < self._metres.shape[0]) & (col >= 0) & (col < self._metres.shape[1])
        return np.where(inside, self._metres[np.where(inside, row, 0), np.where(inside, col, 0)], np.nan)

    def of_ego(self, poses: Array) -> Array:
        """How far the ego's outermost corner is off the road, [T] for poses [T, 4, 4]; NaN where the map does not reach."""
        centre, yaw = ego_boxes(poses)
        center3 = np.concatenate([centre, np.zeros((len(centre), 1))], axis=-1)
        corners = box_corners(center3, np.tile(EGO_SIZE_WLH_M, (len(poses), 1)), yaw)[:, [0, 1, 4, 5], :2]
        return self.of(corners).max(axis=1)


def check_drivable(
    poses: Array, road: RoadDistance, fps: float, limits: Limits = LIMITS, *, first: int = 0, logged: Array | None = None
) -> tuple[Violation | None, tuple[str, ...]]:
    """Whether the ego leaves the drivable area at frames >= ``first``, and notes.

    Where the ``logged`` ego [N, 4, 4] itself was off the mapped road, so may another path near that place.
    """
    if first >= len(poses):
        return None, ()
    off = road.of_ego(poses[first:])
    known = np.isfinite(off)
    if not known.any() or off[known].min() > NEAR_ROAD_M:
        return None, ("the map has no drivable area near the ego path: not checked",)
    notes = (
        ()
        if known.all()
        else (f"the ego leaves the map that was read at {(int(np.argmin(known)) + first) / fps:.1f} s: not checked there",)
    )
    off = np.where(known, off, 0.0)
    allowed = limits.off_road_tolerance_m + _off_in_the_log(poses[first:], road, logged)
    excess = off - allowed
    if excess.max() <= 0:
        return None, notes
    frame = int(np.argmax(excess))
    return Violation(
        reason="off_road",
        detail=f"a corner of the ego is {off[frame]:.2f} m off the drivable area at {(frame + first) / fps:.2f} s, "
        f"exceeds {np.broadcast_to(allowed, off.shape)[frame]:.2f} m",
    ), notes


def _off_in_the_log(poses: Array, road: RoadDistance, logged: Array | None) -> Array | float:
    """How far off the road the log was within 5 m of each pose [T]."""
    if logged is None or len(logged) == 0:
        return 0.0
    off = np.nan_to_num(road.of_ego(logged))
    if off.max() <= 0:
        return 0.0
    apart = np.linalg.norm(poses[:, None, :2, 3] - logged[None, :, :2, 3], axis=-1)
    return np.where(apart < SAME_PLACE_M, off, 0.0).max(axis=1)


def overlaps(
    poses: Array, centers_m: Array, yaws_rad: Array, sizes_wlh_m: Array, present: NDArray[np.bool_], clearance_m: float = 0.0
) -> NDArray[np.bool_]:
    """Whether the ego, its box grown by a clearance, overlaps each agent [A, T]: separating axes of two rectangles in the plane.

    Agents as in ``AgentBoxes``: centres [A, T, >=2], headings [A, T], sizes [A, 3].
    """
    centre, yaw = ego_boxes(poses)
    offset = np.nan_to_num(centers_m[..., :2], nan=1e9) - centre
    width, length = sizes_wlh_m[:, 0] / 2, sizes_wlh_m[:, 1] / 2
    ego_w, ego_l = EGO_SIZE_WLH_M[0] / 2 + clearance_m, EGO_SIZE_WLH_M[1] / 2 + clearance_m
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
    poses: Array, agents: AgentBoxes, fps: float, ignored: NDArray[np.bool_] | None = None, limits: Limits = LIMITS
) -> Violation | None:
    """The first moment when the ego comes closer to an agent than the clearance; ``ignored`` [A, T] do not count."""
    hit = overlaps(poses, agents.centers_m, agents.yaws_rad, agents.sizes_wlh_m, agents.present, limits.clearance_m)
    if ignored is not None:
        hit &= ~ignored
    if not hit.any():
        return None
    frame = int(np.argmax(hit.any(axis=0)))
    agent = int(np.argmax(hit[:, frame]))
    gap = float(np.linalg.norm(agents.centers_m[agent, frame, :2] - ego_boxes(poses)[0][frame]))
    return Violation(
        reason="collision",
        detail=f"the ego comes within {limits.clearance_m:g} m of {agents.categories[agent]} {agents.instance_tokens[agent]} at "
        f"{frame / fps:.2f} s (centres {gap:.2f} m apart; 0 such frames are allowed, {int(hit[agent].sum())} found)",
    )


def check_all(
    poses: Array, agents: AgentBoxes, road: RoadDistance, fps: float, *, first: int = 0, limits: Limits = LIMITS,
    logged: Array | None = None, ignored: NDArray[np.bool_] | None = None,
) -> tuple[Violation | None, tuple[str, ...]]:  # fmt: skip
    """The first violation, or None, and notes on what could not be checked.

    Frames before ``first`` are the log's own driving: only who is near is judged there, ``ignored`` [A, T] aside.
    """
    off, notes = check_drivable(poses, road, fps, limits, first=first, logged=logged)
    found = (check_kinematics(poses, fps, limits, first), off, check_collision(poses, agents, fps, ignored, limits))
    return next((v for v in found if v is not None), None), notes


def smoothed(poses: Array, fps: float, first: int = 0) -> tuple[Array, float]:
    """Poses [T, 4, 4] without jolts from frame ``first`` on, and by how much they moved at most [m].

    A cubic is fitted to every two seconds of position and heading (Savitzky-Golay); what was before ``first`` stays, and
    the smoothing fades in over half a second.
    """
    window = round(SMOOTH_OVER_S * fps) // 2 * 2 + 1
    if len(poses) < window:
        return poses, 0.0
    yaw = np.unwrap(yaw_from_rotation(poses))
    columns = np.column_stack([poses[:, :2, 3], yaw])
    fitted = np.asarray(savgol_filter(columns - columns[0], window, 3, axis=0)) + columns[0]
    share = np.clip((np.arange(len(poses)) - first) / (FADE_S * fps), 0.0, 1.0)
    change = (share**2 * (3 - 2 * share))[:, None] * (fitted - columns)
    out = poses.copy()
    out[:, :2, 3] += change[:, :2]
    out[:, :3, :3] = rotation_from_yaw(change[:, 2]) @ poses[:, :3, :3]
    return out, float(np.linalg.norm(change[:, :2], axis=1).max())
