"""Who is on the streets of the proving ground at the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dwm.scenes.lane_graph import Lane, LaneGraph
from dwm.traffic.routes import network_of
from dwm.traffic.types import AgentSpec, Behaviour

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of agent: name, mean size (width, length, height) [m] and desired speed range [m/s]."""

    category: str
    detection_class: str
    size_wlh_m: tuple[float, float, float]
    speed_mps: tuple[float, float] = (0.0, 0.0)


# Sizes near the means of nuScenes.
KINDS = {
    kind.detection_class: kind
    for kind in (
        Kind(category="vehicle.car", detection_class="car", size_wlh_m=(1.95, 4.6, 1.73), speed_mps=(8.0, 13.5)),
        Kind(category="vehicle.truck", detection_class="truck", size_wlh_m=(2.5, 6.9, 2.8), speed_mps=(7.0, 11.0)),
        Kind(category="vehicle.bus.rigid", detection_class="bus", size_wlh_m=(2.9, 11.0, 3.5), speed_mps=(7.0, 10.0)),
        Kind(category="vehicle.trailer", detection_class="trailer", size_wlh_m=(2.9, 12.0, 3.9)),
        Kind(category="vehicle.construction", detection_class="construction_vehicle", size_wlh_m=(2.8, 6.4, 3.2)),
        Kind(
            category="human.pedestrian.adult", detection_class="pedestrian", size_wlh_m=(0.67, 0.73, 1.77), speed_mps=(0.8, 1.6)
        ),
        Kind(category="vehicle.motorcycle", detection_class="motorcycle", size_wlh_m=(0.77, 2.1, 1.5), speed_mps=(8.0, 13.0)),
        Kind(category="vehicle.bicycle", detection_class="bicycle", size_wlh_m=(0.6, 1.7, 1.3), speed_mps=(4.0, 6.0)),
        Kind(category="movable_object.trafficcone", detection_class="traffic_cone", size_wlh_m=(0.41, 0.41, 1.07)),
        Kind(category="movable_object.barrier", detection_class="barrier", size_wlh_m=(2.5, 0.5, 0.98)),
    )
}
# The first of each kind come before shares decide, so that every class appears.
MOVING_FIRST = ("car", "truck", "bus", "motorcycle", "bicycle", "car", "car", "car")
MOVING_SHARES = {"car": 0.66, "truck": 0.12, "bus": 0.06, "motorcycle": 0.08, "bicycle": 0.08}
STATIC_FIRST = ("car", "traffic_cone", "barrier", "construction_vehicle", "trailer", "car", "car")
STATIC_SHARES = {"car": 0.62, "truck": 0.08, "traffic_cone": 0.1, "barrier": 0.1, "construction_vehicle": 0.05, "trailer": 0.05}
GROUPS = {"traffic_cone": (3, 5, 2.5), "barrier": (2, 4, 2.8)}  # fewest, most, spacing [m]
EDGE_CLEARANCE_M = 0.1
ATTEMPTS = 60


class _Crowd:
    """Agents so far; refuses the ones that would touch."""

    def __init__(self, keep_clear: Sequence[AgentSpec]) -> None:
        self.specs: list[AgentSpec] = []
        self._taken = [(s.x_m, s.y_m, s.yaw_rad, *s.size_wlh_m[:2]) for s in keep_clear]

    def try_add(self, spec: AgentSpec, gap_m: float) -> bool:
        box = (spec.x_m, spec.y_m, spec.yaw_rad, *spec.size_wlh_m[:2])
        if any(_too_close(box, other, gap_m) for other in self._taken):
            return False
        self._taken.append(box)
        self.specs.append(spec)
        return True


