"""Who is in whose way: road users as discs, found in the corridor along each vehicle's path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import wrap_angle

Array = NDArray[np.float64]
WINDOW_M = 60


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


def box_discs(xy_m: Array, yaw_rad: Array, size_wlh_m: Array, speed_mps: Array, margin_m: float, owner: NDArray) -> Discs:
    """Three discs for each of N boxes, [3 N]."""
    width, length = size_wlh_m[:, 0], size_wlh_m[:, 1]
    radius = np.minimum(width, length) / 2
    reach = np.abs(length - width) / 2
    angle = np.where(length >= width, yaw_rad, yaw_rad + np.pi / 2)
    axis = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * reach[:, None]
    return Discs(
        xy_m=np.concatenate([xy_m - axis, xy_m, xy_m + axis]), radius_m=np.tile(radius, 3), yaw_rad=np.tile(yaw_rad, 3),
        speed_mps=np.tile(speed_mps, 3), margin_m=np.full(3 * len(xy_m), margin_m), owner=np.tile(owner.astype(np.int64), 3),
    )  # fmt: skip


def concatenate(parts: list[Discs]) -> Discs:
    """All discs of the parts."""
    names = ("xy_m", "radius_m", "yaw_rad", "speed_mps", "margin_m", "owner")
    return Discs(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


def find_blockers(paths: Array, s_m: Array, lateral_m: Array, width_m: Array, length_m: Array, discs: Discs) -> Blockers:
    """Discs ahead of each vehicle within its corridor.

    ``paths`` [A, P, >=3] are x, y, yaw at one point per metre (NaN past the end); ``s_m`` [A] is where the vehicle's
    centre is on its path and ``lateral_m`` [A] how far to the left of it.
    """
    rows = np.arange(len(paths))
    start = np.clip(s_m.astype(np.int64), 0, paths.shape[1] - 1)
    window = np.minimum(start[:, None] + np.arange(WINDOW_M + 1), paths.shape[1] - 1)
    ahead = paths[rows[:, None], window, :3]
    origin = ahead[:, 0, :2]
    apart = np.abs(discs.xy_m[None] - np.nan_to_num(origin, nan=1e9)[:, None])
    near = (apart.max(axis=-1) < WINDOW_M + 5) & (discs.owner[None] != rows[:, None])
    near[np.isnan(origin[:, 0])] = False
    vehicle, disc = np.nonzero(near)
    if len(vehicle) == 0:
        return Blockers(vehicle=vehicle, gap_m=np.zeros(0), along_m=np.zeros(0), speed_mps=np.zeros(0), owner=vehicle)
    # 32-bit halves the cost of the one large table.
    local = (ahead[..., :2] - origin[:, None]).astype(np.float32)
    target = (discs.xy_m[disc] - origin[vehicle]).astype(np.float32)
    dx, dy = local[vehicle, :, 0] - target[:, :1], local[vehicle, :, 1] - target[:, 1:]
    squared = dx * dx + dy * dy
    k = np.argmin(np.where(np.isnan(squared), np.inf, squared), axis=1)
    close = squared[np.arange(len(k)), k] < 36.0
    vehicle, disc, k = vehicle[close], disc[close], k[close]
    px, py, pyaw = ahead[vehicle, k].T
    ex, ey = discs.xy_m[disc, 0] - px, discs.xy_m[disc, 1] - py
    residual, lateral = ex * np.cos(pyaw) + ey * np.sin(pyaw), -ex * np.sin(pyaw) + ey * np.cos(pyaw)
    turn = np.abs(wrap_angle(discs.yaw_rad[disc] - pyaw))
    # Oncoming traffic in a narrow lane passes closer than traffic that is followed.
    margin = np.where(turn > 2.1, np.minimum(discs.margin_m[disc], -0.2), discs.margin_m[disc])
    # The corners of a turned box stick out beside its disc.
    corner = np.where(turn > 2.1, 1.0, np.abs(np.cos(turn)) + np.abs(np.sin(turn)))
    reach = width_m[vehicle] / 2 + discs.radius_m[disc] * corner + margin
    along = start[vehicle] + k + residual - s_m[vehicle]
    half = length_m[vehicle] / 2
    inside = (np.abs(lateral - lateral_m[vehicle]) < reach) & (np.abs(residual) < 1.5) & (along > half - 0.3)
    vehicle, disc, along, turn = vehicle[inside], disc[inside], along[inside], turn[inside]
    edge = along - discs.radius_m[disc]
    return Blockers(
        vehicle=vehicle, gap_m=edge - half[inside], along_m=edge, owner=discs.owner[disc],
        speed_mps=np.maximum(discs.speed_mps[disc] * np.cos(turn), 0.0),
    )  # fmt: skip
