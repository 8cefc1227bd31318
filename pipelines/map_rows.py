"""Rows of ``map_elements``: the map around a clip's paths, in the global frame, where it stands still."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dwm.scenario.map_labels import clipped, global_lines
from dwm.scenario.types import Scenario
from dwm.scenes.types import MAP_LAYERS, SceneMap

Row = dict[str, Any]
Array = NDArray[np.float64]
MAP_RANGE_M = 80.0  # elements this far around the paths


def map_rows(clip_id: str, scenario: Scenario) -> list[Row]:
    """The drivable area as polygons; dividers, crossings, boundaries and centre lines as the lines a map evaluator compares."""
    town = scenario.scene.map
    xy = np.concatenate([scenario.ego_to_global[:, :2, 3], scenario.baseline_ego_to_global[:, :2, 3]])
    low, high = xy.min(0) - MAP_RANGE_M, xy.max(0) + MAP_RANGE_M
    elements = [("drivable", outline, True) for outline in _drivable(town, low, high)]
    for kind, lines in global_lines(town).items():
        pieces = [piece for line in lines for piece in clipped(line, low, high)]
        # A ring that lies inside as a whole still ends where it begins; one that was cut does not.
        elements += [(kind, piece, len(piece) > 3 and np.allclose(piece[0], piece[-1])) for piece in pieces]
    return [
        {
            "clip_id": clip_id, "element_id": f"{kind}-{i:04d}", "kind": kind,
            "points_xy_m": (points[:-1] if closed and kind != "drivable" else points).ravel().tolist(),
            "is_polygon": bool(closed), "label_source": "log",
        }
        for i, (kind, points, closed) in enumerate(elements)
    ]  # fmt: skip


def _drivable(town: SceneMap, low_m: Array, high_m: Array) -> Iterator[Array]:
    """Outlines [P, 2] of the drivable raster, simplified to a quarter of a metre."""
    low = np.floor((low_m - town.origin_xy_m) / town.metres_per_pixel).astype(int).clip(min=0)
    high = np.ceil((high_m - town.origin_xy_m) / town.metres_per_pixel).astype(int)
    origin = town.origin_xy_m + low * town.metres_per_pixel
    raster = np.ascontiguousarray(town.layers[MAP_LAYERS.index("drivable"), low[1] : high[1], low[0] : high[0]])
    if not raster.any():
        return
    outlines, _ = cv2.findContours(raster, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for outline in outlines:
        simple = cv2.approxPolyDP(outline, 0.25 / town.metres_per_pixel, True)[:, 0].astype(np.float64)
        if len(simple) >= 3:
            yield origin + (simple + 0.5) * town.metres_per_pixel
