"""Map elements as labels: polylines in the ego frame, cut to what a map evaluator looks at.

The protocol of VectorMapNet, MapTR and VAD: dividers, pedestrian crossings and road boundaries within 60 m x 30 m around the
vehicle (x along it), crossings and boundaries as outlines; MapTRv2 adds centre lines. Those papers centre the window on the
LiDAR, here it is the ego's origin. Lines are resampled to a fixed number of points on request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from dwm.geometry import yaw_from_rotation
from dwm.scenes.types import MAP_LAYERS, SceneMap

Array = NDArray[np.float64]
Lines = dict[str, list[Array]]  # kind -> polylines [P, 2]; closed ones end where they begin
KINDS = ("divider", "ped_crossing", "boundary", "centerline")
RANGE_M = (60.0, 30.0)
_SHORTEST_M = 0.1  # a shorter piece is a corner that touched the window


def map_labels(scene_map: SceneMap, ego_to_global: Array, range_m: tuple[float, float] = RANGE_M) -> Lines:
    """Lines in the ego frame at a pose [4, 4], within ``range_m`` = (along, across) metres centred on the ego."""
    return seen_from(global_lines(scene_map), ego_to_global, range_m)


def global_lines(scene_map: SceneMap) -> Lines:
    """All lines of a map in the global frame. Kinds that the map does not know are absent.

    Without vectors there is only ``boundary``, traced through the outermost drivable pixels, half a pixel inside the edge.
    """
    graph, known = scene_map.lane_graph, {}
    if scene_map.lines is not None:
        known["divider"], known["boundary"] = list(scene_map.lines.dividers), list(scene_map.lines.boundaries)
    else:
        known["boundary"] = _traced(scene_map, "drivable")
    if graph is not None:
        known["ped_crossing"] = [np.concatenate([ring, ring[:1]]) for ring in graph.crossings]
        known["centerline"] = [lane.centerline[:, :2] for lane in graph.lanes.values()]
    return {kind: known[kind] for kind in KINDS if kind in known}


def seen_from(lines: Mapping[str, Iterable[Array]], ego_to_global: Array, range_m: tuple[float, float] = RANGE_M) -> Lines:
    """Global lines by kind in the ego frame, cut to the window. The heading counts, pitch and roll do not."""
    yaw, origin = float(yaw_from_rotation(ego_to_global)), ego_to_global[:2, 3]
    turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    half = np.array(range_m) / 2
    return {
        kind: [piece for line in some for piece in clipped((np.asarray(line) - origin) @ turn, -half, half)]
        for kind, some in lines.items()
    }


def clipped(line: Array, low: Array, high: Array) -> list[Array]:
    """Pieces [P, 2] of a polyline inside a rectangle, in its own direction."""
    if (line.max(0) < low).any() or (line.min(0) > high).any():
        return []
    inside = shapely.intersection(shapely.LineString(line), shapely.box(*low, *high))
    merged = shapely.line_merge(inside, directed=True) if inside.geom_type == "MultiLineString" else inside
    parts = (part for part in shapely.get_parts(merged) if part.geom_type == "LineString" and part.length > _SHORTEST_M)
    return [np.asarray(part.coords) for part in parts]


def resampled(line: Array, count: int) -> Array:
    """``count`` points [count, 2] at equal steps along a polyline, both ends among them."""
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    arc = np.concatenate([[0.0], np.cumsum(steps)])
    asked = np.linspace(0.0, arc[-1], count)
    return np.stack([np.interp(asked, arc, line[:, k]) for k in range(2)], axis=-1)


def _traced(scene_map: SceneMap, layer: str) -> list[Array]:
    """Outlines of a raster layer, simplified to a quarter of a metre, without what runs along the raster's own border."""
    raster, size = scene_map.layers[MAP_LAYERS.index(layer)], scene_map.metres_per_pixel
    outlines, _ = cv2.findContours(raster, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    simple = (cv2.approxPolyDP(outline, 0.25 / size, True)[:, 0].astype(np.float64) for outline in outlines)
    rings = (np.concatenate([ring, ring[:1]]) + 0.5 for ring in simple if len(ring) >= 3)
    inner = (np.array([1.0, 1.0]), np.array(raster.shape[::-1]) - 1.0)
    return [scene_map.origin_xy_m + piece * size for ring in rings for piece in clipped(ring, *inner)]
