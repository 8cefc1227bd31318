"""One world: a city with its traffic over time, known at every microsecond of the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.spatial import KDTree

from dwm.scenes.lane_graph import LaneGraph, LanePoint
from dwm.scenes.proving_ground.city import City, StaticBox
from dwm.scenes.proving_ground.render import RenderAgent
from dwm.scenes.proving_ground.rig import CAMERA_HZ
from dwm.scenes.proving_ground.tokens import appearance_seed
from dwm.scenes.proving_ground.weather import Weather
from dwm.scenes.types import EgoTrack
from dwm.traffic.populate import populate
from dwm.traffic.simulate import ego_spec, rear_axle_poses, simulate
from dwm.traffic.types import AgentSpec, TrafficLog

Array = NDArray[np.float64]
WARM_UP_STEPS = 36  # 3 s, in which vehicles find their following distances
EGO_HZ = 100
MIN_START_LANE_M = 30.0
ROUTE_AHEAD_M, NEAR_ROADS_M = 170.0, 12.0
FURNITURE_CLEARANCE_M, SLIDE_M = 0.25, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """A agents at one moment."""

    indices: NDArray[np.int64]  # [A] into World.specs
    centers_m: Array  # [A, 3], boxes stand on the ground z = 0
    yaws_rad: Array  # [A]
    speeds_mps: Array  # [A]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """City, weather, ego track and simulated agents; tokens of ``specs`` are instance tokens."""

    city: City
    weather: Weather
    specs: tuple[AgentSpec, ...]  # [A] without the ego
    timestamps_us: NDArray[np.int64]  # [T] simulation steps, 12 Hz
    log: TrafficLog  # of ``specs``
    ego: EgoTrack  # 100 Hz

    @property
    def statics(self) -> tuple[StaticBox, ...]:
        return self.city.statics

    def state(self, timestamp_us: int) -> AgentState:
        """Agents present at a time, linear between simulation steps."""
        times = self.timestamps_us
        upper = int(np.clip(np.searchsorted(times, timestamp_us), 1, len(times) - 1))
        a = float(np.clip((timestamp_us - times[upper - 1]) / (times[upper] - times[upper - 1]), 0.0, 1.0))
        sides = [upper - 1] if a == 0 else [upper] if a == 1 else [upper - 1, upper]
        found = np.flatnonzero(self.log.present[:, sides].all(axis=1))
        xy, speed = self.log.xy_m[found], self.log.speed_mps[found]
        yaw = np.unwrap(self.log.yaw_rad[found, upper - 1 : upper + 1])
        heights = np.array([self.specs[i].size_wlh_m[2] for i in found])
        centers = (1 - a) * xy[:, upper - 1] + a * xy[:, upper]
        return AgentState(
            indices=found, centers_m=np.column_stack([centers, heights / 2]).reshape(-1, 3),
            yaws_rad=(1 - a) * yaw[:, 0] + a * yaw[:, 1], speeds_mps=(1 - a) * speed[:, upper - 1] + a * speed[:, upper],
        )  # fmt: skip

    def render_agents(self, timestamp_us: int) -> tuple[list[RenderAgent], NDArray[np.int64]]:
        """What the renderer draws at a time, and for each its index into ``specs``."""
        state = self.state(timestamp_us)
        agents = [
            RenderAgent(
                detection_class=spec.detection_class or "car", center_m=center, yaw_rad=float(yaw),
                size_wlh_m=np.array(spec.size_wlh_m), seed=appearance_seed(spec.token), speed_mps=float(speed),
            )
            for spec, center, yaw, speed in zip(
                (self.specs[i] for i in state.indices), state.centers_m, state.yaws_rad, state.speeds_mps, strict=True
            )
        ]  # fmt: skip
        return agents, state.indices


def make_world(
    city: City, weather: Weather, start_us: int, n_frames: int, n_agents: int, make_token: Callable[[int], str],
    rng: np.random.Generator,
) -> World:  # fmt: skip
    """Traffic of about ``n_agents`` agents around an ego for ``n_frames`` 12 Hz frames from ``start_us`` on.

    ``make_token`` gives the instance token of the n-th agent. A row of cones or barriers counts as one agent.
    """
    steps = np.arange(-WARM_UP_STEPS, n_frames + 1)
    times = start_us + np.round(steps * (1e6 / CAMERA_HZ)).astype(np.int64)
    ego = _place_ego(city, rng)
    crowd = _populate(city, ego, n_agents, rng)
    specs = [replace(spec, token=make_token(i)) for i, spec in enumerate(crowd)]
    log = simulate(city.lane_graph, [ego, *specs], times, rng)
    others = TrafficLog(
        tokens=log.tokens[1:], xy_m=log.xy_m[1:], yaw_rad=log.yaw_rad[1:], speed_mps=log.speed_mps[1:], present=log.present[1:]
    )
    track = _ego_track(times, log.xy_m[0], log.yaw_rad[0])
    return World(city=city, weather=weather, specs=tuple(specs), timestamps_us=times, log=others, ego=track)


def _place_ego(city: City, rng: np.random.Generator) -> AgentSpec:
    """A car at speed on some lane, more likely one near the middle of the city, where there is most to see."""
    lanes = [lane for lane in city.lane_graph.lanes.values() if not lane.is_connector and lane.length_m > MIN_START_LANE_M]
    middle = np.array([lane.centerline[len(lane.centerline) // 2, :2] for lane in lanes]) - city.size_m / 2
    weight = np.exp(-((np.linalg.norm(middle, axis=1) / (0.25 * city.size_m)) ** 2)) + 1e-9
    lane = lanes[int(rng.choice(len(lanes), p=weight / weight.sum()))]
    start = LanePoint(lane=lane.token, s_m=float(rng.uniform(4.0, 0.5 * lane.length_m)), lateral_m=0.0, heading_error_rad=0.0)
    return ego_spec(city.lane_graph, start, desired_speed_mps=lane.speed_limit_mps * rng.uniform(0.85, 1.0))


def _populate(city: City, ego: AgentSpec, n_agents: int, rng: np.random.Generator) -> list[AgentSpec]:
    """Agents on and beside the roads the ego may come to: density where it is seen."""
    roads = KDTree(_roads_ahead(city.lane_graph, ego))
    lanes = city.lane_graph.lanes
    near = {token: lane for token, lane in lanes.items() if roads.query(lane.centerline[:, :2])[0].min() < NEAR_ROADS_M}
    crowd = populate(
        LaneGraph(near), rng, n_vehicles=round(0.45 * n_agents), n_pedestrians=round(0.3 * n_agents),
        n_static=round(0.25 * n_agents), keep_clear=[ego],
    )  # fmt: skip
    furniture, kept = _thin_furniture(city), [ego, *(spec for spec in crowd if spec.behaviour != "static")]
    for spec in crowd:
        if spec.behaviour == "static" and (free := _slide_free(city.lane_graph, furniture, kept, spec)) is not None:
            kept.append(free)
    return kept[1:]


def _slide_free(graph: LaneGraph, furniture: Array, others: list[AgentSpec], spec: AgentSpec) -> AgentSpec | None:
    """The standing agent at the nearest place along its road where it touches nothing, or None."""
    home = graph.nearest(spec.x_m, spec.y_m, spec.yaw_rad, max_distance_m=8.0, max_heading_rad=np.pi)
    if home is None:
        return None
    lane = graph.lanes[home.lane]
    direction = lane.pose_at(home.s_m)[2]
    for shift_m in sorted(np.arange(-SLIDE_M, SLIDE_M + 0.25, 0.5), key=abs):
        moved = replace(spec, x_m=spec.x_m + shift_m * np.cos(direction), y_m=spec.y_m + shift_m * np.sin(direction))
        inside = shift_m == 0 or spec.size_wlh_m[1] / 2 < home.s_m + shift_m < lane.length_m - spec.size_wlh_m[1] / 2
        if inside and not _touches(furniture, moved) and not any(_near(moved, other) for other in others):
            return moved
    return None


def _near(a: AgentSpec, b: AgentSpec) -> bool:
    """Whether two boxes come closer than FURNITURE_CLEARANCE_M; generous where they are not parallel."""
    dx, dy = b.x_m - a.x_m, b.y_m - a.y_m
    along, across = dx * np.cos(a.yaw_rad) + dy * np.sin(a.yaw_rad), dy * np.cos(a.yaw_rad) - dx * np.sin(a.yaw_rad)
    c, s = abs(np.cos(b.yaw_rad - a.yaw_rad)), abs(np.sin(b.yaw_rad - a.yaw_rad))
    (wa, la, _), (wb, lb, _) = a.size_wlh_m, b.size_wlh_m
    reach = (la + c * lb + s * wb) / 2, (wa + c * wb + s * lb) / 2
    return abs(along) < reach[0] + FURNITURE_CLEARANCE_M and abs(across) < reach[1] + FURNITURE_CLEARANCE_M


def _thin_furniture(city: City) -> Array:
    """Trees and poles [N, 4]: x, y, radius, height of the lower end. Walls stand behind the pavement."""
    rows = [(*b.center_m[:2], np.hypot(*b.half_extents_m[:2]), b.center_m[2] - b.half_extents_m[2]) for b in city.statics]
    table = np.array(rows).reshape(-1, 4)
    return table[table[:, 2] < 1.5]


def _touches(furniture: Array, spec: AgentSpec) -> bool:
    """Whether a standing agent would stand in a tree or pole. What hangs above it does not count."""
    xy = furniture[furniture[:, 3] < spec.size_wlh_m[2]] - (spec.x_m, spec.y_m, 0.0, 0.0)
    cos, sin = np.cos(spec.yaw_rad), np.sin(spec.yaw_rad)
    along, across = xy[:, 0] * cos + xy[:, 1] * sin, xy[:, 1] * cos - xy[:, 0] * sin
    beyond = (np.abs(along) - spec.size_wlh_m[1] / 2, np.abs(across) - spec.size_wlh_m[0] / 2)
    return bool(np.any(np.hypot(*np.maximum(beyond, 0.0)) < xy[:, 2] + FURNITURE_CLEARANCE_M))


def _choose_ego(city: City, crowd: list[AgentSpec], rng: np.random.Generator) -> AgentSpec:
    """A moving car, more likely one near the middle of the city, where there is most to see."""
    cars = [spec for spec in crowd if spec.behaviour == "lane" and spec.detection_class == "car"]
    distance = np.array([np.hypot(c.x_m - city.size_m / 2, c.y_m - city.size_m / 2) for c in cars])
    weight = np.exp(-((distance / (0.25 * city.size_m)) ** 2)) + 1e-9
    return cars[int(rng.choice(len(cars), p=weight / weight.sum()))]


def _roads_ahead(graph: LaneGraph, ego: AgentSpec) -> Array:
    """Points [N, 2] of every lane the ego can reach within ROUTE_AHEAD_M."""
    start = graph.nearest(ego.x_m, ego.y_m, ego.yaw_rad)
    points, queue, seen = [np.array([[ego.x_m, ego.y_m]])], [] if start is None else [(start.lane, -start.s_m)], set()
    while queue:
        token, gone_m = queue.pop()
        if token in seen or gone_m > ROUTE_AHEAD_M:
            continue
        seen.add(token)
        lane = graph.lanes[token]
        points.append(lane.centerline[::5, :2])
        queue += [(t, gone_m + lane.length_m) for t in lane.outgoing]
    return np.concatenate(points)


def _ego_track(timestamps_us: NDArray[np.int64], xy_m: Array, yaw_rad: Array) -> EgoTrack:
    seconds = (timestamps_us - timestamps_us[0]) / 1e6
    fine = np.arange(0.0, seconds[-1], 1 / EGO_HZ)
    centre, yaw = CubicSpline(seconds, xy_m)(fine), CubicSpline(seconds, np.unwrap(yaw_rad))(fine)
    times = timestamps_us[0] + np.round(fine * 1e6).astype(np.int64)
    return EgoTrack(timestamps_us=times, ego_to_global=rear_axle_poses(centre, yaw))
