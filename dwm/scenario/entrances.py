"""Who enters beyond the log: vehicles and pedestrians at the edge of sight, as many and of such kinds as the log had."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import rotation_from_quaternion, wrap_angle, yaw_from_rotation
from dwm.scenes.lane_graph import LaneGraph
from dwm.scenes.types import MAP_LAYERS, AgentTrack, Scene
from dwm.traffic.drivable import DrivableField, drivable_field
from dwm.traffic.populate import KINDS, MOVING_SHARES, Kind, make_spec, vehicle_on_lane
from dwm.traffic.simulate import Simulation
from dwm.traffic.types import AgentSpec

Array = NDArray[np.float64]
VISIBLE_M = 100.0  # agents farther from the ego are dropped
NEAR_M = 50.0
ENTRY_M = (60.0, 95.0)  # nobody appears nearer to the ego
VEHICLE_SPACE_M, PEDESTRIAN_SPACE_M = 18.0, 4.0  # to everybody else
PLACE_EVERY_M = 4.0
MOVED_M = {"vehicle": 2.0, "human": 1.0}  # who moved less over the log stands
SLOW_MPS = 4.5  # who never gets faster parks or queues and says nothing about the usual speed
ROADSIDE_M = (-3.5, -1.0)  # from the edge of the road, where no walkway is known
WAITING = ("vehicle.stopped", "cycle.with_rider")  # somebody at the wheel who means to drive on (nuScenes attributes)
PARTICIPATES = {"vehicle": ("lane", "free"), "human": ("pedestrian",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTraffic:
    """What the log says about those who move in it."""

    count: dict[str, int]  # by group (vehicle, human): number within sight
    shares: dict[str, float]  # of the kinds of moving vehicles
    speeds_mps: Array  # [N] free speed of each moving vehicle, the ego's first if it moved


def takes_part(agent: AgentTrack) -> bool:
    """Whether a vehicle or person gets anywhere during the log, or waits to."""
    least = MOVED_M.get(agent.category.split(".")[0])
    if any(attribute in WAITING for attribute in agent.attributes):
        return True
    return least is not None and float(np.abs(agent.centers_m[:, :2] - agent.centers_m[0, :2]).max()) > least


def free_speed_mps(velocities_mps: Array) -> float:
    """The speed that is rarely exceeded (90th percentile) of velocities [N, 2], 0 where all are unknown."""
    speed = np.linalg.norm(velocities_mps, axis=1)
    speed = speed[np.isfinite(speed)]
    return float(np.percentile(speed, 90)) if len(speed) else 0.0


def log_traffic(scene: Scene) -> LogTraffic:
    """Numbers, kinds and speeds of the moving agents of a log."""
    keys = scene.key_timestamps_us
    here = scene.ego.at(keys)[:, :2, 3]
    counts = {(group, reach): np.zeros(len(keys)) for group in MOVED_M for reach in (NEAR_M, VISIBLE_M)}
    shares = {name: share * 2 for name, share in MOVING_SHARES.items()}
    step = np.diff(scene.ego.ego_to_global[:, :2, 3], axis=0)
    own = free_speed_mps(step / np.maximum(np.diff(scene.ego.timestamps_us)[:, None] * 1e-6, 1e-6))
    speeds = [own] if own > 1.0 else []
    for agent in scene.agents:
        if not takes_part(agent):
            continue
        group, at = agent.category.split(".")[0], np.isin(keys, agent.timestamps_us)
        away = np.linalg.norm(agent.centers_m[np.isin(agent.timestamps_us, keys), :2] - here[at], axis=1)
        for reach in (NEAR_M, VISIBLE_M):
            counts[group, reach][np.flatnonzero(at)[away < reach]] += 1
        if group == "vehicle":
            speeds.append(free_speed_mps(agent.velocities_mps))
            if agent.detection_class in shares:
                shares[agent.detection_class] += 1.0
    total = sum(shares.values())
    return LogTraffic(
        count={group: _whole_count(counts[group, NEAR_M], counts[group, VISIBLE_M]) for group in MOVED_M},
        shares={name: share / total for name, share in shares.items()},
        speeds_mps=np.array([s for s in speeds if s > SLOW_MPS]),
    )


def _whole_count(near: Array, visible: Array) -> int:
    """Annotations thin out with distance: where more were near, as many are taken to be on the second half of the way out."""
    if len(near) == 0:
        return 0
    return round(max(float(np.median(visible)), float(np.median(near)) * VISIBLE_M / NEAR_M))


class Entrances:
    """Lets one vehicle and one pedestrian in at a time while there are fewer than in the log."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene, self.seed, self.admitted = scene, seed, 0
        self.rng = np.random.default_rng(entropy(scene, seed, "entrances"))
        self.log = log_traffic(scene)
        self.graph = scene.map.lane_graph if scene.map.lane_graph is not None and scene.map.lane_graph.lanes else None
        self.field = drivable_field(scene.map)
        self.poses = lane_places(self.graph)[0] if self.graph is not None else _logged_places(scene, self.field)
        self.walks = _walk_places(scene, self.field)

    def admit(self, simulation: Simulation, ego_xy: Array, xy: Array, present: NDArray[np.bool_], first: int) -> None:
        """Add who is missing; slots before ``first`` are not agents of the log."""
        behaviours = np.array([spec.behaviour for spec in simulation.specs])
        for group, places, space in (
            ("vehicle", self.poses, VEHICLE_SPACE_M), ("human", self.walks, PEDESTRIAN_SPACE_M),
        ):  # fmt: skip
            there = int((present & np.isin(behaviours, PARTICIPATES[group]))[first:].sum())
            if there >= self.log.count[group]:
                continue
            place = self._choose(places, ego_xy, xy[present], space)
            if place is not None:
                simulation.add(self._vehicle(place) if group == "vehicle" else self._pedestrian(place))
                self.admitted += 1

    def _choose(self, places: Array, ego_xy: Array, others_xy: Array, space_m: float) -> int | None:
        """A free place near the edge of sight, if there is one from which the way leads towards the ego."""
        offset = ego_xy - places[:, :2]
        away = np.hypot(*offset.T)
        candidates = np.flatnonzero((away > ENTRY_M[0]) & (away < ENTRY_M[1]))
        if len(others_xy) and len(candidates):
            x, y = places[candidates, :2].T
            apart = np.hypot(x[:, None] - others_xy[:, 0], y[:, None] - others_xy[:, 1]).min(axis=1)
            candidates = candidates[apart > space_m]
        if len(candidates) == 0:
            return None
        towards = np.cos(np.arctan2(*offset[candidates].T[::-1]) - places[candidates, 2]) > 0.3
        return int(self.rng.choice(candidates[towards] if towards.any() else candidates))

    def _vehicle(self, place: int) -> AgentSpec:
        names, shares = list(self.log.shares), np.array(list(self.log.shares.values()))
        kind, token = KINDS[str(self.rng.choice(names, p=shares / shares.sum()))], self._token()
        if self.graph is not None:
            _, lanes, arc = lane_places(self.graph)
            spec = vehicle_on_lane(self.graph, self.graph.lanes[lanes[place]], float(arc[place]), kind, token, self.rng)
        else:
            desired = float(self.rng.uniform(*kind.speed_mps))
            spec = make_spec(kind, token, self.rng, *_floats(self.poses[place]), "free", desired, desired)
        desired = self._desired(kind, spec.desired_speed_mps)
        return replace(spec, desired_speed_mps=desired, speed_mps=min(spec.speed_mps, desired))

    def _desired(self, kind: Kind, otherwise: float) -> float:
        if len(self.log.speeds_mps) == 0 or kind.detection_class == "bicycle":
            return otherwise
        return float(np.clip(self.rng.choice(self.log.speeds_mps) * self.rng.uniform(1.0, 1.15), 4.0, 20.0))

    def _pedestrian(self, place: int) -> AgentSpec:
        kind = KINDS["pedestrian"]
        speed = float(self.rng.uniform(*kind.speed_mps))
        return make_spec(kind, self._token(), self.rng, *_floats(self.walks[place]), "pedestrian", speed, speed)

    def _token(self) -> str:
        return hashlib.sha256(f"{self.scene.token}/{self.seed}/{self.admitted}".encode()).hexdigest()[:32]


