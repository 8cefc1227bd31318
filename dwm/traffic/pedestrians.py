"""Pedestrians: along walkways where they are known, else freely; they enter the road only where and when it is clear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import wrap_angle
from dwm.traffic.obstacles import Discs
from dwm.traffic.types import AgentSpec

Array = NDArray[np.float64]
PROBE_M = 1.1
TURN_RATE_RADPS = 1.5
ACCELERATION_MPS2 = 1.2
PATIENCE_S = 6.0
JOIN_DISTANCE_M = 2.5
RADIUS_M = 0.4


class Streets(Protocol):
    """What pedestrians need to know about the road: a lane graph's network or a drivable field."""

    def on_road(self, xy_m: Array) -> NDArray[np.bool_]: ...
    def road_clearance(self, xy_m: Array) -> tuple[NDArray[np.bool_], Array]: ...
    def on_crossing(self, xy_m: Array) -> NDArray[np.bool_]: ...
    def across_yaw(self, xy_m: Array, yaw_rad: Array) -> Array: ...


class Walkway:
    """A polyline to walk along, sampled every half metre."""

    def __init__(self, points_m: Array) -> None:
        steps = np.linalg.norm(np.diff(points_m[:, :2], axis=0), axis=1)
        arc = np.concatenate([[0.0], np.cumsum(steps)])
        self.length_m = float(arc[-1])
        grid = np.linspace(0.0, self.length_m, max(2, int(np.ceil(self.length_m / 0.5)) + 1))
        self.points = np.stack([np.interp(grid, arc, points_m[:, k]) for k in range(2)], axis=-1)
        self.closed = bool(np.linalg.norm(points_m[0, :2] - points_m[-1, :2]) < 0.1)

    def at(self, s_m: float) -> tuple[float, float]:
        s = s_m % self.length_m if self.closed else min(max(s_m, 0.0), self.length_m)
        u = s / max(self.length_m, 1e-9) * (len(self.points) - 1)
        i = min(int(u), len(self.points) - 2)
        x, y = self.points[i] + (u - i) * (self.points[i + 1] - self.points[i])
        return float(x), float(y)

    def project(self, x_m: float, y_m: float) -> tuple[float, float]:
        """Distance along the walkway of its point nearest to a position, and how far away that is."""
        distance = np.hypot(self.points[:, 0] - x_m, self.points[:, 1] - y_m)
        i = int(np.argmin(distance))
        return i / (len(self.points) - 1) * self.length_m, float(distance[i])


