"""The traffic simulation: everyone moves in small steps and reacts to everyone else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import transform_from_xy_yaw, yaw_from_rotation
from dwm.scenes.lane_graph import LaneGraph, LanePoint
from dwm.traffic.crossings import crossing_gaps
from dwm.traffic.drivable import DrivableField
from dwm.traffic.lane_changes import LaneChanges
from dwm.traffic.obstacles import Discs, box_discs, concatenate
from dwm.traffic.pedestrians import Pedestrians
from dwm.traffic.routes import network_of
from dwm.traffic.types import AgentSpec, Rules, TrafficLog
from dwm.traffic.vehicles import Vehicles

Array = NDArray[np.float64]
EGO_SIZE_WLH_M = (1.85, 4.08, 1.6)
# From the ego frame's origin (rear axle) to the middle of the box.
REAR_AXLE_TO_CENTRE_M = 1.0
EGO_LOOKAHEAD_S = (0.0, 0.8, 1.6, 2.4, 3.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalEgo:
    """The ego vehicle at one moment, driven from outside."""

    xy_m: Array  # [2] centre of the box
    yaw_rad: float
    speed_mps: float
    ahead: Array  # [K, 3] x, y, yaw where it will be soon


class Simulation:
    """Agents on a lane graph; ``step`` moves all, ``add`` and ``remove`` work at any time. Slots keep the order of ``add``."""

    def __init__(
        self, graph: LaneGraph | None, rng: np.random.Generator, walkways: Sequence[Array] = (), rules: Rules | None = None,
        field: DrivableField | None = None,
    ) -> None:  # fmt: skip
        self.network = network_of(graph) if graph is not None and graph.lanes else None
        self.rng = rng
        self.vehicles = Vehicles(self.network, field)
        self.pedestrians = Pedestrians(self.network or field, walkways)
        self.rules, self.field = rules or Rules(), field
        self.lane_changes = LaneChanges(self.vehicles)
        self.specs: list[AgentSpec] = []
        self._slots: list[tuple[str, int]] = []
        self._static: list[tuple[float, float, float]] = []
        self._static_active: list[bool] = []
        self._static_sizes: list[tuple[float, float, float]] = []
        self._parked: Discs | None = None  # discs of what stands, until that changes

    def add(self, spec: AgentSpec) -> int:
        """The new agent's slot. Each agent has its own random stream, so that routes do not depend on who else is there."""
        own = np.random.default_rng(self.rng.integers(2**63))
        if spec.behaviour == "static":
            self._slots.append(("static", len(self._static)))
            self._static.append((spec.x_m, spec.y_m, spec.yaw_rad))
            self._static_sizes.append(spec.size_wlh_m)
            self._static_active.append(True)
            self._parked = None
        elif spec.behaviour == "pedestrian":
            self._slots.append(("pedestrian", len(self.pedestrians.follows)))
            self.pedestrians.add(spec, own)
        else:
            self._slots.append(("vehicle", len(self.vehicles.drivers)))
            self.vehicles.add(spec, own)
        self.specs.append(spec)
        return len(self.specs) - 1

    def remove(self, slot: int) -> None:
        """The agent is gone from now on."""
        kind, index = self._slots[slot]
        if kind == "static":
            self._static_active[index] = False
            self._parked = None
        elif kind == "pedestrian":
            self.pedestrians.active[index] = False
        else:
            self.vehicles.remove(index)

    def step(self, dt_s: float, ego: ExternalEgo | None = None) -> None:
        """Move all agents by ``dt_s`` among each other and an ego driven from outside."""
        vehicles, taken = [self.vehicles.discs(), self._parked_discs()], set[str]()
        if ego is not None:
            vehicles.append(self._ego_discs(ego))
            if self.network is not None:
                taken = set().union(*(self.network.connectors_at(*pose) for pose in ego.ahead))
        wheels = concatenate(vehicles)
        everyone = concatenate([wheels, self.pedestrians.discs()])
        if self.rules.lane_changes:
            self.lane_changes.step(everyone)
        stops = crossing_gaps(self.vehicles, self.pedestrians) if self.rules.stop_at_crossings else None
        self.vehicles.step(dt_s, everyone, taken, stops)
        self.pedestrians.step(dt_s, wheels)

    def _parked_discs(self) -> Discs:
        if self._parked is None:
            keep = [i for i, active in enumerate(self._static_active) if active]
            poses = np.array([self._static[i] for i in keep]).reshape(-1, 3)
            sizes = np.array([self._static_sizes[i] for i in keep]).reshape(-1, 3)
            alone = np.full(len(keep), -1)
            if self.field is not None and self.vehicles.obstacles is None and len(keep):
                # Once: what leaves later is out of sight.
                around = self.vehicles.poses()[0][0] if len(self.vehicles.s) else poses[0, :2]
                self.vehicles.obstacles = self.field.obstacles(poses[:, :2], poses[:, 2], sizes, around)
            self._parked = box_discs(poses[:, :2], poses[:, 2], sizes, np.zeros(len(keep)), 0.05, alone)
        return self._parked

    def _ego_discs(self, ego: ExternalEgo):
        return box_discs(
            ego.xy_m[None], np.array([ego.yaw_rad]), np.array([EGO_SIZE_WLH_M]), np.array([ego.speed_mps]), 0.3, np.array([-1])
        )

    def state(self) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
        """Positions [A, 2], headings [A], speeds [A] and presence [A] of all slots."""
        xy, yaw = self.vehicles.poses()
        walkers, count = self.pedestrians, len(self._static)
        still = np.array(self._static, dtype=np.float64).reshape(-1, 3)
        positions = np.concatenate([still[:, :2], walkers.xy, xy])
        headings = np.concatenate([still[:, 2], walkers.yaw, yaw])
        speeds = np.concatenate([np.zeros(count), walkers.v, self.vehicles.v])
        present = np.concatenate([np.array(self._static_active, dtype=bool), walkers.active, self.vehicles.active])
        first = {"static": 0, "pedestrian": count, "vehicle": count + len(walkers.yaw)}
        order = np.array([first[kind] + index for kind, index in self._slots], dtype=np.int64)
        return positions[order], headings[order], speeds[order], present[order]


