"""Boxes of the log at the frames of a scenario, and logged followers who brake for an ego that slowed down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import rotation_from_quaternion, wrap_angle, yaw_from_rotation
from dwm.scenario.feasibility import ego_boxes
from dwm.scenario.types import LabelSource
from dwm.scenes.interpolation import track_at
from dwm.scenes.types import Scene
from dwm.traffic import idm
from dwm.traffic.simulate import EGO_SIZE_WLH_M

Array = NDArray[np.float64]
TOO_CLOSE_M = 2.0


@dataclass(slots=True, kw_only=True)
class BoxTable:
    """Boxes of A agents over T frames while a scenario is put together; filled with NaN and -1 where absent."""

    centers_m: Array  # [A, T, 3]
    yaws_rad: Array  # [A, T]
    present: NDArray[np.bool_]  # [A, T]
    sources: NDArray[np.int8]  # [A, T]
    num_lidar_pts: NDArray[np.int32]  # [A, T]
    attributes: list[list[str]]  # [A][T]


def empty_table(agents: int, frames: int) -> BoxTable:
    """A table without boxes."""
    return BoxTable(
        centers_m=np.full((agents, frames, 3), np.nan), yaws_rad=np.zeros((agents, frames)),
        present=np.zeros((agents, frames), dtype=bool), sources=np.full((agents, frames), LabelSource.SIMULATED, dtype=np.int8),
        num_lidar_pts=np.full((agents, frames), -1, dtype=np.int32), attributes=[[""] * frames for _ in range(agents)],
    )  # fmt: skip


def log_boxes(scene: Scene, timestamps_us: NDArray[np.int64], frames: int) -> BoxTable:
    """Boxes of ``scene.agents`` at the given times, the first of ``frames`` frames; interpolated as the devkit does."""
    table = empty_table(len(scene.agents), frames)
    count = len(timestamps_us)
    exact = np.isin(timestamps_us, scene.key_timestamps_us)
    source = np.where(exact, LabelSource.LOG, LabelSource.INTERPOLATED)
    for row, agent in enumerate(scene.agents):
        track = track_at(agent, scene.key_timestamps_us, timestamps_us)
        there = np.flatnonzero(track.present)
        table.present[row, :count] = track.present
        table.centers_m[row, there] = track.centers_m[there]
        table.yaws_rad[row, there] = yaw_from_rotation(rotation_from_quaternion(track.rotations_wxyz[there]))
        table.sources[row, there] = source[there]
        counted = there[exact[there]]
        table.num_lidar_pts[row, counted] = agent.num_lidar_pts[track.annotation[counted]]
        for t in there:
            table.attributes[row][t] = agent.attributes[track.annotation[t]]
    return table


def brake_followers(scene: Scene, table: BoxTable, ego: Array, baseline: Array, fps: float, last: int) -> list[int]:
    """Slow down logged vehicles that would run into the rear of the moved ego; returns the agents changed.

    ``ego`` and ``baseline`` [T, 4, 4]; frames 0..last are inside the log. A follower keeps its logged path and never gets
    ahead of its logged progress; its boxes become TRANSFORMED.
    """
    centre, yaw = ego_boxes(ego)
    differs = np.abs(ego - baseline).max(axis=(1, 2)) > 1e-6
    if not differs[: last + 1].any():
        return []
    start = int(np.argmax(differs))
    changed = []
    for i, agent in enumerate(scene.agents):
        rows = np.flatnonzero(table.present[i, : last + 1])
        rows = rows[rows >= start]
        if not agent.category.startswith("vehicle.") or len(rows) < 2 or np.any(np.diff(rows) != 1):
            continue
        own = (table.centers_m[i, rows, :2], table.yaws_rad[i, rows], agent.size_wlh_m)
        gap, behind = _gap_to_rear(*own, centre[rows], yaw[rows])
        # Behind at first, and too close later.
        if behind[0] and gap[0] > 0 and (behind & (gap < TOO_CLOSE_M)).any():
            speed = np.linalg.norm(np.gradient(centre[rows], axis=0), axis=1) * fps
            _follow(table, i, rows, agent.size_wlh_m, centre[rows], yaw[rows], speed, fps)
            changed.append(i)
    return changed


def _gap_to_rear(xy: Array, yaw: Array, size_wlh_m: Array, ego_xy: Array, ego_yaw: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Bumper gap [T] to the ego's rear, and whether the vehicle is in the corridor behind the ego, heading the same way."""
    offset = xy - ego_xy
    along = offset[:, 0] * np.cos(ego_yaw) + offset[:, 1] * np.sin(ego_yaw)
    aside = -offset[:, 0] * np.sin(ego_yaw) + offset[:, 1] * np.cos(ego_yaw)
    gap = -along - (size_wlh_m[1] + EGO_SIZE_WLH_M[1]) / 2
    corridor = np.abs(aside) < (size_wlh_m[0] + EGO_SIZE_WLH_M[0]) / 2 + 0.3
    return gap, corridor & (along < 0) & (np.abs(wrap_angle(yaw - ego_yaw)) < np.pi / 4)


def _follow(
    table: BoxTable,
    i: int,
    rows: NDArray[np.int64],
    size_wlh_m: Array,
    ego_xy: Array,
    ego_yaw: Array,
    ego_speed: Array,
    fps: float,
) -> None:
    centers, yaws = table.centers_m[i, rows].copy(), np.unwrap(table.yaws_rad[i, rows])
    logged = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(centers[:, :2], axis=0), axis=1))])
    rate = np.gradient(logged) * fps
    desired, progress, speed = max(float(rate.max()), 0.5), 0.0, float(rate[0])
    driven = np.zeros(len(rows))
    keep = np.concatenate([[True], np.diff(logged) > 1e-9])

    def pose(s: float) -> tuple[Array, float]:
        columns = [np.interp(s, logged[keep], centers[keep, k]) for k in range(3)]
        return np.array(columns), float(np.interp(s, logged[keep], yaws[keep]))

    for k in range(1, len(rows)):
        here, heading = pose(progress)
        gap, behind = _gap_to_rear(here[None, :2], np.array([heading]), size_wlh_m, ego_xy[k - 1 : k], ego_yaw[k - 1 : k])
        leader_gap = float(gap[0]) if behind[0] else np.inf
        a = float(idm.acceleration(speed, desired, ego_speed[k - 1], leader_gap))
        faster = max(speed + a / fps, 0.0)
        progress += (speed + faster) / 2 / fps
        speed = faster
        if progress >= logged[k]:
            progress, speed = float(logged[k]), min(speed, float(rate[k]))
        driven[k] = progress
    moved = np.abs(driven - logged) > 1e-6
    for k in np.flatnonzero(moved):
        table.centers_m[i, rows[k]], table.yaws_rad[i, rows[k]] = pose(float(driven[k]))
        table.sources[i, rows[k]] = LabelSource.TRANSFORMED
