"""The road network of the proving ground: junctions, roads, lanes and the connectors between them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dwm.geometry import wrap_angle
from dwm.scenes.lane_graph import Lane
from dwm.scenes.proving_ground.curves import Array, Piece, Pose, connect, sample, straight

LANE_WIDTH_M = 3.5
GUTTER_M = 0.3  # asphalt beyond the outer edge line
CURB_RADIUS_M = 6.0
CROSSING_DEPTH_M = 3.5
CROSSING_TO_STOP_M = 0.9
_BORDER_M, _SPACING_M, _JITTER_M = 30.0, 90.0, 7.0
_TRIM_RANGE_M = (14.0, 20.0)
_STRAIGHT_RAD = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Road:
    """A straight road from node a to node b; lanes begin ``trim_a_m`` after a and end ``trim_b_m`` before b."""

    index: int
    a: int
    b: int
    start_m: Array  # [2] position of node a
    end_m: Array  # [2] position of node b
    lanes_each_way: int
    speed_mps: float
    trim_a_m: float = 0.0
    trim_b_m: float = 0.0

    @property
    def length_m(self) -> float:
        return float(np.linalg.norm(self.end_m - self.start_m))

    @property
    def yaw_rad(self) -> float:
        dx, dy = self.end_m - self.start_m
        return float(np.arctan2(dy, dx))

    @property
    def half_width_m(self) -> float:
        return self.lanes_each_way * LANE_WIDTH_M + GUTTER_M

    def point(self, along_m: float | Array, left_m: float | Array) -> Array:
        """Points [..., 2] at a distance from a and to the left of the axis."""
        c, s = np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        along, left = np.broadcast_arrays(np.asarray(along_m, float), np.asarray(left_m, float))
        return self.start_m + np.stack([along * c - left * s, along * s + left * c], -1)

    def strip(self, left_m: float, from_m: float | None = None, to_m: float | None = None) -> Array:
        """The line [2, 2] parallel to the axis between the trimmed ends (or other distances from a)."""
        begin = self.trim_a_m if from_m is None else from_m
        end = self.length_m - self.trim_b_m if to_m is None else to_m
        return self.point(np.array([begin, end]), left_m)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A road as seen from one of its nodes. Lane tuples run from the leftmost in driving direction to the rightmost."""

    road: Road
    at_start: bool  # whether the node is the road's node a
    incoming: tuple[str, ...]  # lanes that end at the node
    outgoing: tuple[str, ...]

    @property
    def outward_yaw_rad(self) -> float:
        return self.road.yaw_rad if self.at_start else float(wrap_angle(self.road.yaw_rad + np.pi))

    @property
    def trim_m(self) -> float:
        return self.road.trim_a_m if self.at_start else self.road.trim_b_m

    def point(self, outward_m: float | Array, left_m: float | Array) -> Array:
        """Points [..., 2] at a distance from the node and to the left when looking away from it."""
        if self.at_start:
            return self.road.point(outward_m, left_m)
        return self.road.point(self.road.length_m - np.asarray(outward_m, float), -np.asarray(left_m, float))


@dataclass(frozen=True, slots=True, kw_only=True)
class Junction:
    """A node with its arms in counter-clockwise order. A node of two arms is a bend of one road."""

    index: int
    position_m: Array  # [2]
    arms: tuple[Arm, ...]

    @property
    def is_bend(self) -> bool:
        return len(self.arms) == 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RoadNetwork:
    """Roads, junctions and lanes; ``paths`` holds every lane in closed form."""

    seed: int
    roads: tuple[Road, ...]
    junctions: tuple[Junction, ...]
    lanes: dict[str, Lane]
    paths: dict[str, tuple[Piece, ...]]


def token(seed: int, *parts: object) -> str:
    """A nuScenes-like token (32 hexadecimal digits) for a named thing of one city."""
    return hashlib.md5("/".join(map(str, (seed, *parts))).encode()).hexdigest()