@lru_cache(maxsize=8)
def lane_places(graph: LaneGraph) -> tuple[Array, tuple[str, ...], Array]:
    """Places where a vehicle may enter: poses [N, 3], the lane of each and the distance along it [N]."""
    poses, owners, arcs = [], [], []
    for lane in graph.lanes.values():
        if lane.is_connector or lane.length_m <= 2 * PLACE_EVERY_M:
            continue
        arc = np.arange(PLACE_EVERY_M, lane.length_m - PLACE_EVERY_M, PLACE_EVERY_M)
        poses.append(lane.pose_at(arc))
        owners += [lane.token] * len(arc)
        arcs.append(arc)
    if not poses:
        return np.zeros((0, 3)), (), np.zeros(0)
    return np.concatenate(poses), tuple(owners), np.concatenate(arcs)


def _logged_places(scene: Scene, field: DrivableField | None) -> Array:
    """Without lanes: where vehicles, the ego among them, drove in the log [N, 3]; they show which way the road goes."""
    times = scene.ego.timestamps_us[::20]
    track = scene.ego.at(times)
    parts = [np.column_stack([track[:, :2, 3], yaw_from_rotation(track)])]
    for agent in scene.agents:
        if agent.category.startswith("vehicle.") and takes_part(agent):
            speed = np.linalg.norm(np.nan_to_num(agent.velocities_mps), axis=1)
            yaw = yaw_from_rotation(rotation_from_quaternion(agent.rotations_wxyz))
            parts.append(np.column_stack([agent.centers_m[:, :2], yaw])[speed > 2.0])
    poses = np.concatenate(parts)
    return poses[field.on_road(poses[:, :2])] if field is not None else np.zeros((0, 3))


