"""Logged vehicles brake for somebody who is now in their way: the ego that slowed down, or a newcomer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import wrap_angle
from dwm.scenario.feasibility import ego_boxes
from dwm.scenario.logged import BoxTable
from dwm.scenario.reaction import Moving
from dwm.scenario.types import LabelSource
from dwm.scenes.types import Scene
from dwm.traffic import idm
from dwm.traffic.simulate import EGO_SIZE_WLH_M

Array = NDArray[np.float64]
TOO_CLOSE_M = 2.0


def ego_as_leader(ego: Array) -> Moving:
    """The ego on its path [L, 4, 4]."""
    centre, yaw = ego_boxes(ego)
    return Moving(xy_m=centre, yaw_rad=yaw, size_wlh_m=np.array(EGO_SIZE_WLH_M))


def brake_followers(scene: Scene, table: BoxTable, leader: Moving, fps: float, first: int = 0) -> list[int]:
    """Slow down logged vehicles that would run into the leader's rear; returns the agents changed.

    The leader is given for the frames [L] of the log, and nothing is new about it before ``first``. A follower keeps
    its logged path and never gets ahead of its logged progress; its boxes become TRANSFORMED.
    """
    changed = []
    for i, agent in enumerate(scene.agents):
        rows = np.flatnonzero(table.present[i, : len(leader.yaw_rad)])
        rows = rows[rows >= first]
        if not agent.category.startswith("vehicle.") or len(rows) < 2 or np.any(np.diff(rows) != 1):
            continue
        gap, behind = _gap_to_rear(table.centers_m[i, rows, :2], table.yaws_rad[i, rows], agent.size_wlh_m, leader, rows)
        # Behind at first, and too close later.
        if behind[0] and gap[0] > 0 and (behind & (gap < TOO_CLOSE_M)).any():
            _follow(table, i, rows, agent.size_wlh_m, leader, fps)
            changed.append(i)
    return changed


def _gap_to_rear(
    xy: Array, yaw: Array, size_wlh_m: Array, leader: Moving, rows: NDArray[np.int64]
) -> tuple[Array, NDArray[np.bool_]]:
    """Bumper gap [T] to the leader's rear, and whether the vehicle is in the corridor behind it, heading the same way."""
    offset, heading = xy - leader.xy_m[rows], leader.yaw_rad[rows]
    along = offset[:, 0] * np.cos(heading) + offset[:, 1] * np.sin(heading)
    aside = -offset[:, 0] * np.sin(heading) + offset[:, 1] * np.cos(heading)
    gap = -along - (size_wlh_m[1] + leader.size_wlh_m[1]) / 2
    corridor = np.abs(aside) < (size_wlh_m[0] + leader.size_wlh_m[0]) / 2 + 0.3
    return gap, corridor & (along < 0) & (np.abs(wrap_angle(yaw - heading)) < np.pi / 4)


def _follow(table: BoxTable, i: int, rows: NDArray[np.int64], size_wlh_m: Array, leader: Moving, fps: float) -> None:
    centers, yaws = table.centers_m[i, rows].copy(), np.unwrap(table.yaws_rad[i, rows])
    logged = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(centers[:, :2], axis=0), axis=1))])
    rate = np.gradient(logged) * fps
    leader_speed = np.linalg.norm(np.gradient(leader.xy_m[rows], axis=0), axis=1) * fps
    desired, progress, speed = max(float(rate.max()), 0.5), 0.0, float(rate[0])
    driven = np.zeros(len(rows))
    keep = np.concatenate([[True], np.diff(logged) > 1e-9])

    def pose(s: float) -> tuple[Array, float]:
        columns = [np.interp(s, logged[keep], centers[keep, k]) for k in range(3)]
        return np.array(columns), float(np.interp(s, logged[keep], yaws[keep]))

    for k in range(1, len(rows)):
        here, heading = pose(progress)
        gap, behind = _gap_to_rear(here[None, :2], np.array([heading]), size_wlh_m, leader, rows[k - 1 : k])
        leader_gap = float(gap[0]) if behind[0] else np.inf
        a = float(idm.acceleration(speed, desired, leader_speed[k - 1], leader_gap))
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
