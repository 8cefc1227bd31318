"""What traffic needs to know about a lane graph: speed profiles, conflicts, reach, where the road is, and sampled paths."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import KDTree

from dwm.geometry import wrap_angle
from dwm.scenes.lane_graph import Lane, LaneGraph

Array = NDArray[np.float64]
LATERAL_ACCELERATION_MPS2 = 2.0
APPROACH_DECELERATION_MPS2 = 1.2  # how early a driver slows for a curve
PATH_POINTS = 224  # one point per metre
CONFLICT_DISTANCE_M = 2.8  # the wide ones need room to turn; lanes side by side are further apart
FAR_M = 2000.0
ON_ROAD_M = 0.2


@dataclass(slots=True, kw_only=True)
class Route:
    """Lanes ahead of a vehicle; the sampled path starts ``offset_m`` after the start of the first lane."""

    lanes: list[str]
    offset_m: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledPath:
    """A route as one point per metre; points past its end are NaN."""

    points: Array  # [PATH_POINTS, 4] x, y, yaw (unwrapped), speed limit
    end_m: float  # inf when the route goes on beyond the samples
    connectors: list[tuple[str, float, float]]  # token, start, end along the path
    crossings: list[tuple[int, float, float]]  # index of the pedestrian crossing, start, end along the path


class RoadNetwork:
    """Tables of one lane graph, computed once (``network_of``)."""

    def __init__(self, graph: LaneGraph) -> None:
        self.graph = graph
        self.speed_limits = {
            token: _speed_profile(lane.centerline, lane.speed_limit_mps) for token, lane in graph.lanes.items()
        }
        self.conflicts = _conflicts(graph)
        self.reach_m = _reach(graph)
        points = [lane.centerline for lane in graph.lanes.values()]
        self._tree = KDTree(np.concatenate(points)[:, :2]) if points else None
        self._yaw = np.concatenate(points)[:, 2] if points else np.zeros(0)
        self._owners = [token for token, lane in graph.lanes.items() for _ in range(len(lane.centerline))]
        self._half_width = np.array([graph.lanes[t].width_m / 2 for t in self._owners])
        self._widest_half = float(self._half_width.max()) if points else 0.0
        polygons = [shapely.Polygon(c) for c in graph.crossings if len(c) >= 3]
        self._crossing_centre = np.array([(p.centroid.x, p.centroid.y) for p in polygons]).reshape(-1, 2)
        self._crossing_yaw = np.array([_side_yaw(p) for p in polygons])
        self._crossings = shapely.unary_union(polygons).buffer(0.3) if polygons else None
        self._crossing_tree = shapely.STRtree([polygon.buffer(0.3) for polygon in polygons])
        self.crossing_spans = self._spans(np.concatenate(points)[:, :2] if points else np.zeros((0, 2)))
        if self._crossings is not None:
            shapely.prepare(self._crossings)

    def on_road(self, xy_m: Array, margin_m: float = ON_ROAD_M) -> NDArray[np.bool_]:
        """Whether points [N, 2] are on a lane."""
        if self._tree is None or len(xy_m) == 0:
            return np.zeros(len(xy_m), dtype=bool)
        distance, index = self._tree.query(xy_m)
        return distance < self._half_width[index] + margin_m

    def road_clearance(self, xy_m: Array) -> tuple[NDArray[np.bool_], Array]:
        """As ``on_road``, and how far [N] each point can move at least before that changes to True."""
        if self._tree is None:
            return np.zeros(len(xy_m), dtype=bool), np.full(len(xy_m), np.inf)
        distance, index = self._tree.query(xy_m)
        return distance < self._half_width[index] + ON_ROAD_M, distance - self._widest_half - ON_ROAD_M

    def across_yaw(self, xy_m: Array, yaw_rad: Array) -> Array:
        """Heading [N] straight across the road, as near to the given one as can be: along the nearest crossing."""
        if self._tree is None or len(self._crossing_yaw) == 0:
            return yaw_rad
        lane = self._yaw[self._tree.query(xy_m)[1]]
        apart = np.linalg.norm(xy_m[:, None] - self._crossing_centre[None], axis=-1)
        axis = self._crossing_yaw[np.argmin(apart, axis=1)]
        # Of the four directions of the crossing's sides, one across the lanes and forward.
        options = axis[:, None] + np.arange(4) * np.pi / 2
        cost = np.abs(np.cos(options - lane[:, None])) - 0.5 * np.cos(options - yaw_rad[:, None])
        return options[np.arange(len(xy_m)), np.argmin(cost, axis=1)]

    def on_crossing(self, xy_m: Array) -> NDArray[np.bool_]:
        """Whether points [N, 2] are on a pedestrian crossing."""
        if self._crossings is None:
            return np.zeros(len(xy_m), dtype=bool)
        return shapely.contains_xy(self._crossings, xy_m[:, 0], xy_m[:, 1])

    def crossing_of(self, xy_m: Array) -> NDArray[np.int64]:
        """Index [N] of the pedestrian crossing that each point [N, 2] is on, or -1."""
        found = np.full(len(xy_m), -1)
        point, crossing = self._crossing_tree.query(shapely.points(xy_m), predicate="intersects")
        found[point] = crossing
        return found

    def _spans(self, xy_m: Array) -> dict[str, list[tuple[int, float, float]]]:
        """Which pedestrian crossings each lane passes, from where to where along it."""
        spans: dict[tuple[str, int], tuple[float, float]] = {}
        if len(self._crossing_tree) == 0 or len(xy_m) == 0:
            return {}
        arc = np.concatenate([lane.arc_m for lane in self.graph.lanes.values()])
        point, crossing = self._crossing_tree.query(shapely.points(xy_m), predicate="intersects")
        for i, which in zip(point, crossing, strict=True):
            low, high = spans.get((self._owners[i], int(which)), (np.inf, -np.inf))
            spans[self._owners[i], int(which)] = (min(low, float(arc[i])), max(high, float(arc[i])))
        found: dict[str, list[tuple[int, float, float]]] = {}
        for (token, which), (low, high) in spans.items():
            found.setdefault(token, []).append((which, low, high))
        return found

    def lane_at(self, route: Route, s_m: float) -> tuple[Lane, float]:
        """The lane of a route at a distance along its path, and the distance along that lane."""
        left = route.offset_m + s_m
        for token in route.lanes[:-1]:
            lane = self.graph.lanes[token]
            if left < lane.length_m:
                return lane, left
            left -= lane.length_m
        return self.graph.lanes[route.lanes[-1]], left

    def connectors_at(self, x_m: float, y_m: float, yaw_rad: float) -> set[str]:
        """Connectors that a pose could be driving on."""
        if self._tree is None:
            return set()
        near = self._tree.query_ball_point([x_m, y_m], 1.5)
        fits = [i for i in near if abs(wrap_angle(yaw_rad - self._yaw[i])) < 0.5]
        return {self._owners[i] for i in fits if self.conflicts.get(self._owners[i])}

    def extend(self, route: Route, needed_m: float, rng: np.random.Generator, far: bool = False) -> None:
        """Choose successors until the route is ``needed_m`` long or the graph ends; ``far`` avoids dead ends."""
        length = sum(self.graph.lanes[t].length_m for t in route.lanes) - route.offset_m
        while length < needed_m:
            options = [t for t in self.graph.lanes[route.lanes[-1]].outgoing if t in self.graph.lanes]
            if not options:
                return
            if far:
                best = max(self.reach_m[t] for t in options)
                options = [t for t in options if self.reach_m[t] >= min(best, FAR_M / 2)]
            route.lanes.append(options[int(rng.integers(len(options)))])
            length += self.graph.lanes[route.lanes[-1]].length_m

    def sample(self, route: Route) -> SampledPath:
        """The route at one point per metre."""
        pieces, connectors, crossings, start = [], [], [], -route.offset_m
        for token in route.lanes:
            lane = self.graph.lanes[token]
            pieces.append(np.column_stack([lane.arc_m + start, lane.centerline, self.speed_limits[token]]))
            if lane.is_connector:
                connectors.append((token, start, start + lane.length_m))
            crossings += [(which, start + low, start + high) for which, low, high in self.crossing_spans.get(token, ())]
            start += lane.length_m
        table = np.concatenate(pieces)
        table[:, 3] = np.unwrap(table[:, 3])
        grid = np.arange(PATH_POINTS, dtype=np.float64)
        points = np.stack([np.interp(grid, table[:, 0], table[:, k]) for k in range(1, 5)], axis=-1)
        ends = start < grid[-1]
        if ends:
            points[grid > start + 1.0, :2] = np.nan
        points[:, 3] = _slow_early(points[:, 3])
        return SampledPath(points=points, end_m=start if ends else np.inf, connectors=connectors, crossings=crossings)


@lru_cache(maxsize=4)
def network_of(graph: LaneGraph) -> RoadNetwork:
    """The tables of a graph, built on first use."""
    return RoadNetwork(graph)


def straight_path(x_m: float, y_m: float, yaw_rad: float) -> SampledPath:
    """The path of an agent that knows no lanes."""
    grid = np.arange(PATH_POINTS, dtype=np.float64)
    points = np.stack(
        [x_m + grid * np.cos(yaw_rad), y_m + grid * np.sin(yaw_rad), np.full_like(grid, yaw_rad), np.full_like(grid, 99.0)],
        axis=-1,
    )
    return SampledPath(points=points, end_m=np.inf, connectors=[], crossings=[])


def _side_yaw(polygon: shapely.Polygon) -> float:
    """Direction of a side of the smallest rectangle around a polygon."""
    corners = shapely.get_coordinates(shapely.minimum_rotated_rectangle(polygon))
    return float(np.arctan2(*(corners[1] - corners[0])[::-1]))


def _speed_profile(centerline: Array, limit_mps: float) -> Array:
    """Speed [P] that keeps the lateral acceleration comfortable: sqrt(a / curvature)."""
    step = np.maximum(np.linalg.norm(np.gradient(centerline[:, :2], axis=0), axis=1), 1e-3)
    curvature = np.abs(np.gradient(np.unwrap(centerline[:, 2]))) / step
    # A median of the neighbourhood: noisy headings of real maps must not stop traffic.
    padded = np.pad(curvature, 2, mode="edge")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=-1)
    return np.clip(np.sqrt(LATERAL_ACCELERATION_MPS2 / np.maximum(smooth, 1e-4)), 2.0, limit_mps)


def bend_speeds(yaw_rad: Array) -> Array:
    """Speed limits [P] for the bends of a path of one heading per metre; NaN headings limit nothing."""
    bend = np.abs(np.nan_to_num(np.diff(yaw_rad, append=yaw_rad[-1:])))
    return _slow_early(np.clip(np.sqrt(LATERAL_ACCELERATION_MPS2 / np.maximum(bend, 1e-4)), 2.0, 99.0))


def _slow_early(speed_mps: Array) -> Array:
    """The fastest profile [P] below the given one that brakes gently towards each slow point."""
    squared = speed_mps**2 + 2 * APPROACH_DECELERATION_MPS2 * np.arange(len(speed_mps))
    lowest = np.minimum.accumulate(squared[::-1])[::-1]
    return np.sqrt(np.maximum(lowest - 2 * APPROACH_DECELERATION_MPS2 * np.arange(len(speed_mps)), 0.25))


def _conflicts(graph: LaneGraph) -> dict[str, frozenset[str]]:
    """For each connector those that cross it or merge with it; branches of one lane do not conflict."""
    tokens = [t for t, lane in graph.lanes.items() if lane.is_connector]
    found: dict[str, set[str]] = {t: set() for t in tokens}
    if len(tokens) < 2:
        return {t: frozenset() for t in tokens}
    lines = np.array([shapely.LineString(graph.lanes[t].centerline[:, :2]) for t in tokens])
    first, second = shapely.STRtree(lines).query(lines, predicate="dwithin", distance=CONFLICT_DISTANCE_M)
    for a, b in zip((tokens[i] for i in first), (tokens[i] for i in second), strict=True):
        one, other = graph.lanes[a], graph.lanes[b]
        chained = b in one.outgoing or a in other.outgoing
        branches = bool(set(one.incoming) & set(other.incoming))
        if a != b and not chained and not branches:
            found[a].add(b)
    return {t: frozenset(v) for t, v in found.items()}


def _reach(graph: LaneGraph) -> dict[str, float]:
    """The longest way [m] that can be driven from the start of each lane, capped at FAR_M."""
    reach = {t: lane.length_m for t, lane in graph.lanes.items()}
    for _ in range(200):
        changed = False
        for token, lane in graph.lanes.items():
            ahead = max((reach[t] for t in lane.outgoing if t in reach), default=0.0)
            value = min(lane.length_m + ahead, FAR_M)
            changed |= value > reach[token] + 1e-6
            reach[token] = max(reach[token], value)
        if not changed:
            break
    return reach
