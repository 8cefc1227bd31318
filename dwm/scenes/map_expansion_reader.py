"""Reads a nuScenes map expansion: its lanes as a lane graph and its areas as raster layers."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from dwm.errors import InputError
from dwm.geometry import wrap_angle
from dwm.scenes.lane_graph import Lane, LaneGraph
from dwm.scenes.raster import map_layers
from dwm.scenes.types import MapLines, SceneMap

Array = NDArray[np.float64]
Region = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax

_LANE_MARGIN_M = 60.0
_SPACING_M = 0.5
_SPEED_MPS = 13.4  # the format has no speed limits
_LATERAL_MPS2 = 2.0
_NEIGHBOUR_M = (2.5, 4.5)
_NEIGHBOUR_HEADING_RAD = 0.2
_REQUIRED = (
    "node", "line", "polygon", "drivable_area", "lane", "lane_connector", "ped_crossing", "walkway",
    "road_divider", "lane_divider", "arcline_path_3", "connectivity",
)  # fmt: skip


def read_map_expansion(path: Path, region_xy_m: Region, metres_per_pixel: float = 0.2) -> SceneMap:
    """The map inside a region of the global frame; lanes that come within 60 m of it are kept whole.

    Speed limits are assumed: 13.4 m/s, less on bends (2 m/s^2 of lateral acceleration). Neighbours in the same
    direction are found from geometry. Raises InputError where the file is missing or is no map expansion.
    """
    if not path.is_file():
        raise InputError(path, "no such map expansion", "unpack the nuScenes map expansion into maps/expansion of the dataroot")
    document = _load(path, path.stat().st_mtime_ns)
    x0, y0, x1, y1 = region_xy_m
    if not (x1 > x0 and y1 > y0):
        raise InputError("region_xy_m", f"{region_xy_m} is empty", "give xmin, ymin, xmax, ymax in metres")
    try:
        shape = (round((y1 - y0) / metres_per_pixel), round((x1 - x0) / metres_per_pixel))
        lanes = _with_neighbours(_lanes(document, region_xy_m))
        areas = _Areas(document, region_xy_m)
        crossings = areas.polygons(record["polygon_token"] for record in document["ped_crossing"])
        drivable = areas.polygons(name for record in document["drivable_area"] for name in record["polygon_tokens"])
        dividers = areas.lines(record["line_token"] for layer in ("road_divider", "lane_divider") for record in document[layer])
        layers = map_layers(
            drivable=drivable,
            dividers=dividers,
            crossings=crossings,
            walkways=areas.polygons(record["polygon_token"] for record in document["walkway"]),
            shape=shape,
            metres_per_pixel=metres_per_pixel,
            origin_xy_m=(x0, y0),
        )
    except (KeyError, TypeError, IndexError, ValueError) as error:
        problem = f"broken map expansion ({type(error).__name__}: {error})"
        raise InputError(path, problem, "download the file again; version 1.3 is expected") from error
    rings = tuple(np.asarray(crossing.exterior.coords)[:-1] for crossing in crossings)
    return SceneMap(
        layers=layers,
        origin_xy_m=np.array([x0, y0], dtype=np.float64),
        metres_per_pixel=metres_per_pixel,
        lane_graph=LaneGraph(lanes, rings),
        notes=("speed limits are assumed: a map expansion has none",),
        lines=MapLines(dividers=tuple(dividers), boundaries=_edges(drivable, shapely.box(*region_xy_m))),
    )


@lru_cache(maxsize=1)
def _load(path: Path, modified_ns: int) -> dict[str, Any]:
    """The parsed file; the scenes of one location are read one after the other."""
    try:
        document = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(path, f"not JSON ({error})", "download the map expansion again") from error
    missing = [key for key in _REQUIRED if key not in document] if isinstance(document, dict) else list(_REQUIRED)
    if missing:
        raise InputError(path, f"no {', '.join(missing)} in this file", "give a nuScenes map expansion of version 1.3")
    return document


class _Areas:
    """Polygons and lines of a map expansion that touch a region."""

    def __init__(self, document: dict[str, Any], region: Region) -> None:
        self._region = shapely.box(*region)
        self._nodes = {node["token"]: (node["x"], node["y"]) for node in document["node"]}
        self._polygons = {record["token"]: record for record in document["polygon"]}
        self._lines = {record["token"]: record for record in document["line"]}

    def polygons(self, tokens: Any) -> list[shapely.Polygon]:
        found = []
        for name in tokens:
            record = self._polygons[name]
            shell = self._points(record["exterior_node_tokens"])
            holes = [self._points(hole["node_tokens"]) for hole in record["holes"]]
            if len(shell) >= 3:
                polygon = shapely.Polygon(shell, [hole for hole in holes if len(hole) >= 3])
                found += [polygon] if shapely.box(*polygon.bounds).intersects(self._region) else []
        return found

    def lines(self, tokens: Any) -> list[Array]:
        lines = (np.array(self._points(self._lines[name]["node_tokens"])) for name in tokens)
        # Real maps hold lines of one node.
        return [line for line in lines if len(line) > 1 and shapely.LineString(line).intersects(self._region)]

    def _points(self, tokens: list[str]) -> list[tuple[float, float]]:
        return [self._nodes[name] for name in tokens]


def _edges(polygons: list[shapely.Polygon], region: BaseGeometry) -> tuple[Array, ...]:
    """Outlines of the union of polygons, without the cuts that the region makes."""
    union = shapely.union_all([shapely.make_valid(polygon) for polygon in polygons])
    inside = shapely.line_merge(shapely.intersection(union.boundary, region))
    return tuple(np.asarray(line.coords)[:, :2] for line in shapely.get_parts(inside) if line.geom_type == "LineString")


def _lanes(document: dict[str, Any], region: Region) -> dict[str, Lane]:
    """Lanes and connectors near the region; links to lanes farther away are cut."""
    near = shapely.box(*region).buffer(_LANE_MARGIN_M, join_style="mitre")
    connectors = {record["token"] for record in document["lane_connector"]}
    names = [record["token"] for record in document["lane"]] + sorted(connectors)
    lines: dict[str, Array] = {}
    for name in names:
        path = document["arcline_path_3"].get(name)
        if path and _may_touch(path, near):
            line = _centerline(path)
            if len(line) > 1 and near.intersects(shapely.LineString(line[:, :2])):
                lines[name] = line
    return {
        name: Lane(
            token=name, centerline=line, is_connector=name in connectors,
            incoming=_links(document, name, "incoming", lines), outgoing=_links(document, name, "outgoing", lines),
            speed_limit_mps=_speed_limit(document["arcline_path_3"][name]),
        )
        for name, line in lines.items()
    }  # fmt: skip


def _links(document: dict[str, Any], name: str, side: str, kept: dict[str, Array]) -> tuple[str, ...]:
    links = document["connectivity"].get(name, {}).get(side, [])
    return tuple(link for link in dict.fromkeys(links) if link in kept)


def _may_touch(path: list[dict[str, Any]], near: BaseGeometry) -> bool:
    """A cheap upper bound: no point of a path is farther from its start than its length."""
    length = sum(sum(piece["segment_length"]) for piece in path)
    return near.distance(shapely.Point(path[0]["start_pose"][:2])) <= length + 1.0


def _centerline(path: list[dict[str, Any]]) -> Array:
    """Poses [P, 3] at most half a metre apart, without the points that pieces share."""
    # The devkit's map API is slow to import and not needed before a map is read.
    from nuscenes.map_expansion.arcline_path_utils import discretize_lane

    pieces = [piece for piece in path if sum(piece["segment_length"]) > 1e-6]
    poses = np.array(discretize_lane(pieces, _SPACING_M), dtype=np.float64).reshape(-1, 3)
    steps = np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=1)
    return poses[np.concatenate([[True], steps > 1e-3])] if len(poses) else poses


def _speed_limit(path: list[dict[str, Any]]) -> float:
    bends = ("L", "R")
    radii = [
        piece["radius"]
        for piece in path
        for letter, length in zip(piece["shape"], piece["segment_length"], strict=True)
        if letter in bends and length > 0.5
    ]
    return float(min([_SPEED_MPS, *(np.sqrt(_LATERAL_MPS2 * radius) for radius in radii)]))


def _with_neighbours(lanes: dict[str, Lane]) -> dict[str, Lane]:
    """Lanes with the nearest parallel lane on either side, connectors excepted."""
    plain = [lane for lane in lanes.values() if not lane.is_connector]
    if not plain:
        return lanes
    points = np.concatenate([lane.centerline for lane in plain])
    owners = np.repeat(np.arange(len(plain)), [len(lane.centerline) for lane in plain])
    found = dict(lanes)
    for index, lane in enumerate(plain):
        pose = lane.pose_at(lane.length_m / 2)
        left = _beside(pose, points, owners, index, 1.0)
        right = _beside(pose, points, owners, index, -1.0)
        found[lane.token] = replace(
            lane, left=None if left is None else plain[left].token, right=None if right is None else plain[right].token
        )
    return found


def _beside(pose: Array, points: Array, owners: NDArray[np.int64], own: int, side: float) -> int | None:
    """Owner of the point nearest to abeam on one side (1 left, -1 right), of about the same heading."""
    dx, dy = points[:, 0] - pose[0], points[:, 1] - pose[1]
    along = dx * np.cos(pose[2]) + dy * np.sin(pose[2])
    lateral = side * (dy * np.cos(pose[2]) - dx * np.sin(pose[2]))
    near = (np.abs(along) < 1.0) & (lateral > _NEIGHBOUR_M[0]) & (lateral < _NEIGHBOUR_M[1]) & (owners != own)
    near &= np.abs(wrap_angle(points[:, 2] - pose[2])) < _NEIGHBOUR_HEADING_RAD
    candidates = np.flatnonzero(near)
    if len(candidates) == 0:
        return None
    return int(owners[candidates[np.argmin(lateral[candidates])]])
