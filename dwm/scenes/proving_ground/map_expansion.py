"""Writes the proving-ground city as a nuScenes map expansion, with no key that the format does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from dwm.scenes.proving_ground.city import City
from dwm.scenes.proving_ground.curves import Array, Piece
from dwm.scenes.proving_ground.ground_plan import road_band
from dwm.scenes.proving_ground.roads import LANE_WIDTH_M, Road, token

Record = dict[str, Any]
_STRAIGHT_RADIUS_M = 1e6  # the devkit divides by the radius even where a piece is straight


def write_map_expansion(city: City, path: Path) -> None:
    """Write the JSON that ``NuScenesMap`` loads from ``maps/expansion/{city.location}.json``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_Tables(city).document()))


class _Tables:
    """The layers under construction; nodes, lines and polygons are added as records refer to them."""

    def __init__(self, city: City) -> None:
        self._city = city
        self._nodes: list[Record] = []
        self._lines: list[Record] = []
        self._polygons: list[Record] = []
        self._segment_of_road = {road.index: self._token("road_segment", road.index) for road in city.network.roads}
        self._segment_of_junction = {j.index: self._token("junction", j.index) for j in city.network.junctions}
        self._crossings = [self._token("crossing", i) for i in range(len(city.plan.crossings))]
        self._drivable = self._token("drivable_area")

    def document(self) -> Record:
        city, network = self._city, self._city.network
        layers: Record = {
            "drivable_area": [self._drivable_area()],
            "road_segment": self._road_segments(),
            "road_block": [self._road_block(road, forward) for road in network.roads for forward in (True, False)],
            "lane": [self._lane(name) for name, lane in network.lanes.items() if not lane.is_connector],
            "lane_connector": [self._connector(name) for name, lane in network.lanes.items() if lane.is_connector],
            "ped_crossing": self._ped_crossings(),
            "walkway": [
                {"token": self._token("walkway", i), "polygon_token": self._polygon(walkway)}
                for i, walkway in enumerate(city.plan.walkways)
            ],
            "stop_line": self._stop_lines(),
            "carpark_area": [],
            "road_divider": self._road_dividers(),
            "lane_divider": self._lane_dividers(),
            "traffic_light": [],
            "arcline_path_3": {name: [_arcline(piece) for piece in path] for name, path in network.paths.items()},
            "connectivity": {
                name: {"incoming": list(lane.incoming), "outgoing": list(lane.outgoing)} for name, lane in network.lanes.items()
            },
        }
        geometry = {"node": self._nodes, "line": self._lines, "polygon": self._polygons}
        return {"version": "1.3", "canvas_edge": [city.size_m, city.size_m], **geometry, **layers}

    def _token(self, *parts: object) -> str:
        return token(self._city.seed, "map", *parts)

    def _node_tokens(self, points: Array) -> list[str]:
        names = [self._token("node", len(self._nodes) + i) for i in range(len(points))]
        self._nodes += [{"token": n, "x": float(x), "y": float(y)} for n, (x, y) in zip(names, points, strict=True)]
        return names

    def _line(self, points: Array) -> str:
        name = self._token("line", len(self._lines))
        self._lines.append({"token": name, "node_tokens": self._node_tokens(points)})
        return name

    def _polygon(self, polygon: shapely.Polygon) -> str:
        name = self._token("polygon", len(self._polygons))
        holes = [{"node_tokens": self._node_tokens(_ring(ring))} for ring in polygon.interiors]
        record = {"token": name, "exterior_node_tokens": self._node_tokens(_ring(polygon.exterior)), "holes": holes}
        self._polygons.append(record)
        return name

    def _drivable_area(self) -> Record:
        return {"token": self._drivable, "polygon_tokens": [self._polygon(area) for area in self._city.plan.drivable]}

    def _road_segments(self) -> list[Record]:
        plan = self._city.plan
        named = [(name, area, False) for name, area in zip(self._segment_of_road.values(), plan.roads, strict=True)]
        named += [(name, area, True) for name, area in zip(self._segment_of_junction.values(), plan.junctions, strict=True)]
        return [
            {"token": n, "polygon_token": self._polygon(a), "is_intersection": inside, "drivable_area_token": self._drivable}
            for n, a, inside in named
        ]

    def _road_block(self, road: Road, forward: bool) -> Record:
        far = (-1 if forward else 1) * road.lanes_each_way * LANE_WIDTH_M
        across = np.stack([road.strip(0.0), road.strip(far)])  # [2 sides, 2 ends, 2]
        begin, end = (across[:, 0], across[:, 1]) if forward else (across[:, 1], across[:, 0])
        return {
            "token": self._token("road_block", road.index, forward),
            "polygon_token": self._polygon(road_band(road, min(0.0, far), max(0.0, far))),
            "from_edge_line_token": self._line(begin),
            "to_edge_line_token": self._line(end),
            "road_segment_token": self._segment_of_road[road.index],
        }

    def _lane(self, name: str) -> Record:
        lane = self._city.network.lanes[name]
        left, right = (_beside(lane.centerline[[0, -1]], side * LANE_WIDTH_M / 2) for side in (1, -1))
        left_kind = "DOUBLE_SOLID_YELLOW" if lane.left is None else "DOUBLE_DASHED_WHITE"
        right_kind = "SINGLE_SOLID_WHITE" if lane.right is None else "DOUBLE_DASHED_WHITE"
        return {
            "token": name,
            "polygon_token": self._polygon(shapely.Polygon(np.concatenate([right, left[::-1]]))),
            "lane_type": "CAR",
            "from_edge_line_token": self._line(np.stack([left[0], right[0]])),
            "to_edge_line_token": self._line(np.stack([left[1], right[1]])),
            "left_lane_divider_segments": self._segments(left, left_kind),
            "right_lane_divider_segments": self._segments(right, right_kind),
        }

    def _segments(self, points: Array, kind: str) -> list[Record]:
        return [{"node_token": node, "segment_type": kind} for node in self._node_tokens(points)]

    def _connector(self, name: str) -> Record:
        line = self._city.network.lanes[name].centerline
        left, right = _beside(line, LANE_WIDTH_M / 2), _beside(line, -LANE_WIDTH_M / 2)
        return {"token": name, "polygon_token": self._polygon(shapely.Polygon(np.concatenate([right, left[::-1]])))}

    def _ped_crossings(self) -> list[Record]:
        return [
            {
                "token": name,
                "polygon_token": self._polygon(crossing.polygon),
                "road_segment_token": self._segment_of_junction[crossing.junction],
            }
            for name, crossing in zip(self._crossings, self._city.plan.crossings, strict=True)
        ]

    def _stop_lines(self) -> list[Record]:
        return [
            {
                "token": self._token("stop_line", i),
                "polygon_token": self._polygon(stop.polygon),
                "stop_line_type": "PED_CROSSING",
                "ped_crossing_tokens": [self._crossings[stop.crossing]],
                "traffic_light_tokens": [],
                "road_block_token": self._token("road_block", stop.road, stop.forward),
            }
            for i, stop in enumerate(self._city.plan.stop_lines)
        ]

    def _road_dividers(self) -> list[Record]:
        records = []
        for i, (road, junction, line) in enumerate(self._city.plan.road_dividers):
            segment = self._segment_of_road[road] if road is not None else self._segment_of_junction[junction or 0]
            records.append(
                {"token": self._token("road_divider", i), "line_token": self._line(line), "road_segment_token": segment}
            )
        return records

    def _lane_dividers(self) -> list[Record]:
        records = []
        for i, line in enumerate(self._city.plan.lane_dividers):
            line_token = self._line(line)
            nodes = self._lines[-1]["node_tokens"]
            segments = [{"node_token": node, "segment_type": "DOUBLE_DASHED_WHITE"} for node in nodes]
            records.append(
                {"token": self._token("lane_divider", i), "line_token": line_token, "lane_divider_segments": segments}
            )
        return records


def _arcline(piece: Piece) -> Record:
    """One piece as a devkit arc-line path: the first slot of LSL or RSR is an arc, the middle slot of LSL a straight."""
    bent = abs(piece.curvature) > 1 / _STRAIGHT_RADIUS_M
    return {
        "start_pose": list(piece.start),
        "end_pose": list(piece.end),
        "shape": "RSR" if bent and piece.curvature < 0 else "LSL",
        "radius": 1 / abs(piece.curvature) if bent else _STRAIGHT_RADIUS_M,
        "segment_length": [piece.length_m, 0.0, 0.0] if bent else [0.0, piece.length_m, 0.0],
    }


def _beside(poses: Array, left_m: float) -> Array:
    """Points [P, 2] at a distance to the left of poses [P, 3]."""
    return poses[:, :2] + left_m * np.stack([-np.sin(poses[:, 2]), np.cos(poses[:, 2])], -1)


def _ring(ring: shapely.LinearRing) -> Array:
    return np.asarray(ring.coords)[:-1]