def populate(
    graph: LaneGraph,
    rng: np.random.Generator,
    n_vehicles: int,
    n_pedestrians: int,
    n_static: int,
    walkways: Sequence[Array] = (),
    keep_clear: Sequence[AgentSpec] = (),
    edge_clearance_m: float = EDGE_CLEARANCE_M,
) -> list[AgentSpec]:
    """Moving vehicles, pedestrians and standing objects that do not touch each other or ``keep_clear``.

    With at least 8 vehicles, 7 static objects and 1 pedestrian all ten detection classes appear. Standing objects stay
    ``edge_clearance_m`` outside the right edge of a lane without a right neighbour; cones and barriers count as one object
    per group. Where there is no room, fewer are made.
    """
    crowd = _Crowd(keep_clear)
    lanes = [lane for lane in graph.lanes.values() if not lane.is_connector and lane.length_m > 12.0]
    edges = [lane for lane in lanes if lane.right is None and lane.length_m > 30.0]
    if lanes:
        for name in _names(rng, n_vehicles, MOVING_FIRST, MOVING_SHARES):
            _retry(lambda name=name: _add_vehicle(crowd, graph, rng, lanes, KINDS[name]))
    if edges:
        for name in _names(rng, n_static, STATIC_FIRST, STATIC_SHARES):
            _retry(lambda name=name: _add_static(crowd, rng, edges, KINDS[name], edge_clearance_m))
    for _ in range(n_pedestrians if walkways or edges else 0):
        _retry(lambda: _add_pedestrian(crowd, rng, edges, walkways))
    return crowd.specs


def make_spec(
    kind: Kind, token: str, rng: np.random.Generator, x_m: float, y_m: float, yaw_rad: float, behaviour: Behaviour,
    speed_mps: float = 0.0, desired_mps: float = 0.0,
) -> AgentSpec:  # fmt: skip
    """An agent of a kind, its size spread by a few percent."""
    w, length, h = (float(v) for v in np.asarray(kind.size_wlh_m) * np.clip(rng.normal(1.0, 0.05, 3), 0.88, 1.12))
    return AgentSpec(
        token=token, category=kind.category, detection_class=kind.detection_class, size_wlh_m=(min(w, 2.95), length, h),
        x_m=float(x_m), y_m=float(y_m), yaw_rad=float(yaw_rad), speed_mps=float(speed_mps), behaviour=behaviour, desired_speed_mps=float(desired_mps),
    )  # fmt: skip


def new_token(rng: np.random.Generator) -> str:
    """A 32-digit hexadecimal token, as nuScenes uses."""
    return rng.bytes(16).hex()


def vehicle_on_lane(graph: LaneGraph, lane: Lane, s_m: float, kind: Kind, token: str, rng: np.random.Generator) -> AgentSpec:
    """A vehicle at lane speed."""
    x, y, yaw = lane.pose_at(s_m)
    desired = float(rng.uniform(*kind.speed_mps))
    limit = float(np.interp(s_m, lane.arc_m, network_of(graph).speed_limits[lane.token]))
    # Slow enough to give way at the end of the lane.
    to_end = max(lane.length_m - s_m - kind.size_wlh_m[1] / 2 - 1.0, 0.0)
    return make_spec(kind, token, rng, x, y, yaw, "lane", min(desired, limit, np.sqrt(4.0 * to_end)), desired)


def _names(rng: np.random.Generator, count: int, first: tuple[str, ...], shares: dict[str, float]) -> list[str]:
    rest = rng.choice(list(shares), size=max(count - len(first), 0), p=np.array(list(shares.values())) / sum(shares.values()))
    return [*first[:count], *(str(name) for name in rest)]


def _retry(attempt) -> bool:
    return any(attempt() for _ in range(ATTEMPTS))


def _pick(rng: np.random.Generator, lanes: list[Lane], end_clearance_m: float) -> tuple[Lane, float]:
    lengths = np.array([lane.length_m for lane in lanes])
    lane = lanes[int(rng.choice(len(lanes), p=lengths / lengths.sum()))]
    margin = min(end_clearance_m, lane.length_m * 0.4)
    return lane, float(rng.uniform(margin, lane.length_m - margin))


