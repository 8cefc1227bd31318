"""The map around a scene when no map expansion exists: a crop of the nuScenes drivable-area mask, without lanes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dwm.errors import InputError
from dwm.scenes.types import MAP_LAYERS, SceneMap

MASK_METRES_PER_PIXEL = 0.1  # fixed by nuScenes, see the devkit's MapMask
NO_EXPANSION = "no map expansion: lanes unknown"
Region = tuple[float, float, float, float]


def read_mask_map(path: Path, region_xy_m: Region, metres_per_pixel: float = 0.2) -> SceneMap:
    """The drivable layer inside ``region_xy_m`` = (xmin, ymin, xmax, ymax); outside the mask nothing is drivable.

    ``metres_per_pixel`` must be a multiple of the mask's 0.1 m; a pixel is drivable when at least half of it is.
    """
    step = round(metres_per_pixel / MASK_METRES_PER_PIXEL)
    if step < 1 or abs(step * MASK_METRES_PER_PIXEL - metres_per_pixel) > 1e-9:
        raise InputError(path, f"cannot resample to {metres_per_pixel} m per pixel", "use a multiple of 0.1 m")
    low = [int(np.floor(v / metres_per_pixel)) for v in region_xy_m[:2]]
    cells = [*low, *(int(np.ceil(v / metres_per_pixel)) for v in region_xy_m[2:])]
    col0, row0, col1, row1 = (c * step for c in cells)
    crop = _crop(path, path.stat().st_mtime_ns, (col0, row0, col1, row1))
    blocks = crop.reshape(cells[3] - cells[1], step, cells[2] - cells[0], step)
    layers = np.zeros((len(MAP_LAYERS), *blocks.shape[::2]), np.uint8)
    layers[MAP_LAYERS.index("drivable")] = blocks.mean(axis=(1, 3)) >= 0.5
    origin = np.array(cells[:2], np.float64) * metres_per_pixel
    return SceneMap(
        layers=layers, origin_xy_m=origin, metres_per_pixel=metres_per_pixel, lane_graph=None, notes=(NO_EXPANSION,)
    )


@lru_cache(maxsize=16)
def _crop(path: Path, stamp: int, window: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Mask pixels [rows, cols], rows growing with y, for a window (col0, row0, col1, row1) counted from the map's origin."""
    col0, row0, col1, row1 = window
    try:
        with Image.open(path) as image:
            # The file's first row is the largest y. Outside the image PIL fills with 0: not drivable.
            crop = image.crop((col0, image.height - row1, col1, image.height - row0)).convert("L")
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise InputError(path, f"cannot read the map mask ({error})", "restore the file from the archive") from error
    return np.asarray(crop)[::-1] >= 128
