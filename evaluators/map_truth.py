"""True map lines around a LiDAR pose, from a nuScenes map expansion, cut and merged as VAD does it for its evaluation.

Divider: the lines of road_divider and lane_divider. Crossing: the outline of the union of ped_crossing. Boundary: the outline of
the union of road_segment and lane. All inside a patch of 60 x 30 m, 60 along the driving direction. Outlines are cut 0.2 m inside
the patch, so that the patch's own edge is no boundary; those of crossings 0.2 m outside, so that there it is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.geometry import yaw_from_rotation
from evaluators.mapping import MapLine

if TYPE_CHECKING:
    from nuscenes.map_expansion.map_api import NuScenesMap

Array = NDArray[np.float64]

PATCH_FORWARD_M, PATCH_SIDEWAYS_M = 60.0, 30.0
_EDGE_M = 0.2


def open_map(dataroot: Path, location: str) -> NuScenesMap:
    """The devkit's map of ``maps/expansion/<location>.json``, whatever its name; the two last opened are kept.

    Raises:
        InputError: no such file, or not a map expansion of version 1.3 with all its layers.
    """
    path = dataroot / "maps" / "expansion" / f"{location}.json"
    if not path.is_file():
        raise InputError(path, "no such map expansion", "unpack the nuScenes map expansion into maps/expansion of the dataroot")
    return _open(dataroot, location, path.stat().st_mtime_ns)


def map_lines(nusc_map: NuScenesMap, lidar_to_global: Array) -> tuple[MapLine, ...]:
    """The lines [P, 2] around a pose [4, 4] of LIDAR_TOP (x right, y forward), in that frame.

    Only the pose's position and heading count: the map is flat. Lines are not resampled.
    """
    pose = np.asarray(lidar_to_global, np.float64)
    # The devkit's order is x, y, height, width: in the patch's own axes, height is along y and width along x.
    patch = (float(pose[0, 3]), float(pose[1, 3]), PATCH_FORWARD_M, PATCH_SIDEWAYS_M)
    angle_deg = float(np.degrees(yaw_from_rotation(pose)))

    def layer(name: str) -> list[shapely.Geometry]:
        found = nusc_map.get_map_geom(patch, angle_deg, [name])
        return [geometry for _, geometries in found for geometry in geometries]

    lines = {
        "divider": [line for name in ("road_divider", "lane_divider") for line in layer(name)],
        "ped_crossing": _outlines(layer("ped_crossing"), _EDGE_M),
        "boundary": _outlines([*layer("road_segment"), *layer("lane")], -_EDGE_M),
    }
    return tuple(MapLine(class_name=name, points_m=points) for name, found in lines.items() for points in _parts(found))


def _outlines(polygons: list[shapely.Geometry], margin_m: float) -> list[shapely.Geometry]:
    """Rings of the union, each cut by the patch and its pieces joined again where they touch."""
    x, y = PATCH_SIDEWAYS_M / 2 + margin_m, PATCH_FORWARD_M / 2 + margin_m
    union = shapely.get_parts(shapely.union_all(polygons))
    rings = shapely.get_rings(union[shapely.get_type_id(union) == shapely.GeometryType.POLYGON])
    return [shapely.line_merge(piece) for piece in shapely.intersection(rings, shapely.box(-x, -y, x, y))]


def _parts(geometries: Iterable[shapely.Geometry]) -> list[Array]:
    """The lines among them; where a line only touches the patch there are points instead."""
    parts = shapely.get_parts(shapely.get_parts(np.array(list(geometries), dtype=object)))
    lines = parts[shapely.get_type_id(parts) == shapely.GeometryType.LINESTRING]
    return [shapely.get_coordinates(line) for line in lines if not line.is_empty]


@lru_cache(maxsize=2)
def _open(dataroot: Path, location: str, modified_ns: int) -> NuScenesMap:
    # Slow to import, and not needed before a map is read.
    from nuscenes.map_expansion import map_api

    # The devkit refuses names other than its own four.
    if location not in map_api.locations:
        map_api.locations.append(location)
    try:
        return map_api.NuScenesMap(str(dataroot), location)
    except Exception as error:  # an outdated version is a bare Exception there
        path = dataroot / "maps" / "expansion" / f"{location}.json"
        problem = f"the devkit cannot read it ({type(error).__name__}: {error})"
        raise InputError(path, problem, "give a map expansion of version 1.3 with all its layers") from error