class Pedestrians:
    """All pedestrians; arrays [A] in the order of ``add``."""

    def __init__(self, network: Streets | None, walkways: Sequence[Array] = ()) -> None:
        self.network = network
        self.walkways = [Walkway(np.asarray(w, dtype=np.float64)) for w in walkways if len(w) >= 2]
        self.xy = np.zeros((0, 2))
        self.yaw, self.v, self.desired, self.waited = (np.zeros(0) for _ in range(4))
        self.side, self.drift, self.crossing_yaw = np.zeros(0), np.zeros(0), np.zeros(0)
        self.active, self.crossing = (np.zeros(0, dtype=bool) for _ in range(2))
        self.clearance, self.seen_xy = np.zeros(0), np.zeros((0, 2))  # from the road, at least; where it was measured
        self.follows: list[tuple[int, float, float] | None] = []  # walkway, direction, offset to the left of it
        self.rngs: list[np.random.Generator] = []

    def add(self, spec: AgentSpec, rng: np.random.Generator) -> None:
        """A pedestrian joins; one near a walkway follows it."""
        self.xy = np.concatenate([self.xy, [[spec.x_m, spec.y_m]]])
        self.seen_xy = np.concatenate([self.seen_xy, self.xy[-1:]])
        road = bool(self._on_road(np.array([[spec.x_m, spec.y_m]]))[0])
        values = dict(
            yaw=spec.yaw_rad, v=spec.speed_mps, desired=spec.desired_speed_mps, waited=0.0, drift=0.0, clearance=0.0,
            side=rng.choice([-1.0, 1.0]), crossing_yaw=spec.yaw_rad, active=True, crossing=road,
        )  # fmt: skip
        for name, value in values.items():
            setattr(self, name, np.append(getattr(self, name), value))
        self.follows.append(self._join(spec.x_m, spec.y_m, spec.yaw_rad))
        self.rngs.append(rng)

    def _join(self, x: float, y: float, yaw: float) -> tuple[int, float, float] | None:
        best, found = JOIN_DISTANCE_M, None
        for k, way in enumerate(self.walkways):
            s, distance = way.project(x, y)
            if distance < best:
                (ax, ay), (bx, by) = way.at(s - 0.5), way.at(s + 0.5)
                heading = np.arctan2(by - ay, bx - ax)
                direction = 1.0 if np.cos(yaw - heading) >= 0 else -1.0
                px, py = way.at(s)
                left = -(x - px) * np.sin(heading) + (y - py) * np.cos(heading)
                best, found = distance, (k, direction, float(left))
        return found

    def _on_road(self, xy_m: Array) -> NDArray[np.bool_]:
        return self.network.on_road(xy_m) if self.network else np.zeros(len(xy_m), dtype=bool)

    def _roads(self, probe: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether everyone, and the point ahead of everyone, is on a lane; asked again only of those who may have come near."""
        now, ahead = np.zeros(len(probe), dtype=bool), np.zeros(len(probe), dtype=bool)
        if self.network is None:
            return now, ahead
        self.clearance = self.clearance - np.hypot(*(self.xy - self.seen_xy).T)
        self.seen_xy = self.xy
        asks = np.flatnonzero(self.active & (self.clearance <= PROBE_M))
        if len(asks):
            both = np.concatenate([self.xy[asks], probe[asks]])
            road, clearance = self.network.road_clearance(both)
            now[asks], ahead[asks] = np.split(road, 2)
            self.clearance[asks] = clearance[: len(asks)]
        return now, ahead

    def step(self, dt_s: float, vehicles: Discs) -> None:
        """Move everyone by one step; ``vehicles`` are the discs of all vehicles."""
        if not self.active.any():
            return
        goal = self._goal_headings(dt_s)
        probe = self.ahead()
        road_now, road_ahead = self._roads(probe)
        self.crossing &= road_now | road_ahead
        entering = road_ahead & ~road_now & ~self.crossing
        free = self._free()
        allowed = self._may_enter(probe, entering, free)
        clear = self._clear(entering & allowed, probe, vehicles)
        go = entering & allowed & clear
        self._start_crossing(go)
        self.waited = np.where(entering & allowed & ~clear, self.waited + dt_s, 0.0)
        bounced = entering & ~allowed
        blocked, away = self._vehicle_ahead(vehicles)
        goal = np.where(self.crossing & free, self.crossing_yaw, goal)
        goal = np.where(bounced & free, self.yaw + self.side * 1.0, goal)
        goal = np.where(blocked & ~self.crossing & free, away, goal)
        stop = (entering & ~go) | blocked
        turn = np.clip(wrap_angle(goal - self.yaw), -TURN_RATE_RADPS * dt_s, TURN_RATE_RADPS * dt_s)
        self.yaw = self.yaw + np.where(self.active & (self.desired > 0), turn, 0.0)
        speed = np.where(stop, 0.0, np.where(self.crossing, np.maximum(self.desired, 1.2 * (self.desired > 0)), self.desired))
        # Slower while turning round, so that no one swings out into the road.
        speed = speed * np.clip(np.cos(wrap_angle(goal - self.yaw)), 0.15, 1.0)
        limit = np.where(stop | (speed < 0.5 * self.v), 4.0, ACCELERATION_MPS2) * dt_s
        self.v = np.where(self.active, self.v + np.clip(speed - self.v, -limit, limit), 0.0)
        self.xy = self.xy + (self.v * dt_s)[:, None] * np.stack([np.cos(self.yaw), np.sin(self.yaw)], axis=-1)

    def ahead(self) -> Array:
        """The next step [A, 2] of everyone."""
        return self.xy + PROBE_M * np.stack([np.cos(self.yaw), np.sin(self.yaw)], axis=-1)

    def _free(self) -> NDArray[np.bool_]:
        return np.array([f is None for f in self.follows], dtype=bool)

    def _goal_headings(self, dt_s: float) -> Array:
        goal = self.yaw.copy()
        for i in np.flatnonzero(self.active & (self.desired > 0)):
            follow = self.follows[i]
            if follow is None:
                # A slowly changing heading (Ornstein-Uhlenbeck turn rate).
                self.drift[i] += -self.drift[i] * dt_s / 4.0 + 0.06 * np.sqrt(dt_s) * self.rngs[i].standard_normal()
                goal[i] += self.drift[i] * dt_s
            else:
                goal[i] = self._heading_along(int(i), follow)
        return goal

    def _heading_along(self, i: int, follow: tuple[int, float, float]) -> float:
        k, direction, left = follow
        way = self.walkways[k]
        s, _ = way.project(*self.xy[i])
        if not way.closed and (s > way.length_m - 0.6 if direction > 0 else s < 0.6):
            self.follows[i] = follow = self._next_walkway(i, k, direction)
            k, direction, left = follow
            way = self.walkways[k]
            s, _ = way.project(*self.xy[i])
        (ax, ay), (bx, by) = way.at(s + direction * 1.0), way.at(s + direction * 1.5)
        if (ax, ay) == (bx, by):
            (ax, ay), (bx, by) = way.at(s), (bx, by)
        heading = np.arctan2(by - ay, bx - ax)
        # ``left`` is relative to the polyline's own direction.
        x, y = bx - direction * left * np.sin(heading), by + direction * left * np.cos(heading)
        return float(np.arctan2(y - self.xy[i, 1], x - self.xy[i, 0]))

    def _next_walkway(self, i: int, k: int, direction: float) -> tuple[int, float, float]:
        """A random walkway that starts or ends here, else back the same way."""
        x, y = self.walkways[k].at(self.walkways[k].length_m if direction > 0 else 0.0)
        options: list[tuple[int, float]] = []
        for other, way in enumerate(self.walkways):
            if other == k:
                continue
            s, distance = way.project(x, y)
            if distance < 1.5:
                options += [(other, 1.0)] if s < way.length_m - 2.0 or way.closed else []
                options += [(other, -1.0)] if s > 2.0 or way.closed else []
        if not options:
            return k, -direction, 0.0
        other, way_direction = options[int(self.rngs[i].integers(len(options)))]
        return other, way_direction, 0.0

    def _may_enter(self, probe: Array, entering: NDArray[np.bool_], free: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Walkways lead onto the road on purpose; anyone else enters it on crossings only."""
        allowed = ~free
        asks = np.flatnonzero(entering & free)
        if len(asks) and self.network:
            allowed[asks] = self.network.on_crossing(probe[asks])
        return allowed

    def _clear(self, candidates: NDArray[np.bool_], probe: Array, vehicles: Discs) -> NDArray[np.bool_]:
        """No vehicle comes near within the time to cross; after some patience, every vehicle can still stop gently."""
        clear = np.ones(len(probe), dtype=bool)
        for i in np.flatnonzero(candidates):
            offset = probe[i] - vehicles.xy_m
            cos, sin = np.cos(vehicles.yaw_rad), np.sin(vehicles.yaw_rad)
            ahead, aside = offset[:, 0] * cos + offset[:, 1] * sin, np.abs(-offset[:, 0] * sin + offset[:, 1] * cos)
            speed = vehicles.speed_mps
            patient = self.waited[i] < PATIENCE_S
            needed = speed * 5.0 + 2.0 if patient else speed**2 / 3.0 + 0.7 * speed + 3.0
            threat = (ahead > -1.0) & (ahead < needed) & (aside < 9.0) & (speed > 0.5)
            standing = (np.abs(ahead) < 2.5) & (aside < 1.5)
            clear[i] = not bool((threat | standing).any())
        return clear

    def _start_crossing(self, go: NDArray[np.bool_]) -> None:
        if not go.any():
            return
        self.crossing |= go
        assert self.network is not None
        self.crossing_yaw = np.where(go, self.network.across_yaw(self.xy, self.yaw), self.crossing_yaw)

    def _vehicle_ahead(self, vehicles: Discs) -> tuple[NDArray[np.bool_], Array]:
        """Whether a vehicle is right ahead, and the heading away from it."""
        if len(vehicles.xy_m) == 0:
            return np.zeros(len(self.xy), dtype=bool), self.yaw
        near = self.xy + 0.7 * np.stack([np.cos(self.yaw), np.sin(self.yaw)], axis=-1)
        reach = self.xy.min(axis=0) - 8.0, self.xy.max(axis=0) + 8.0
        close = np.flatnonzero(((vehicles.xy_m > reach[0]) & (vehicles.xy_m < reach[1])).all(axis=1))
        if len(close) == 0:
            return np.zeros(len(self.xy), dtype=bool), self.yaw
        discs, radius = vehicles.xy_m[close], vehicles.radius_m[close]
        apart = np.hypot(near[:, :1] - discs[:, 0], near[:, 1:] - discs[:, 1]) - radius
        behind = np.hypot(self.xy[:, :1] - discs[:, 0], self.xy[:, 1:] - discs[:, 1]) - radius < apart
        apart = np.where(behind, np.inf, apart)
        offset = self.xy - discs[np.argmin(apart, axis=1)]
        return apart.min(axis=1) < 0.7, np.arctan2(offset[:, 1], offset[:, 0])

    def discs(self) -> Discs:
        """Where pedestrians are, and where those on the road will be one and two seconds later."""
        here = np.flatnonzero(self.active)
        moving = np.flatnonzero(self.active & self.crossing)
        direction = np.stack([np.cos(self.yaw), np.sin(self.yaw)], axis=-1)
        parts = [self.xy[here]] + [
            self.xy[moving] + t * np.maximum(self.v[moving], 0.8)[:, None] * direction[moving] for t in (1.0, 2.0)
        ]
        xy = np.concatenate(parts)
        yaw = np.concatenate([self.yaw[here], self.yaw[moving], self.yaw[moving]])
        return Discs(
            xy_m=xy, radius_m=np.full(len(xy), RADIUS_M), yaw_rad=yaw, speed_mps=np.zeros(len(xy)),
            margin_m=np.full(len(xy), 0.5), owner=np.full(len(xy), -1, dtype=np.int64),
        )  # fmt: skip