def build_network(seed: int, size_m: float, rng: np.random.Generator) -> RoadNetwork:
    """A strongly connected network: every lane can be reached from every other."""
    n = max(2, round((size_m - 2 * _BORDER_M) / _SPACING_M) + 1)
    nodes = _place_nodes(n, size_m, rng)
    grid_edges = [(i * n + j, i * n + j + 1) for i in range(n) for j in range(n - 1)]
    grid_edges += [(i * n + j, (i + 1) * n + j) for i in range(n - 1) for j in range(n)]
    arterial = rng.random(2 * n) < 0.45
    speeds = np.where(arterial, rng.uniform(11, 14, 2 * n), rng.uniform(8, 11, 2 * n))

    def with_edges(edges: list[tuple[int, int]]) -> RoadNetwork:
        lines = [a // n if b == a + 1 else n + a % n for a, b in edges]
        roads = [
            Road(
                index=index, a=a, b=b, start_m=nodes[a], end_m=nodes[b],
                lanes_each_way=2 if arterial[line] else 1, speed_mps=float(speeds[line]),
            )
            for index, ((a, b), line) in enumerate(zip(edges, lines, strict=True))
        ]  # fmt: skip
        return _with_lanes(seed, nodes, _trim(roads))

    for edges in (_drop_edges(grid_edges, n * n, len(grid_edges) // 7, rng), grid_edges):
        network = with_edges(edges)
        if strongly_connected(network.lanes):
            return network
    # In the smallest towns the two lanes of a road can lead into circuits that never meet without a lane change.
    arterial[:] = False
    return with_edges(grid_edges)


def strongly_connected(lanes: dict[str, Lane]) -> bool:
    """Whether every lane can be reached from every other."""
    order = {name: i for i, name in enumerate(lanes)}
    pairs = np.array([(order[a], order[b]) for a, lane in lanes.items() for b in lane.outgoing]).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(order), len(order)))
    return connected_components(graph, directed=True, connection="strong", return_labels=False) == 1


def _place_nodes(n: int, size_m: float, rng: np.random.Generator) -> Array:
    axes = []
    for _ in range(2):
        steps = rng.uniform(0.84, 1.16, n - 1)
        axes.append(_BORDER_M + np.concatenate([[0.0], np.cumsum(steps) / steps.sum()]) * (size_m - 2 * _BORDER_M))
    y, x = np.meshgrid(axes[1], axes[0], indexing="ij")
    return np.stack([x, y], -1).reshape(-1, 2) + rng.uniform(-_JITTER_M, _JITTER_M, (n * n, 2))


def _drop_edges(edges: list[tuple[int, int]], n_nodes: int, drop: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """The edges without up to ``drop`` random ones; every node keeps two roads, and the graph stays in one piece."""
    kept = list(edges)
    for index in rng.permutation(len(edges))[: 3 * drop]:
        rest = [edge for edge in kept if edge != edges[index]]
        ends = np.array(rest)
        degrees = np.bincount(ends.ravel(), minlength=n_nodes)
        graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n_nodes, n_nodes))
        if len(kept) > len(edges) - drop and degrees.min() >= 2 and connected_components(graph, return_labels=False) == 1:
            kept = rest
    return kept


def _arms_at(roads: list[Road], node: int) -> list[Arm]:
    arms = [Arm(road=r, at_start=r.a == node, incoming=(), outgoing=()) for r in roads if node in (r.a, r.b)]
    return sorted(arms, key=lambda arm: arm.outward_yaw_rad)


def _trim(roads: list[Road]) -> list[Road]:
    """Roads shortened so that curb returns, crossings and stop lines fit between lane ends and junction."""
    trims: dict[tuple[int, bool], float] = {}
    for node in {node for road in roads for node in (road.a, road.b)}:
        arms = _arms_at(roads, node)
        distances = [_corner_distance(arm, arms) + CURB_RADIUS_M + CROSSING_DEPTH_M + CROSSING_TO_STOP_M + 0.3 for arm in arms]
        if len(arms) == 2:  # equal trims make the lanes of a bend concentric
            distances = [_TRIM_RANGE_M[1]] * 2
        for arm, distance in zip(arms, distances, strict=True):
            trims[arm.road.index, arm.at_start] = float(np.clip(distance, *_TRIM_RANGE_M))
    return [replace(road, trim_a_m=trims[road.index, True], trim_b_m=trims[road.index, False]) for road in roads]


def _corner_distance(arm: Arm, arms: list[Arm]) -> float:
    """Distance from the node, along the arm, of the farther of its two curb corners."""
    farthest = 0.0
    for other in arms:
        gap = abs(float(wrap_angle(other.outward_yaw_rad - arm.outward_yaw_rad)))
        if other is not arm and gap < 2.6:
            w, v = arm.road.half_width_m, other.road.half_width_m
            farthest = max(farthest, (v + w * np.cos(gap)) / np.sin(gap))
    return farthest


