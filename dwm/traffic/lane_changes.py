"""Lane changes by MOBIL (Kesting, Treiber, Helbing 2007): worth it for the driver, politely, and safe for the one behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import wrap_angle
from dwm.scenes.lane_graph import Lane, LaneGraph
from dwm.traffic import idm
from dwm.traffic.obstacles import Blockers, Discs
from dwm.traffic.routes import Route
from dwm.traffic.vehicles import Vehicles

Array = NDArray[np.float64]
DURATION_S = 4.0
SHORTEST_M = 24.0  # of road, at low speed
COOL_DOWN_S = 10.0  # from the beginning of one change to that of the next
SLOWEST_MPS = 3.0
INTERVAL_S = 1.0
BESIDE_M = (2.0, 5.0)
PARALLEL_RAD = 0.25
REACH_M = 60.0
SPACE_M = 2.0  # to whoever is ahead or behind, at least
JUNCTION_M = 10.0  # road left after a change


@dataclass(frozen=True, slots=True, kw_only=True)
class MobilParams:
    """When a lane change is worth it."""

    politeness: float = 0.3
    threshold_mps2: float = 0.3
    safe_deceleration_mps2: float = 2.0


MOBIL = MobilParams()


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Who would be ahead and behind in the other lane; gaps from bumper to bumper, inf where nobody is."""

    gap_ahead_m: float
    speed_ahead_mps: float
    gap_behind_m: float
    speed_behind_mps: float
    behind: int  # vehicle index, -1: not one of the simulated vehicles


def worth(own_gain: float, new_follower_gain: float, old_follower_gain: float, params: MobilParams = MOBIL) -> bool:
    """The incentive criterion (eq. 3): gains are accelerations [m/s^2] after minus before the change."""
    return own_gain + params.politeness * (new_follower_gain + old_follower_gain) > params.threshold_mps2


class LaneChanges:
    """Decides once a second for each vehicle, and starts the changes."""

    def __init__(self, vehicles: Vehicles, params: MobilParams = MOBIL) -> None:
        self.vehicles, self.params = vehicles, params
        self._seconds = np.zeros(0)

    def step(self, discs: Discs) -> None:
        """Start the lane changes of this moment. ``discs``: everyone."""
        vehicles = self.vehicles
        if vehicles.network is None or vehicles.seen is None:
            return
        # Not all in the same step.
        seconds = np.floor(vehicles.time_s / INTERVAL_S + np.arange(len(vehicles.s)) * 0.618 % 1.0)
        before = np.full(len(seconds), -1.0)
        before[: len(self._seconds)] = self._seconds
        self._seconds = seconds
        crawls = vehicles.wanted < idm.free_acceleration(vehicles.v, vehicles.desired) - self.params.threshold_mps2
        due = (seconds > before) & vehicles.active & (vehicles.v > SLOWEST_MPS) & (vehicles.shift == 0.0) & crawls
        due &= vehicles.time_s - vehicles.settled_s > COOL_DOWN_S
        for i in np.flatnonzero(due):
            self._consider(int(i), discs, vehicles.seen)

    def _consider(self, i: int, discs: Discs, blockers: Blockers) -> None:
        vehicles, driver = self.vehicles, self.vehicles.drivers[i]
        if driver.route is None or driver.held or driver.spec.category == "vehicle.bicycle" or vehicles.network is None:
            return
        graph = vehicles.network.graph
        lane, s = vehicles.network.lane_at(driver.route, float(vehicles.s[i]))
        needed = change_length_m(float(vehicles.v[i])) + vehicles.size[i, 1] / 2 + JUNCTION_M
        if lane.is_connector or lane.length_m - s < needed:
            return
        for token in (lane.left, lane.right):
            other = graph.lanes.get(token) if token is not None else None
            if other is None or other.is_connector:
                continue
            place = self._place_in(i, other, needed)
            if place is None:
                continue
            found = self._neighbours(i, lane_line(graph, other), discs)
            if found is not None and self._accepts(i, found, blockers):
                self._start(i, other, place)
                return

    def _place_in(self, i: int, other: Lane, needed_m: float) -> float | None:
        """Distance along the other lane abeam of the vehicle, or None where the lanes are not side by side."""
        xy, yaw = (values[i] for values in self.vehicles.poses())
        k = int(np.argmin(np.hypot(*(other.centerline[:, :2] - xy).T)))
        px, py, pyaw = other.centerline[k]
        along = (xy[0] - px) * np.cos(pyaw) + (xy[1] - py) * np.sin(pyaw)
        aside = abs(-(xy[0] - px) * np.sin(pyaw) + (xy[1] - py) * np.cos(pyaw))
        s = float(other.arc_m[k] + along)
        beside = BESIDE_M[0] < aside < BESIDE_M[1] and abs(wrap_angle(yaw - pyaw)) < PARALLEL_RAD and abs(along) < 1.0
        room = s > self.vehicles.size[i, 1] / 2 + 1.0 and other.length_m - s > needed_m
        return s if beside and room else None

    def _neighbours(self, i: int, line: Array, discs: Discs) -> Neighbours | None:
        """Who is ahead and behind in the other lane; None if someone is alongside."""
        xy = self.vehicles.poses()[0][i]
        half, width = self.vehicles.size[i, 1] / 2, self.vehicles.size[i, 0]
        near = np.flatnonzero((np.abs(discs.xy_m - xy).max(axis=1) < REACH_M) & (discs.owner != i))
        points = np.concatenate([xy[None], discs.xy_m[near]])
        s, aside, heading = along_line(line, points)
        radius = discs.radius_m[near]
        turn = np.cos(discs.yaw_rad[near] - heading[1:])
        inside = np.abs(aside[1:]) < width / 2 + radius + 0.3
        ahead, behind = s[1:] - s[0] - radius - half, s[0] - s[1:] - radius - half
        speed = np.maximum(discs.speed_mps[near] * turn, 0.0)
        if (inside & (ahead < SPACE_M) & (behind < SPACE_M)).any():
            return None
        front = np.flatnonzero(inside & (ahead >= SPACE_M))
        rear = np.flatnonzero(inside & (behind >= SPACE_M) & (speed > 0.5))
        f = front[np.argmin(ahead[front])] if len(front) else -1
        r = rear[np.argmin(behind[rear])] if len(rear) else -1
        return Neighbours(
            gap_ahead_m=float(ahead[f]) if f >= 0 else np.inf, speed_ahead_mps=float(speed[f]) if f >= 0 else 0.0,
            gap_behind_m=float(behind[r]) if r >= 0 else np.inf, speed_behind_mps=float(speed[r]) if r >= 0 else 0.0,
            behind=int(discs.owner[near[r]]) if r >= 0 else -1,
        )  # fmt: skip

    def _accepts(self, i: int, found: Neighbours, blockers: Blockers) -> bool:
        """MOBIL's safety (eq. 2) and incentive (eq. 3) criteria."""
        vehicles = self.vehicles
        v = vehicles.v[i]
        after = float(idm.acceleration(v, vehicles.desired[i], found.speed_ahead_mps, found.gap_ahead_m))
        follower_gain = 0.0
        if np.isfinite(found.gap_behind_m):
            wish = float(vehicles.desired[found.behind]) if found.behind >= 0 else max(found.speed_behind_mps, 1.0)
            pushed = float(idm.acceleration(found.speed_behind_mps, wish, v, found.gap_behind_m))
            before = float(vehicles.wanted[found.behind]) if found.behind >= 0 else 0.0
            follower_gain = min(pushed - before, 0.0)
            if pushed < -self.params.safe_deceleration_mps2:
                return False
        if after < -self.params.safe_deceleration_mps2:
            return False
        own = after - max(float(vehicles.wanted[i]), -idm.IDM.hardest_braking_mps2)
        return worth(own, follower_gain, self._old_follower_gain(i, blockers), self.params)

    def _old_follower_gain(self, i: int, blockers: Blockers) -> float:
        """How much the present follower's acceleration rises when vehicle ``i`` is gone."""
        vehicles = self.vehicles
        mine = blockers.owner == i
        if not mine.any():
            return 0.0
        k = np.flatnonzero(mine)[np.argmin(blockers.gap_m[mine])]
        follower = int(blockers.vehicle[k])
        rest = (blockers.vehicle == follower) & ~mine
        pull = idm.interaction(vehicles.v[follower], blockers.speed_mps[rest], blockers.gap_m[rest])
        free = float(idm.free_acceleration(vehicles.v[follower], vehicles.desired[follower]))
        return max(free + (float(pull.min()) if rest.any() else 0.0) - float(vehicles.wanted[follower]), 0.0)

    def _start(self, i: int, other: Lane, s_m: float) -> None:
        vehicles, driver = self.vehicles, self.vehicles.drivers[i]
        vehicles.change_route(i, Route(lanes=[other.token], offset_m=s_m), change_length_m(float(vehicles.v[i])))
        driver.changes += 1


