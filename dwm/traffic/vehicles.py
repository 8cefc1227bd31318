"""Vehicles that drive along paths: longitudinally by the intelligent driver model, laterally by a smooth return to the lane."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dwm.traffic import idm
from dwm.traffic.drivable import DrivableField, Habits, Obstacles
from dwm.traffic.junctions import Reservations
from dwm.traffic.obstacles import Blockers, Discs, box_discs, concatenate, find_blockers
from dwm.traffic.right_of_way import junction_gaps
from dwm.traffic.routes import PATH_POINTS, RoadNetwork, Route, SampledPath, bend_speeds, straight_path
from dwm.traffic.types import AgentSpec

Array = NDArray[np.float64]
RETURN_RATE_PER_S = 1.0  # lateral errors decay over about 1 / rate seconds,
RETURN_RATE_PER_M = (0.04, 0.17)  # and over no less and no more road than the inverse of these
RETURN_ACCELERATION_MPS2 = 2.0
STEERING_PER_M_S = 0.12  # how fast the curvature of the return may change
JERK_MPS3 = 8.0
EMERGENCY_JERK_MPS3 = 40.0
REBUILD_AT_M = 100.0
PLAN_AHEAD_M, PLAN_M = 75.0, 45
SOON_S = (1.0, 2.2)
CROSSING_RAD = 1.1  # as far from a right angle paths may meet to cross


STATE = (
    "s", "v", "a", "lateral", "slope", "bend", "desired", "target", "wander", "phase", "travelled", "shift", "shift_start",
    "shift_length", "settled_s", "wanted",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Driver:
    """What one vehicle remembers besides the arrays."""

    spec: AgentSpec
    route: Route | None  # None: drives straight on
    connectors: list[tuple[str, float, float]]
    rng: np.random.Generator
    end_m: float
    held: list[tuple[str, float]] = field(default_factory=list)  # connector, where along the path it is left
    crossings: list[tuple[int, float, float]] = field(default_factory=list)  # which, where along the path it starts and ends
    yields_at: set[int] = field(default_factory=set)  # crossings before which it stops for somebody
    changes: int = 0  # of lane
    stops: bool = False  # where its path ends, instead of vanishing
    planned_m: float = np.inf  # how far its path is known; finite for one that follows the edge of the road
    bend_per_m: float = 0.0  # curvature at the end of a planned path
    clearance_m: float = 0.0  # distance that it keeps from the edge of the road


class Vehicles:
    """All moving vehicles. Arrays [A] share the order of ``drivers``; vehicles that left stay as ``active`` False."""

    def __init__(self, network: RoadNetwork | None, field: DrivableField | None = None) -> None:
        self.network, self.field = network, field
        self.plans = False  # whether anybody follows the edge of the road
        self.obstacles: Obstacles | None = None  # what stands, for those who follow the edge of the road
        self.reservations = Reservations(network.conflicts if network else {})
        self.drivers: list[Driver] = []
        self.paths = np.zeros((0, PATH_POINTS, 4))
        self.size = np.zeros((0, 3))
        self.active = np.zeros(0, dtype=bool)
        self.time_s = 0.0
        self.seen: Blockers | None = None  # of the last step
        self._poses: tuple[Array, Array] | None = None
        for name in STATE:
            setattr(self, name, np.zeros(0))

    s: Array
    v: Array
    a: Array
    lateral: Array
    slope: Array
    bend: Array
    desired: Array
    target: Array
    wander: Array
    phase: Array
    travelled: Array
    shift: Array  # lateral distance of a lane change that began ``shift_start`` metres into the drive,
    shift_start: Array
    shift_length: Array  # and ends this much later
    settled_s: Array  # when the last lane change began
    wanted: Array  # acceleration that the driver wants, without regard to stop lines

    def add(self, spec: AgentSpec, rng: np.random.Generator) -> None:
        """A vehicle joins at its pose: on its lane if it has one near, else along the road's edge, else straight on."""
        point = None
        if spec.behaviour == "lane" and self.network is not None:
            point = self.network.graph.nearest(spec.x_m, spec.y_m, spec.yaw_rad)
        if point is None:
            driver = Driver(spec=spec, route=None, connectors=[], rng=rng, end_m=np.inf)
            path, lateral, slope, target, wander = straight_path(spec.x_m, spec.y_m, spec.yaw_rad), 0.0, 0.0, 0.0, 0.0
            self._start_planning(driver, spec, path)
        else:
            assert self.network is not None
            lane = self.network.graph.lanes[point.lane]
            route = Route(lanes=[point.lane], offset_m=float(np.clip(point.s_m, 0.0, lane.length_m)))
            self.network.extend(route, PATH_POINTS + 5.0, rng, spec.stops_at_end)
            path = self.network.sample(route)
            driver = Driver(spec=spec, route=route, connectors=path.connectors, rng=rng, end_m=path.end_m)
            driver.crossings, driver.stops = path.crossings, spec.stops_at_end
            lateral, slope = _relative(spec.x_m, spec.y_m, spec.yaw_rad, path)
            target = _lane_position(spec, lane.width_m)
            wander = max(0.0, min(0.15, (lane.width_m - spec.size_wlh_m[0]) * 0.1))
        self._append(driver, path, spec, lateral, slope, target, wander)
        self._hold_current(len(self.drivers) - 1)

    def _start_planning(self, driver: Driver, spec: AgentSpec, path: SampledPath) -> None:
        here = np.array([[spec.x_m, spec.y_m]])
        if self.field is None or not self.field.on_road(here)[0]:
            return
        half = spec.size_wlh_m[0] / 2
        driver.planned_m, driver.stops, self.plans = 0.0, True, True
        driver.clearance_m = spec.clearance_m or self.field.preferred_clearance_m(here, half)
        path.points[1:] = np.nan

    def _append(
        self, driver: Driver, path: SampledPath, spec: AgentSpec, lateral: float, slope: float, target: float, wander: float
    ) -> None:
        self.drivers.append(driver)
        self.paths = np.concatenate([self.paths, path.points[None]])
        self.size = np.concatenate([self.size, np.array([spec.size_wlh_m], dtype=np.float64)])
        self.active = np.append(self.active, True)
        # The wander starts at zero so that the pose given is the pose kept.
        values = dict(
            s=0.0, v=max(spec.speed_mps, 0.0), a=0.0, lateral=lateral, slope=slope, bend=0.0,
            desired=spec.desired_speed_mps, target=target,
            wander=wander, phase=driver.rng.choice([0.0, np.pi]), travelled=0.0, shift=0.0, shift_start=0.0, shift_length=1.0,
            settled_s=-np.inf, wanted=0.0,
        )  # fmt: skip
        self._poses = None
        for name, value in values.items():
            setattr(self, name, np.append(getattr(self, name), value))

    def _hold_current(self, index: int) -> None:
        """A vehicle that starts inside a junction, or with its rear in it, keeps its place."""
        driver = self.drivers[index]
        for token, start, end in driver.connectors:
            if start - self.size[index, 1] / 2 <= self.s[index] <= end:
                self._enter(index, token, end)

    def _enter(self, index: int, token: str, end_m: float) -> None:
        self.reservations.hold(index, token)
        self.drivers[index].held.append((token, end_m))

    def poses(self) -> tuple[Array, Array]:
        """Positions [A, 2] and headings [A]."""
        if self._poses is None:
            point, lateral, slope = self.path_points(), *self.offsets()
            xy = np.empty((len(self.s), 2))
            xy[:, 0] = point[:, 0] - lateral * np.sin(point[:, 2])
            xy[:, 1] = point[:, 1] + lateral * np.cos(point[:, 2])
            self._poses = xy, point[:, 2] + np.arctan(slope)
        return self._poses

    def path_points(self) -> Array:
        """x, y, yaw [A, 3] of each path at the vehicle's place."""
        whole = np.clip(self.s.astype(np.int64), 0, PATH_POINTS - 2)
        rows = np.arange(len(self.s))
        before = self.paths[rows, whole, :3]
        step = self.paths[rows, whole + 1, :3] - before
        step[np.isnan(step)] = 0.0
        return before + (self.s - whole)[:, None] * step

    def offsets(self) -> tuple[Array, Array]:
        """Distance [A] to the left of the path, and its slope: the return to the lane plus a lane change under way."""
        if not self.shift.any():
            return self.lateral, self.slope
        u = np.clip((self.travelled - self.shift_start) / self.shift_length, 0.0, 1.0)
        left = self.shift * (1 - u**3 * (10 - 15 * u + 6 * u**2))
        return self.lateral + left, self.slope - self.shift * 30 * (u * (1 - u)) ** 2 / self.shift_length

    def discs(self) -> Discs:
        """The vehicles as obstacles to each other; one that changes lanes counts in both."""
        xy, yaw = self.poses()
        keep = np.flatnonzero(self.active)
        if self.shift.any():
            moving = np.flatnonzero(self.active & (self.shift != 0.0))
            point = self.path_points()[moving]
            side = np.stack([-np.sin(point[:, 2]), np.cos(point[:, 2])], axis=-1)
            xy = np.concatenate([xy[keep], point[:, :2] + self.lateral[moving, None] * side])
            yaw = np.concatenate([yaw[keep], point[:, 2]])
            keep = np.concatenate([keep, moving])
            return box_discs(xy, yaw, self.size[keep], self.v[keep], 0.25, keep)
        return box_discs(xy[keep], yaw[keep], self.size[keep], self.v[keep], 0.25, keep)

    def step(self, dt_s: float, discs: Discs, taken: set[str], stop_gap_m: Array | None = None) -> None:
        """Move by one step among the obstacles ``discs``.

        ``taken`` are connectors used by an external vehicle; ``stop_gap_m`` [A] further lines to stop at.
        """
        if not self.active.any():
            return
        if self.plans:
            self._plan_ahead()
        self.seen = blockers = self.blockers(discs)
        gaps = junction_gaps(self, blockers, taken)
        self._move(dt_s, self._wanted_acceleration(blockers, gaps if stop_gap_m is None else np.minimum(gaps, stop_gap_m)))
        self._housekeeping()
        self.time_s += dt_s

    def blockers(self, discs: Discs) -> Blockers:
        """Who is in the corridor of each vehicle; in a lane change it spans both lanes."""
        lateral, _ = self.offsets()
        toward = self.lateral if self.shift.any() else None
        width, length = self.size[:, 0], self.size[:, 1]
        rows = np.flatnonzero(self.active)
        if not self.plans:
            return find_blockers(self.paths, self.s, lateral, width, length, discs, rows, toward)
        everywhere = concatenate([discs, self._soon()])
        found = find_blockers(self.paths, self.s, lateral, width, length, everywhere, rows, toward)
        # Without lanes there is no right of way: the one who came first lets those who cross go.
        crosses = (found.owner > found.vehicle) & (np.abs(found.turn_rad - np.pi / 2) < CROSSING_RAD)
        return found.keep((found.disc < len(discs.xy_m)) | crosses)

    def _soon(self) -> Discs:
        """Where the vehicles will be within the next seconds."""
        keep = np.flatnonzero(self.active & (self.v > 0.5))
        parts = []
        for t in SOON_S:
            k = np.clip((self.s + self.v * t).astype(np.int64), 0, PATH_POINTS - 1)[keep]
            point = self.paths[keep, k, :3]
            known = ~np.isnan(point[:, 0])
            who = keep[known]
            parts.append(box_discs(point[known, :2], point[known, 2], self.size[who], np.zeros(len(who)), 0.25, who))
        return concatenate(parts)

    def _plan_ahead(self) -> None:
        """Extend the paths of those who follow the edge of the road, all at once."""
        due = [
            i for i in np.flatnonzero(self.active)
            if np.isinf(self.drivers[i].end_m) and self.drivers[i].planned_m - self.s[i] < PLAN_AHEAD_M
        ]  # fmt: skip
        if not due or self.field is None:
            return
        drivers = [self.drivers[i] for i in due]
        ends = np.array([int(driver.planned_m) for driver in drivers])
        habits = Habits(
            clearance_m=np.array([d.clearance_m for d in drivers]), side=np.array([d.spec.edge_side for d in drivers]),
            half_width_m=self.size[due, 0] / 2,
        )  # fmt: skip
        bends = np.array([driver.bend_per_m for driver in drivers])
        planned = self.field.plan(self.paths[due, ends, :3], bends, habits, PLAN_M, self.obstacles)
        for k, (i, driver, end) in enumerate(zip(due, drivers, ends, strict=True)):
            length = int(planned.length_m[k])
            driver.bend_per_m, driver.planned_m = float(planned.curvature_per_m[k]), float(end + length)
            driver.end_m = float(end + length) if length < PLAN_M else np.inf
            self.paths[i, end + 1 : end + length + 1, :3] = planned.points[k, :length]
            self.paths[i, :, 3] = bend_speeds(self.paths[i, :, 2])

    def _wanted_acceleration(self, blockers: Blockers, stop_gap_m: Array) -> Array:
        rows = np.arange(len(self.s))
        limit = self.paths[rows, np.clip(self.s.astype(np.int64) + 1, 0, PATH_POINTS - 1), 3]
        strongest = np.zeros(len(self.s))
        if len(blockers.vehicle):
            pull = idm.interaction(self.v[blockers.vehicle], blockers.speed_mps, blockers.gap_m)
            np.minimum.at(strongest, blockers.vehicle, pull)
        free = idm.free_acceleration(self.v, np.minimum(self.desired, limit))
        self.wanted = free + strongest
        wanted = free + np.minimum(strongest, idm.interaction(self.v, 0.0, stop_gap_m))
        return np.maximum(wanted, -idm.IDM.hardest_braking_mps2)

    def _move(self, dt_s: float, wanted: Array) -> None:
        jerk = np.where(wanted < -4.0, EMERGENCY_JERK_MPS3, JERK_MPS3) * dt_s
        self.a = np.clip(wanted, self.a - jerk, self.a + jerk)
        speed = np.maximum(self.v + self.a * dt_s, 0.0)
        distance = np.where(self.active, (self.v + speed) / 2 * dt_s, 0.0)
        self.a = np.where(speed <= 0.0, np.maximum(self.a, 0.0), self.a)
        self.v = np.where(self.active, speed, 0.0)
        self.s, self.travelled = self.s + distance, self.travelled + distance
        goal = self.target + self.wander * np.sin(self.travelled / 12.0 + self.phase)
        # Critically damped in distance, not in time: a standing vehicle does not slide.
        rate = np.clip(RETURN_RATE_PER_S / np.maximum(self.v, 1e-3), *RETURN_RATE_PER_M)
        limit = RETURN_ACCELERATION_MPS2 / np.maximum(self.v, 3.0) ** 2
        bend = np.clip(-(rate**2) * (self.lateral - goal) - 2 * rate * self.slope, -limit, limit)
        self.bend = np.clip(bend, self.bend - STEERING_PER_M_S * dt_s, self.bend + STEERING_PER_M_S * dt_s)
        self.slope = self.slope + self.bend * distance
        self.lateral = self.lateral + self.slope * distance
        self.shift[self.travelled >= self.shift_start + self.shift_length] = 0.0
        self._poses = None

    def _housekeeping(self) -> None:
        for i in np.flatnonzero(self.active):
            driver = self.drivers[i]
            for token, end in [h for h in driver.held if self.s[i] - self.size[i, 1] / 2 > h[1]]:
                self.reservations.release(int(i), token)
                driver.held.remove((token, end))
            if self.s[i] >= driver.end_m - 0.1 and not driver.stops:
                self.remove(int(i))
            elif self.s[i] > REBUILD_AT_M:
                self._rebuild(int(i))

    def remove(self, index: int) -> None:
        """The vehicle leaves the simulation; its index stays."""
        self.active[index] = False
        self.reservations.forget(index)

    def _rebuild(self, index: int) -> None:
        """Start the path anew by whole metres, so that the samples ahead stay the same points."""
        driver, moved = self.drivers[index], float(int(self.s[index]))
        if np.isfinite(driver.planned_m):
            points = np.full((PATH_POINTS, 4), np.nan)
            points[: PATH_POINTS - int(moved)] = self.paths[index, int(moved) :]
            points[:, 3] = bend_speeds(points[:, 2])
            driver.planned_m -= moved
            path = SampledPath(points=points, end_m=driver.end_m - moved, connectors=[], crossings=[])
        elif driver.route is None or self.network is None:
            x, y, yaw = self.paths[index, int(moved), :3]
            path = straight_path(x, y, yaw)
        else:
            route, lanes = driver.route, self.network.graph.lanes
            route.offset_m += moved
            while route.offset_m >= lanes[route.lanes[0]].length_m and len(route.lanes) > 1:
                route.offset_m -= lanes[route.lanes.pop(0)].length_m
            self.network.extend(route, PATH_POINTS + 5.0, driver.rng, driver.spec.stops_at_end)
            path = self.network.sample(route)
        driver.connectors, driver.crossings, driver.end_m = path.connectors, path.crossings, path.end_m
        driver.held = [(token, end - moved) for token, end in driver.held]
        self.set_path(index, path)
        self.s[index] -= moved

    def change_route(self, index: int, route: Route, length_m: float) -> None:
        """Move over to a route beside the present one within ``length_m`` of road; lateral position and heading are kept."""
        assert self.network is not None
        driver, (xy, yaw) = self.drivers[index], (values[index] for values in self.poses())
        self.network.extend(route, PATH_POINTS + 5.0, driver.rng, driver.spec.stops_at_end)
        path = self.network.sample(route)
        lateral, self.slope[index] = _relative(float(xy[0]), float(xy[1]), float(yaw), path)
        driver.route, driver.connectors, driver.crossings, driver.end_m = route, path.connectors, path.crossings, path.end_m
        self.set_path(index, path)
        self.s[index] = 0.0
        self.shift[index], self.shift_length[index] = lateral - self.lateral[index], length_m
        self.shift_start[index], self.settled_s[index] = self.travelled[index], self.time_s

    def set_path(self, index: int, path: SampledPath) -> None:
        """Follow another path from now on; its heading is unwrapped next to the present one."""
        points = path.points.copy()
        here = self.paths[index, min(int(self.s[index]), PATH_POINTS - 1), 2]
        points[:, 2] += np.round((np.nan_to_num(here) - points[0, 2]) / (2 * np.pi)) * 2 * np.pi
        self.paths[index] = points
        self._poses = None


def _relative(x_m: float, y_m: float, yaw_rad: float, path: SampledPath) -> tuple[float, float]:
    """Lateral offset [m] and slope of a pose relative to the start of a path."""
    x, y, yaw = path.points[0, :3]
    error = float(np.clip((yaw_rad - yaw + np.pi) % (2 * np.pi) - np.pi, -1.2, 1.2))
    lateral = -(x_m - x) * np.sin(yaw) + (y_m - y) * np.cos(yaw)
    return float(lateral), float(np.tan(error))


def _lane_position(spec: AgentSpec, lane_width_m: float) -> float:
    """Two-wheelers keep right in their lane; everyone else drives in the middle."""
    if spec.category == "vehicle.bicycle":
        return -(lane_width_m / 2 - 0.7)
    return -0.4 if spec.category == "vehicle.motorcycle" else 0.0
