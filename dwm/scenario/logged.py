"""Boxes of the log at the frames of a scenario."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import rotation_from_quaternion, yaw_from_rotation
from dwm.scenario.types import LabelSource
from dwm.scenes.interpolation import track_at
from dwm.scenes.types import Scene

Array = NDArray[np.float64]


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


def extended(table: BoxTable, centers_m: Array, yaws_rad: Array) -> BoxTable:
    """The table with one more agent, present at its first L frames: centres [L, 3], headings [L]."""
    frames, n = table.present.shape[1], len(yaws_rad)
    row = empty_table(1, frames)
    row.centers_m[0, :n], row.yaws_rad[0, :n], row.present[0, :n] = centers_m, yaws_rad, True
    joined = {
        name: np.concatenate([getattr(table, name), getattr(row, name)])
        for name in ("centers_m", "yaws_rad", "present", "sources", "num_lidar_pts")
    }
    return BoxTable(**joined, attributes=[*table.attributes, *row.attributes])


def rerouted(table: BoxTable, agent: int, first: int, centers_m: Array, yaws_rad: Array) -> None:
    """Puts an agent on another path [L, 3] with headings [L] from a frame on; it is there until the last of them."""
    rows = slice(first, len(yaws_rad))
    table.centers_m[agent, rows], table.yaws_rad[agent, rows] = centers_m[rows], yaws_rad[rows]
    table.present[agent, rows], table.sources[agent, rows], table.num_lidar_pts[agent, rows] = True, LabelSource.TRANSFORMED, -1
    table.attributes[agent][rows] = [table.attributes[agent][first]] * (len(yaws_rad) - first)


def copied(table: BoxTable) -> BoxTable:
    """A copy that may be changed."""
    arrays = {name: getattr(table, name).copy() for name in ("centers_m", "yaws_rad", "present", "sources", "num_lidar_pts")}
    return BoxTable(**arrays, attributes=[list(row) for row in table.attributes])