def change_length_m(speed_mps: float) -> float:
    """Road that a lane change takes: a stretch, not a time, so that nobody slides sideways while standing."""
    return max(speed_mps * DURATION_S, SHORTEST_M)


def lane_line(graph: LaneGraph, lane: Lane) -> Array:
    """Centre line [P, 3] of a lane with up to REACH_M of the lanes before and after it."""
    parts, first, last = [lane.centerline], lane, lane
    before = after = 0.0
    while before < REACH_M and (options := [t for t in first.incoming if t in graph.lanes]):
        first = graph.lanes[options[0]]
        parts.insert(0, first.centerline)
        before += max(first.length_m, 1.0)
    while after < REACH_M and (options := [t for t in last.outgoing if t in graph.lanes]):
        last = graph.lanes[options[0]]
        parts.append(last.centerline)
        after += max(last.length_m, 1.0)
    return np.concatenate(parts)


def along_line(line: Array, points_m: Array) -> tuple[Array, Array, Array]:
    """Distance along a line [P, 3], distance to its left and its heading there, each [N], of points [N, 2]."""
    steps = np.hypot(*np.diff(line[:, :2], axis=0).T)
    arc = np.concatenate([[0.0], np.cumsum(steps)])
    squared = (line[:, 0] - points_m[:, :1]) ** 2 + (line[:, 1] - points_m[:, 1:]) ** 2
    k = np.argmin(squared, axis=1)
    x, y, yaw = line[k].T
    dx, dy = points_m[:, 0] - x, points_m[:, 1] - y
    aside = -dx * np.sin(yaw) + dy * np.cos(yaw)
    # Past an end of the line nothing is in the lane.
    along = dx * np.cos(yaw) + dy * np.sin(yaw)
    aside = np.where(np.abs(along) > 2.0, np.inf, aside)
    return arc[k] + along, aside, yaw