def _walk_places(scene: Scene, field: DrivableField | None) -> Array:
    """Walkway, or roadside where no walkway is known, every few metres [N, 3]; headings along the road's edge."""
    if field is None:
        return np.zeros((0, 3))
    scene_map = scene.map
    stride = max(round(PLACE_EVERY_M / scene_map.metres_per_pixel), 1)
    walkway = scene_map.layers[MAP_LAYERS.index("walkway")]
    rows, cols = (np.arange(stride // 2, size, stride) for size in walkway.shape)
    grid = np.stack(np.meshgrid(cols, rows), axis=-1).reshape(-1, 2)
    points = scene_map.origin_xy_m + (grid + 0.5) * scene_map.metres_per_pixel
    edge = field.edge_m(points)
    known = walkway[grid[:, 1], grid[:, 0]] > 0
    keep = (known & (edge < -0.5)) if known.any() else (edge > ROADSIDE_M[0]) & (edge < ROADSIDE_M[1])
    points = points[keep]
    step = field.cell_m
    slope = [field.edge_m(points + d) - field.edge_m(points - d) for d in (np.array([step, 0.0]), np.array([0.0, step]))]
    along = np.arctan2(slope[1], slope[0]) + np.pi / 2
    # Both ways, in turn.
    return np.column_stack([points, wrap_angle(along + np.pi * (np.arange(len(points)) % 2))])


def _floats(pose: Array) -> tuple[float, float, float]:
    x, y, yaw = (float(v) for v in pose)
    return x, y, yaw


def entropy(scene: Scene, seed: int, purpose: str) -> int:
    """A seed that differs between scenes, seeds and purposes."""
    return int.from_bytes(hashlib.sha256(f"{scene.token}/{seed}/{purpose}".encode()).digest()[:8], "big")
