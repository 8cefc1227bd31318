"""Where along a street's edge something stands: arc length on the outline of roads and walkways.

It gives the imagined walls of the layout a coordinate that is fixed to the world, so that what was painted on one stays
on it while the car drives by, on straight streets and curved ones, from the raster map alone.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from dwm.scenes.types import MAP_LAYERS, SceneMap

_SHORTEST_M = 10.0  # outlines of smaller blots are noise
_SPACING_M = 0.8  # between the points of an outline, about


class Frontage:
    """The outlines of a map's open ground (roads and walkways), each with its arc length."""

    def __init__(self, scene_map: SceneMap) -> None:
        open_ground = scene_map.layers[MAP_LAYERS.index("drivable")] | scene_map.layers[MAP_LAYERS.index("walkway")]
        outlines, _ = cv2.findContours((open_ground > 0).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        points, arcs, names, ways = [], [], [], []
        for outline in outlines:
            xy = (outline[:, 0] + 0.5) * scene_map.metres_per_pixel + scene_map.origin_xy_m
            # Pixel steps zigzag along slanted edges: measure every fourth.
            coarse = np.unique(np.r_[np.arange(0, len(xy), 4), len(xy) - 1])
            # At the tip of a strip one pixel wide the outline turns on the spot.
            coarse = coarse[np.r_[True, np.any(np.diff(xy[coarse], axis=0) != 0, axis=1)]]
            arc = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(xy[coarse], axis=0), axis=1))]
            if arc[-1] < _SHORTEST_M:
                continue
            points.append(xy[coarse])
            arcs.append(arc)
            names.append(np.full(len(coarse), len(names)))
            ways.append(np.gradient(xy[coarse], arc, axis=0))
        self._tree = KDTree(np.concatenate(points)) if points else None
        self._arcs, self._names = np.concatenate([*arcs, [0.0]]), np.concatenate([*names, [-1]])
        self._points, self._ways = np.concatenate([*points, np.zeros((1, 2))]), np.concatenate([*ways, np.zeros((1, 2))])

    def locate(self, xy_m: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """For points [P, 2]: the nearest outline [P], and metres along it [P]; -1 and 0 where the map has no open ground."""
        nearest = np.full(len(xy_m), -1) if self._tree is None else self._tree.query(xy_m)[1]
        beyond = ((xy_m - self._points[nearest]) * self._ways[nearest]).sum(-1).clip(-_SPACING_M, _SPACING_M)
        return self._names[nearest], self._arcs[nearest] + beyond