def ego_at(ego_to_global: Array, timestamps_us: NDArray[np.int64], index: int) -> ExternalEgo:
    """The external ego at one frame of its path [T, 4, 4]."""
    times = timestamps_us * 1e-6
    yaw = yaw_from_rotation(ego_to_global)
    centre = ego_to_global[:, :2, 3] + REAR_AXLE_TO_CENTRE_M * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    other = index + 1 if index + 1 < len(times) else max(index - 1, 0)
    span = abs(times[other] - times[index])
    speed = float(np.linalg.norm(centre[other] - centre[index]) / span) if span > 0 else 0.0
    soon = np.unique(np.minimum(np.searchsorted(times, times[index] + np.array(EGO_LOOKAHEAD_S)), len(times) - 1))
    ahead = np.column_stack([centre[soon], yaw[soon]])
    return ExternalEgo(xy_m=centre[index], yaw_rad=float(yaw[index]), speed_mps=speed, ahead=ahead)


def simulate(
    graph: LaneGraph | None,
    specs: Sequence[AgentSpec],
    timestamps_us: NDArray[np.int64],
    rng: np.random.Generator,
    external_ego: Array | None = None,
    walkways: Sequence[Array] = (),
    rules: Rules | None = None,
) -> TrafficLog:
    """All agents at the given times [T]; the first is their initial state.

    ``external_ego`` [T, 4, 4] are poses (rear axle) of a car of EGO_SIZE_WLH_M that drives its own path and that others
    react to. ``walkways`` are polylines [K, 2] that pedestrians near them follow, crossings included.
    """
    simulation = Simulation(graph, rng, walkways, rules)
    for spec in specs:
        simulation.add(spec)
    states = []
    for index, now in enumerate(timestamps_us):
        if index:
            ego = ego_at(external_ego, timestamps_us, index - 1) if external_ego is not None else None
            simulation.step(float(now - timestamps_us[index - 1]) * 1e-6, ego)
        states.append(simulation.state())
    xy, yaw, speed, present = (np.stack([s[k] for s in states], axis=1) for k in range(4))
    return TrafficLog(tokens=tuple(s.token for s in specs), xy_m=xy, yaw_rad=yaw, speed_mps=speed, present=present)


def ego_spec(graph: LaneGraph, start: LanePoint, desired_speed_mps: float, speed_mps: float | None = None) -> AgentSpec:
    """The ego as one of the simulated vehicles, in the middle of its lane."""
    x, y, yaw = graph.lanes[start.lane].pose_at(start.s_m)
    return AgentSpec(
        token="ego", category="vehicle.car", detection_class="car", size_wlh_m=EGO_SIZE_WLH_M, x_m=float(x), y_m=float(y),
        yaw_rad=float(yaw), speed_mps=desired_speed_mps if speed_mps is None else speed_mps, behaviour="lane",
        desired_speed_mps=desired_speed_mps, stops_at_end=True,
    )  # fmt: skip


def drive_ego(
    graph: LaneGraph,
    start: LanePoint,
    timestamps_us: NDArray[np.int64],
    rng: np.random.Generator,
    desired_speed_mps: float,
    others: Sequence[AgentSpec] = (),
    walkways: Sequence[Array] = (),
) -> tuple[Array, TrafficLog]:
    """Ego poses [T, 4, 4] (rear axle, z = 0) of a car that drives among ``others``, and the others' log."""
    specs = [ego_spec(graph, start, desired_speed_mps), *others]
    log = simulate(graph, specs, timestamps_us, rng, walkways=walkways)
    poses = rear_axle_poses(log.xy_m[0], log.yaw_rad[0])
    rest = TrafficLog(
        tokens=log.tokens[1:], xy_m=log.xy_m[1:], yaw_rad=log.yaw_rad[1:], speed_mps=log.speed_mps[1:], present=log.present[1:]
    )
    return poses, rest


def rear_axle_poses(centre_xy_m: Array, yaw_rad: Array) -> Array:
    """Ego poses [T, 4, 4] of box centres [T, 2] and headings [T]."""
    x = centre_xy_m[:, 0] - REAR_AXLE_TO_CENTRE_M * np.cos(yaw_rad)
    y = centre_xy_m[:, 1] - REAR_AXLE_TO_CENTRE_M * np.sin(yaw_rad)
    return transform_from_xy_yaw(x, y, yaw_rad)
