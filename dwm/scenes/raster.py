"""Drawing shapely geometries, in metres, into rasters whose rows grow with y and columns with x."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

_SHIFT = 8  # cv2 fixed-point bits
DIVIDER_WIDTH_M = 0.4  # two pixels at the usual 0.2 m


def fill(
    raster: NDArray[np.uint8],
    geometries: Iterable[BaseGeometry],
    value: int,
    metres_per_pixel: float,
    origin_xy_m: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Set the pixels whose centres lie in the polygons (multi-polygons, collections) to ``value``, in place."""
    rows, cols = raster.shape
    x0, y0 = origin_xy_m
    window = shapely.box(x0, y0, x0 + cols * metres_per_pixel, y0 + rows * metres_per_pixel).buffer(4 * metres_per_pixel)
    for geometry in geometries:
        valid = geometry if geometry.is_valid else shapely.make_valid(geometry)
        clipped = valid if window.contains(valid) else valid.intersection(window)
        # cv2 also paints the pixels under the outline, half a pixel too far out.
        for part in shapely.get_parts(clipped.buffer(-metres_per_pixel / 2, join_style="mitre")):
            if not part.is_empty:
                _fill_polygon(raster, part, value, metres_per_pixel, origin_xy_m)


def draw_lines(
    raster: NDArray[np.uint8],
    lines: Iterable[NDArray[np.float64]],
    width_m: float,
    value: int,
    metres_per_pixel: float,
    origin_xy_m: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Set the pixels under polylines [P, 2] of the given width (more than a pixel), in place."""
    bands = (
        shapely.LineString(line).buffer(width_m / 2, cap_style="flat", join_style="mitre") for line in lines if len(line) > 1
    )
    fill(raster, bands, value, metres_per_pixel, origin_xy_m)


def map_layers(
    *,
    drivable: Iterable[BaseGeometry],
    dividers: Iterable[NDArray[np.float64]],
    crossings: Iterable[BaseGeometry],
    walkways: Iterable[BaseGeometry],
    shape: tuple[int, int],
    metres_per_pixel: float,
    origin_xy_m: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.uint8]:
    """The layers of a ``SceneMap`` [4, rows, cols], in the order of ``MAP_LAYERS``."""
    layers = np.zeros((4, *shape), np.uint8)
    fill(layers[0], drivable, 1, metres_per_pixel, origin_xy_m)
    draw_lines(layers[1], dividers, DIVIDER_WIDTH_M, 1, metres_per_pixel, origin_xy_m)
    fill(layers[2], crossings, 1, metres_per_pixel, origin_xy_m)
    fill(layers[3], walkways, 1, metres_per_pixel, origin_xy_m)
    return layers


def _fill_polygon(
    raster: NDArray[np.uint8], polygon: shapely.Polygon, value: int, metres_per_pixel: float, origin_xy_m: tuple[float, float]
) -> None:
    rings = [polygon.exterior, *polygon.interiors]
    points = [(np.asarray(ring.coords)[:, :2] - origin_xy_m) / metres_per_pixel - 0.5 for ring in rings]
    fixed = [np.round(ring * (1 << _SHIFT)).astype(np.int32) for ring in points]
    cv2.fillPoly(raster, fixed, (int(value),), lineType=cv2.LINE_8, shift=_SHIFT)
