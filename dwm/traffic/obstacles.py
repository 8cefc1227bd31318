"""Who is in whose way: road users as discs, found in the corridor along each vehicle's path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import wrap_angle

Array = NDArray[np.float64]
WINDOW_M = 60
NEAREST_POINT_M = 6.0  # discs farther from every point of a path are not on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Discs:
    """Road users as discs, [N] each. Three discs along the longer side cover a box and end flush with it."""

    xy_m: Array  # [N, 2]
    radius_m: Array
    yaw_rad: Array
    speed_mps: Array
    margin_m: Array  # lateral distance kept beside touching
    owner: NDArray[np.int64]  # vehicle index, or -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Blockers:
    """Pairs of a vehicle and a disc in its corridor, [P] each."""

    vehicle: NDArray[np.int64]
    gap_m: Array  # bumper to bumper
    along_m: Array  # distance of the disc's near edge from the vehicle's centre, along its path
    speed_mps: Array  # of the disc along the path, not negative
    owner: NDArray[np.int64]  # vehicle index of the disc, or -1
    turn_rad: Array  # between the heading of the disc and that of the path, 0 to pi
    disc: NDArray[np.int64]  # which disc

    def keep(self, which: NDArray[np.bool_]) -> Blockers:
        """The pairs of a mask [P]."""
        return Blockers(
            vehicle=self.vehicle[which], gap_m=self.gap_m[which], along_m=self.along_m[which], speed_mps=self.speed_mps[which],
            owner=self.owner[which], turn_rad=self.turn_rad[which], disc=self.disc[which],
        )  # fmt: skip


def box_discs(xy_m: Array, yaw_rad: Array, size_wlh_m: Array, speed_mps: Array, margin_m: float, owner: NDArray) -> Discs:
    """Three discs for each of N boxes, [3 N]."""
    width, length = size_wlh_m[:, 0], size_wlh_m[:, 1]
    reach = np.abs(length - width) / 2
    angle = np.where(length >= width, yaw_rad, yaw_rad + np.pi / 2)
    axis = np.empty_like(xy_m)
    axis[:, 0], axis[:, 1] = np.cos(angle) * reach, np.sin(angle) * reach
    return Discs(
        xy_m=np.concatenate([xy_m - axis, xy_m, xy_m + axis]), radius_m=_thrice(np.minimum(width, length) / 2),
        yaw_rad=_thrice(yaw_rad), speed_mps=_thrice(speed_mps), margin_m=np.full(3 * len(xy_m), margin_m),
        owner=_thrice(owner.astype(np.int64)),
    )  # fmt: skip


def _thrice(values: NDArray) -> NDArray:
    return np.concatenate([values, values, values])


def concatenate(parts: list[Discs]) -> Discs:
    """All discs of the parts."""
    names = ("xy_m", "radius_m", "yaw_rad", "speed_mps", "margin_m", "owner")
    return Discs(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


def find_blockers(
    paths: Array, s_m: Array, lateral_m: Array, width_m: Array, length_m: Array, discs: Discs,
    rows: NDArray[np.int64] | None = None, toward_m: Array | None = None,
) -> Blockers:  # fmt: skip
    """Discs ahead of each vehicle within its corridor.

    ``paths`` [A, P, >=3] are x, y, yaw at one point per metre (NaN past the end); ``s_m`` [A] is where the vehicle's
    centre is on its path and ``lateral_m`` [A] how far to the left of it. ``toward_m`` [A] is the lateral position that it
    moves to, up to which the corridor is widened. ``rows`` limits the search to these vehicles.
    """
    rows = np.arange(len(paths)) if rows is None else rows
    start = np.clip(s_m[rows].astype(np.int64), 0, paths.shape[1] - 1)
    window = np.minimum(start[:, None] + np.arange(WINDOW_M + 1), paths.shape[1] - 1)
    ahead = paths[rows[:, None], window, :3]
    near = _inside_window(ahead, discs.xy_m) & (discs.owner != rows[:, None])
    one, disc = np.nonzero(near)
    if len(one) == 0:
        none = np.zeros(0)
        return Blockers(vehicle=one, gap_m=none, along_m=none, speed_mps=none, owner=one, turn_rad=none, disc=disc)
    # 32-bit halves the cost of the one large table.
    origin = ahead[:, 0, :2]
    local = (ahead[..., :2] - origin[:, None]).astype(np.float32)
    target = (discs.xy_m[disc] - origin[one]).astype(np.float32)
    dx, dy = local[one, :, 0] - target[:, :1], local[one, :, 1] - target[:, 1:]
    squared = dx * dx + dy * dy
    k = np.argmin(np.where(squared == squared, squared, np.inf), axis=1)
    close = squared[np.arange(len(k)), k] < NEAREST_POINT_M**2
    one, disc, k = one[close], disc[close], k[close]
    vehicle = rows[one]
    px, py, pyaw = ahead[one, k].T
    ex, ey = discs.xy_m[disc, 0] - px, discs.xy_m[disc, 1] - py
    cos, sin = np.cos(pyaw), np.sin(pyaw)
    residual, lateral = ex * cos + ey * sin, -ex * sin + ey * cos
    turn = np.abs(wrap_angle(discs.yaw_rad[disc] - pyaw))
    # Oncoming traffic in a narrow lane passes closer than traffic that is followed.
    margin = np.where(turn > 2.1, np.minimum(discs.margin_m[disc], -0.2), discs.margin_m[disc])
    # The corners of a turned box stick out beside its disc.
    corner = np.where(turn > 2.1, 1.0, np.abs(np.cos(turn)) + np.abs(np.sin(turn)))
    reach = width_m[vehicle] / 2 + discs.radius_m[disc] * corner + margin
    along = start[one] + k + residual - s_m[vehicle]
    half = length_m[vehicle] / 2
    aside = lateral - lateral_m[vehicle]
    if toward_m is not None:
        sideways = (toward_m - lateral_m)[vehicle]
        aside = aside - np.clip(aside, np.minimum(sideways, 0.0), np.maximum(sideways, 0.0))
    inside = (np.abs(aside) < reach) & (np.abs(residual) < 1.5) & (along > half - 0.3)
    vehicle, disc, along, turn = vehicle[inside], disc[inside], along[inside], turn[inside]
    edge = along - discs.radius_m[disc]
    return Blockers(
        vehicle=vehicle, gap_m=edge - half[inside], along_m=edge, owner=discs.owner[disc], turn_rad=turn, disc=disc,
        speed_mps=np.maximum(discs.speed_mps[disc] * np.cos(turn), 0.0),
    )  # fmt: skip


def _inside_window(ahead: Array, xy_m: Array) -> NDArray[np.bool_]:
    """Whether discs [D, 2] can be near the path points ahead [R, W, >=2] of each vehicle: [R, D]."""
    low, high = np.fmin.reduce(ahead[..., :2], axis=1), np.fmax.reduce(ahead[..., :2], axis=1)
    x, y = xy_m[:, 0], xy_m[:, 1]
    inside = (x > low[:, :1] - NEAREST_POINT_M) & (x < high[:, :1] + NEAREST_POINT_M)
    inside &= (y > low[:, 1:] - NEAREST_POINT_M) & (y < high[:, 1:] + NEAREST_POINT_M)
    return inside & ~np.isnan(ahead[:, 0, :1])
