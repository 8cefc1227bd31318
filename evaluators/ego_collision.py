"""Whether an ego path runs into others: on VAD's and ST-P3's occupancy grid, and with polygons that turn with the path.

Frame: that of the path's reference point now, x forward and y left; VAD's reference point is the LiDAR. The grid lies along the
same axes: 200 x 200 cells of 0.5 m, row 0 in front and column 0 on the left, 50 m to each side.

Quirks of the grid check, kept because published figures hold them (hustvl/VAD, planner/metric_stp3.py):
- the ego's cells are moved along the path and never turned;
- cells beyond the grid count as its border, so an ego that leaves it can still hit what stands there;
- others are drawn from rounded corners and fill the cells of their outline too.
Shapes: T steps, N agents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from nuscenes.eval.detection.utils import category_to_detection_name

from dwm.footprints import rectangles

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

CELLS, CELL_M, REACH_M = 200, 0.5, 50.0
LABEL_FORWARD_M, LABEL_SIDEWAYS_M = 30.0, 15.0
OBSTACLES = ("vehicle", "human")
_STANDING_M = 0.25  # over two steps, below which a path has no direction of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class EgoBox:
    """The outline that stands for the ego, with the name that goes beside every collision rate."""

    name: str
    width_m: float
    length_m: float
    forward_m: float  # from the path's reference point to the middle of the box


VAD_EGO_BOX = EgoBox(name="ST-P3/UniAD/VAD: 1.85 x 4.084 m, 0.5 m ahead", width_m=1.85, length_m=4.084, forward_m=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class FutureAgents:
    """True boxes of others at the steps to come."""

    categories: tuple[str, ...]  # [N] nuScenes category names, e.g. vehicle.car
    sizes_wl_m: Array  # [N, 2]
    now_m: Array  # [N, 2] centres at the path's start
    centers_m: Array  # [N, T, 2]
    yaws_rad: Array  # [N, T]
    known: Mask  # [N, T] whether the log has them

    def select(self, chosen: Mask) -> FutureAgents:
        """The agents of a mask [N]."""
        names = tuple(name for name, keep in zip(self.categories, chosen, strict=True) if keep)
        arrays = ("sizes_wl_m", "now_m", "centers_m", "yaws_rad", "known")
        return replace(self, categories=names, **{name: getattr(self, name)[chosen] for name in arrays})


def obstacles(agents: FutureAgents, kinds: Sequence[str] = OBSTACLES) -> FutureAgents:
    """Vehicles and humans, told by the first part of their category's name.

    VAD tells them by the position of the category in category.json (humans 2 to 8, vehicles 14 to 23), which holds for the list
    of 32 categories that comes with nuScenes-lidarseg and draws the wrong things, silently, with any other.
    """
    return agents.select(np.array([name.split(".")[0] in kinds for name in agents.categories], bool))


def as_labelled_by_vad(agents: FutureAgents) -> FutureAgents:
    """Only what VAD's ground truth holds: the ten detection classes, within 30 m ahead or behind and 15 m to either side now.

    Nothing else can be collided with in its published figures, however near the planned path comes to it.
    """
    known_class = np.array([category_to_detection_name(name) is not None for name in agents.categories], bool)
    inside = (np.abs(agents.now_m) < [LABEL_FORWARD_M, LABEL_SIDEWAYS_M]).all(1)
    return agents.select(known_class & inside)


def occupancy(agents: FutureAgents) -> Mask:
    """Cells [T, CELLS, CELLS] that agents cover, step by step."""
    steps = agents.known.shape[1]
    grid = np.zeros((steps, CELLS, CELLS), np.uint8)
    for t in range(steps):
        for outline in _outlines(agents, t):
            corners = shapely.get_coordinates(outline)[:4]  # [4, 2] forward, left
            cv2.fillPoly(grid[t], [np.round((REACH_M - corners[:, ::-1]) / CELL_M).astype(np.int32)], (1.0,))
    return grid.astype(bool)


def hits_on_grid(path_T2: Array, grid: Mask, ego: EgoBox = VAD_EGO_BOX) -> Mask:
    """Steps [T] at which the unturned ego covers an occupied cell of [T, CELLS, CELLS]."""
    forward = _cells_of(ego.forward_m, ego.length_m)
    sideways = _cells_of(0.0, ego.width_m)
    # As in the source: counted from behind and cut, where outlines are counted from the front and rounded.
    row = (CELLS - (path_T2[:, :1] / CELL_M + forward)).astype(np.int64).clip(0, CELLS - 1)  # [T, F]
    column = (-path_T2[:, 1:] / CELL_M + sideways).astype(np.int64).clip(0, CELLS - 1)  # [T, S]
    covered = grid[np.arange(len(path_T2))[:, None, None], row[:, :, None], column[:, None, :]]
    return covered.any((1, 2))


def hits_with_heading(path_T2: Array, agents: FutureAgents, ego: EgoBox = VAD_EGO_BOX) -> Mask:
    """Steps [T] at which the ego's rectangle, turned along its path, meets that of an agent."""
    yaws = path_headings(path_T2)
    centers = path_T2 + ego.forward_m * np.stack([np.cos(yaws), np.sin(yaws)], axis=-1)
    boxes = rectangles(centers, yaws, (ego.width_m, ego.length_m, 0.0))
    return np.array([bool(shapely.intersects(boxes[t], _outlines(agents, t)).any()) for t in range(len(path_T2))], bool)


def path_headings(path_T2: Array) -> Array:
    """Headings [T] along a path that starts at the origin, heading forward: from the point before to the point after.

    Where these are less than 0.25 m apart the ego stands and keeps its heading; the direction of such steps is noise.
    """
    points = np.concatenate([np.zeros((1, 2)), path_T2])
    chords = np.concatenate([points[2:] - points[:-2], points[-1:] - points[-2:-1]])
    yaws, heading = np.empty(len(path_T2)), 0.0
    for t, (x, y) in enumerate(chords):
        heading = float(np.arctan2(y, x)) if np.hypot(x, y) >= _STANDING_M else heading
        yaws[t] = heading
    return yaws


def _outlines(agents: FutureAgents, step: int) -> NDArray[Any]:
    """Rectangles of the agents known at a step."""
    known = np.flatnonzero(agents.known[:, step])
    boxes = [
        rectangles(agents.centers_m[[i], step], agents.yaws_rad[[i], step], (*agents.sizes_wl_m[i], 0.0))[0] for i in known
    ]
    return np.array(boxes, dtype=object)


def _cells_of(middle_m: float, extent_m: float) -> NDArray[np.int64]:
    """Cells, by number from the grid's edge, whose middles lie inside an extent around ``middle_m``."""
    low, high = ((middle_m + side * extent_m / 2 + REACH_M - CELL_M / 2) / CELL_M for side in (-1, 1))
    return np.arange(np.ceil(low), np.floor(high) + 1).astype(np.int64)
