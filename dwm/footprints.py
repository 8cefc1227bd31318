"""Boxes seen from above, as shapely polygons."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray

from dwm.geometry import box_corners


def rectangles(xy_m: ArrayLike, yaw_rad: ArrayLike, size_wlh_m: ArrayLike) -> NDArray[Any]:
    """Ground outlines of boxes as polygons [N]: centres [N, 2], headings [N], one size (width, length, height) in metres."""
    xy, yaw = np.asarray(xy_m, dtype=np.float64), np.asarray(yaw_rad, dtype=np.float64)
    center = np.concatenate([xy, np.zeros((len(xy), 1))], axis=-1)
    corners = box_corners(center, np.tile(np.asarray(size_wlh_m, dtype=np.float64), (len(xy), 1)), yaw)
    return np.asarray(shapely.polygons(corners[:, [0, 1, 5, 4], :2]))