def _with_lanes(seed: int, nodes: Array, roads: list[Road]) -> RoadNetwork:
    paths: dict[str, tuple[Piece, ...]] = {}
    speeds: dict[str, float] = {}
    sides: dict[str, tuple[str | None, str | None]] = {}
    by_direction: dict[tuple[int, bool], tuple[str, ...]] = {}
    for road in roads:
        for forward in (True, False):
            names = tuple(token(seed, "lane", road.index, forward, i) for i in range(road.lanes_each_way))
            by_direction[road.index, forward] = names
            for i, name in enumerate(names):
                paths[name], speeds[name] = (_lane_path(road, forward, i),), road.speed_mps
                sides[name] = (names[i - 1] if i else None, names[i + 1] if i + 1 < len(names) else None)
    junctions = []
    for node, position in enumerate(nodes):
        arms = [
            replace(
                arm,
                incoming=by_direction[arm.road.index, not arm.at_start],
                outgoing=by_direction[arm.road.index, arm.at_start],
            )
            for arm in _arms_at(roads, node)
        ]
        junctions.append(Junction(index=node, position_m=position, arms=tuple(arms)))
    links = [link for junction in junctions for link in _links(junction)]
    for before, after in links:
        name = token(seed, "connector", before, after)
        paths[name] = connect(paths[before][-1].end, paths[after][0].start)
        speeds[name] = _connector_speed(paths[name], min(speeds[before], speeds[after]))
    lanes = _lanes(seed, paths, speeds, sides, links)
    return RoadNetwork(seed=seed, roads=tuple(roads), junctions=tuple(junctions), lanes=lanes, paths=paths)


def _lane_path(road: Road, forward: bool, index: int) -> Piece:
    offset = (index + 0.5) * LANE_WIDTH_M
    line = road.strip(-offset) if forward else road.strip(offset)[::-1]
    yaw = road.yaw_rad if forward else float(wrap_angle(road.yaw_rad + np.pi))
    start: Pose = (float(line[0, 0]), float(line[0, 1]), yaw)
    return straight(start, float(np.linalg.norm(line[1] - line[0])))


def _links(junction: Junction) -> list[tuple[str, str]]:
    """Pairs (incoming lane, outgoing lane): right from the right lane, left from the left, straight keeps its lane."""
    links: list[tuple[str, str]] = []
    for source in junction.arms:
        for target in junction.arms:
            if source is target:
                continue
            turn = float(wrap_angle(target.outward_yaw_rad - source.outward_yaw_rad - np.pi))
            if junction.is_bend or abs(turn) < _STRAIGHT_RAD:
                links += _lane_by_lane(source.incoming, target.outgoing)
            elif turn > 0:
                links.append((source.incoming[0], target.outgoing[0]))
            else:
                links.append((source.incoming[-1], target.outgoing[-1]))
    return links + _missing_links(junction, links)


def _lane_by_lane(incoming: tuple[str, ...], outgoing: tuple[str, ...]) -> list[tuple[str, str]]:
    count = max(len(incoming), len(outgoing))
    return [(incoming[min(i, len(incoming) - 1)], outgoing[min(i, len(outgoing) - 1)]) for i in range(count)]


def _missing_links(junction: Junction, links: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Links that give every lane at a junction a way in and a way out, copied from the lane next to it."""
    extra: list[tuple[str, str]] = []
    for arm in junction.arms:
        for lane in arm.incoming:
            if all(before != lane for before, _ in links):
                extra.append((lane, next(after for before, after in links if before in arm.incoming)))
        for lane in arm.outgoing:
            if all(after != lane for _, after in links):
                extra.append((next(before for before, after in links if after in arm.outgoing), lane))
    return extra


def _connector_speed(path: tuple[Piece, ...], limit_mps: float) -> float:
    """Turns are driven at 5 to 7 m/s, near 3 m/s^2 of lateral acceleration; straight connectors at the road's speed."""
    sharpest = max(abs(piece.curvature) for piece in path)
    if sharpest < 1 / 40:
        return limit_mps
    return min(limit_mps, float(np.clip(np.sqrt(3.0 / sharpest), 5.0, 7.0)))


def _lanes(
    seed: int,
    paths: dict[str, tuple[Piece, ...]],
    speeds: dict[str, float],
    sides: dict[str, tuple[str | None, str | None]],
    links: list[tuple[str, str]],
) -> dict[str, Lane]:
    incoming: dict[str, list[str]] = {name: [] for name in paths}
    outgoing: dict[str, list[str]] = {name: [] for name in paths}
    for before, after in links:
        name = token(seed, "connector", before, after)
        outgoing[before].append(name)
        incoming[after].append(name)
        incoming[name], outgoing[name] = [before], [after]
    lanes = {}
    for name, path in paths.items():
        left, right = sides.get(name, (None, None))
        lanes[name] = Lane(
            token=name, centerline=sample(path, 0.5), is_connector=name not in sides, incoming=tuple(incoming[name]),
            outgoing=tuple(outgoing[name]), left=left, right=right, speed_limit_mps=speeds[name], width_m=LANE_WIDTH_M,
        )  # fmt: skip
    return lanes