def _add_vehicle(crowd: _Crowd, graph: LaneGraph, rng: np.random.Generator, lanes: list[Lane], kind: Kind) -> bool:
    lane, s = _pick(rng, lanes, 6.0)
    return crowd.try_add(vehicle_on_lane(graph, lane, s, kind, new_token(rng), rng), 6.0)


def _add_static(crowd: _Crowd, rng: np.random.Generator, edges: list[Lane], kind: Kind, clearance_m: float) -> bool:
    lane, s = _pick(rng, edges, 12.0)
    if kind.detection_class not in GROUPS:
        return crowd.try_add(_beside(lane, s, kind, rng, clearance_m), 0.8)
    fewest, most, spacing = GROUPS[kind.detection_class]
    placed = [
        crowd.try_add(_beside(lane, s + i * spacing, kind, rng, 0.0), 0.05) for i in range(int(rng.integers(fewest, most + 1)))
    ]
    return any(placed)


def _beside(lane: Lane, s_m: float, kind: Kind, rng: np.random.Generator, clearance_m: float) -> AgentSpec:
    """An object whose inner face is ``clearance_m`` outside the right edge of the lane."""
    spec = make_spec(kind, new_token(rng), rng, 0.0, 0.0, 0.0, "static")
    w, length = spec.size_wlh_m[:2]
    # A barrier is wider than long: its width runs along the lane.
    turned = w > 1.5 * length
    x, y, yaw = lane.pose_at(s_m)
    lateral = -(lane.width_m / 2 + clearance_m + (length if turned else w) / 2)
    heading = yaw + (np.pi / 2 if turned else 0.0) + rng.normal(0.0, 0.01)
    return replace(spec, x_m=float(x - lateral * np.sin(yaw)), y_m=float(y + lateral * np.cos(yaw)), yaw_rad=float(heading))


def _add_pedestrian(crowd: _Crowd, rng: np.random.Generator, edges: list[Lane], walkways: Sequence[Array]) -> bool:
    kind = KINDS["pedestrian"]
    if walkways:
        lengths = np.array([np.linalg.norm(np.diff(w[:, :2], axis=0), axis=1).sum() for w in walkways])
        way = walkways[int(rng.choice(len(walkways), p=lengths / lengths.sum()))]
        i = int(rng.integers(len(way) - 1))
        x, y = way[i, :2] + rng.uniform() * (way[i + 1, :2] - way[i, :2])
        yaw, lateral = np.arctan2(*(way[i + 1, :2] - way[i, :2])[::-1]), rng.uniform(-0.5, 0.5)
    else:
        lane, s = _pick(rng, edges, 4.0)
        x, y, yaw = lane.pose_at(s)
        lateral = -(lane.width_m / 2 + 2.0)
    x, y = x - lateral * np.sin(yaw), y + lateral * np.cos(yaw)
    heading = yaw + (np.pi if rng.uniform() < 0.5 else 0.0)
    speed = float(rng.uniform(*kind.speed_mps))
    return crowd.try_add(make_spec(kind, new_token(rng), rng, x, y, heading, "pedestrian", speed, speed), 0.4)


def _too_close(a: tuple[float, ...], b: tuple[float, ...], gap_m: float) -> bool:
    """Whether two boxes (x, y, yaw, width, length), grown by half the gap along their length, overlap."""
    if np.hypot(a[0] - b[0], a[1] - b[1]) > (a[3] + a[4] + b[3] + b[4]) / 2 + gap_m:
        return False
    separation = np.array([b[0] - a[0], b[1] - a[1]])
    for yaw in (a[2], a[2] + np.pi / 2, b[2], b[2] + np.pi / 2):
        axis = np.array([np.cos(yaw), np.sin(yaw)])
        reach = sum(
            (box[4] + gap_m) / 2 * abs(np.cos(box[2] - yaw)) + (box[3] + 0.2) / 2 * abs(np.sin(box[2] - yaw)) for box in (a, b)
        )
        if abs(separation @ axis) > reach:
            return False
    return True
