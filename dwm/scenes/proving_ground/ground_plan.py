"""What lies on the ground of the proving ground, as polygons and lines: asphalt, sidewalks, crossings, markings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from shapely import Polygon
from shapely.geometry.base import BaseGeometry
from shapely.ops import unary_union

from dwm.scenes.proving_ground.curves import Array, connect, sample
from dwm.scenes.proving_ground.roads import (
    CROSSING_DEPTH_M,
    CROSSING_TO_STOP_M,
    CURB_RADIUS_M,
    LANE_WIDTH_M,
    Arm,
    Junction,
    Road,
    RoadNetwork,
)

SIDEWALK_M = 3.0
_OVERLAP_M = 0.05  # junctions reach into their roads, so that unions have no seams
_SWATH_M = LANE_WIDTH_M / 2 + 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """A zebra crossing over one arm of a junction."""

    polygon: Polygon
    bars: tuple[Polygon, ...]
    junction: int
    road: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopLine:
    """The painted line across the lanes that enter a junction, with the crossing it guards."""

    polygon: Polygon
    crossing: int  # index into GroundPlan.crossings
    road: int
    forward: bool  # whether it ends the lanes that follow the road's axis


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundPlan:
    """Lines are [P, 2]. ``roads`` and ``junctions`` follow the order of the network and have no holes."""

    roads: tuple[Polygon, ...]
    junctions: tuple[Polygon, ...]
    walkways: tuple[Polygon, ...]
    crossings: tuple[Crossing, ...]
    stop_lines: tuple[StopLine, ...]
    road_dividers: tuple[tuple[int | None, int | None, Array], ...]  # (road, junction, line): one of the two is None
    lane_dividers: tuple[Array, ...]
    edge_lines: tuple[Array, ...]

    @property
    def drivable(self) -> tuple[Polygon, ...]:
        return self.roads + self.junctions


def lay_out(network: RoadNetwork) -> GroundPlan:
    """Derive every polygon and line from the road network."""
    roads = tuple(road_band(road, -road.half_width_m, road.half_width_m) for road in network.roads)
    junctions = tuple(_junction_area(network, junction) for junction in network.junctions)
    crossed = [(j, arm) for j in network.junctions if not j.is_bend for arm in j.arms]
    bends = [bend for j in network.junctions if j.is_bend for bend in _bend_markings(j)]
    return GroundPlan(
        roads=roads,
        junctions=junctions,
        walkways=_walkways(network, unary_union(roads + junctions)),
        crossings=tuple(_crossing(j, arm) for j, arm in crossed),
        stop_lines=tuple(_stop_line(arm, i) for i, (_, arm) in enumerate(crossed)),
        road_dividers=tuple((road.index, None, road.strip(0.0)) for road in network.roads)
        + tuple((None, j, line) for kind, j, line in bends if kind == "road"),
        lane_dividers=tuple(
            road.strip(side * i * LANE_WIDTH_M)
            for road in network.roads
            for side in (-1, 1)
            for i in range(1, road.lanes_each_way)
        )
        + tuple(line for kind, _, line in bends if kind == "lane"),
        edge_lines=tuple(road.strip(side * road.lanes_each_way * LANE_WIDTH_M) for road in network.roads for side in (-1, 1))
        + tuple(line for kind, _, line in bends if kind == "edge"),
    )


def road_band(road: Road, right_m: float, left_m: float) -> Polygon:
    """The part of a road's trimmed length between two offsets to the left of its axis."""
    return Polygon(np.concatenate([road.strip(right_m), road.strip(left_m)[::-1]]))


def _arm_band(arm: Arm, near_m: float, far_m: float, right_m: float, left_m: float) -> Polygon:
    return Polygon(arm.point(np.array([near_m, far_m, far_m, near_m]), np.array([right_m, right_m, left_m, left_m])))


def _junction_area(network: RoadNetwork, junction: Junction) -> Polygon:
    """Arms and turning swaths, with the concave corners rounded by a morphological closing."""
    parts = []
    for arm in junction.arms:
        width = arm.road.half_width_m
        near = arm.trim_m - 0.5 if junction.is_bend else 0.0
        parts.append(_arm_band(arm, near, arm.trim_m + _OVERLAP_M, -width, width))
    lanes = {name for arm in junction.arms for name in arm.incoming}
    for name in lanes:
        for connector in network.lanes[name].outgoing:
            line = shapely.LineString(network.lanes[connector].centerline[:, :2])
            parts.append(line.buffer(_SWATH_M + (0.06 if junction.is_bend else 0.0), cap_style="flat"))
    closed = unary_union(parts).buffer(CURB_RADIUS_M, quad_segs=32).buffer(-CURB_RADIUS_M, quad_segs=32)
    return Polygon(shapely.simplify(closed.exterior, 0.01))


def _crossing(junction: Junction, arm: Arm) -> Crossing:
    far = arm.trim_m - CROSSING_TO_STOP_M
    near, half = far - CROSSING_DEPTH_M, arm.road.half_width_m
    lefts = np.arange(-half + 0.3, half - 0.5, 1.0)
    bars = tuple(_arm_band(arm, near, far, left, left + 0.5) for left in lefts)
    return Crossing(polygon=_arm_band(arm, near, far, -half, half), bars=bars, junction=junction.index, road=arm.road.index)


def _stop_line(arm: Arm, crossing: int) -> StopLine:
    # Looking away from the node, incoming traffic keeps to the left of the axis.
    band = _arm_band(arm, arm.trim_m - 0.4, arm.trim_m, 0.2, arm.road.lanes_each_way * LANE_WIDTH_M)
    return StopLine(polygon=band, crossing=crossing, road=arm.road.index, forward=not arm.at_start)


def _bend_markings(junction: Junction) -> list[tuple[str, int, Array]]:
    """Markings that run on through a bend: axis and outer edges, and lane lines where both arms have them."""
    first, second = junction.arms
    n, m = first.road.lanes_each_way, second.road.lanes_each_way
    lines = [("road", junction.index, _through(first, second, 0.0, 0.0))]
    for side in (-1, 1):
        lines.append(("edge", junction.index, _through(first, second, side * n * LANE_WIDTH_M, side * m * LANE_WIDTH_M)))
        for i in range(1, min(n, m)):
            lines.append(("lane", junction.index, _through(first, second, side * i * LANE_WIDTH_M, side * i * LANE_WIDTH_M)))
    return lines


def _through(first: Arm, second: Arm, left_in_m: float, left_out_m: float) -> Array:
    """The curve through a bend at offsets to the left of the direction from the first arm to the second."""
    x, y = first.point(first.trim_m, -left_in_m)
    u, v = second.point(second.trim_m, left_out_m)
    path = connect((float(x), float(y), first.outward_yaw_rad + np.pi), (float(u), float(v), second.outward_yaw_rad))
    return sample(path, 0.5)[:, :2]


def _walkways(network: RoadNetwork, drivable: BaseGeometry) -> tuple[Polygon, ...]:
    """Sidewalks cut into pieces without holes: two strips a road, and the corners between them.

    The devkit paints the holes of one record over the others, so a ring around a block would erase its neighbours.
    """
    ring = drivable.buffer(SIDEWALK_M, quad_segs=16).difference(drivable)
    reach = max(road.half_width_m for road in network.roads) + 2 * SIDEWALK_M
    bands = unary_union([road_band(road, -reach, reach) for road in network.roads])
    parts = [*shapely.get_parts(ring.intersection(bands)), *shapely.get_parts(ring.difference(bands))]
    return tuple(part for part in parts if part.geom_type == "Polygon" and part.area > 0.2)
