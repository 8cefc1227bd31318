"""Driving where no lanes are known: how far every place is from the edge of the road, and paths that keep to the road.

A path is planned in short steps. At each step a fan of curves, two arcs after each other, is laid ahead; the one that best
keeps its distance from the edge, on its side of the road and clear of what stands there, with the least steering wins, and its first
metres become path.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from dwm.geometry import box_corners
from dwm.scenes.types import MAP_LAYERS, SceneMap

Array = NDArray[np.float64]
CELL_M = 0.5
BENDS_PER_M = np.array([-0.17, -0.08, -0.035, -0.012, 0.0, 0.012, 0.035, 0.08, 0.17])
BEND_RATE_PER_M2 = 0.02  # how fast the curvature may change along the path
FIRST_M, HORIZON_M, ADVANCE_M = 8, 26, 4
SIDE_M = 0.5  # kept from the edge beside half a width
CLEARANCE_M = (1.6, 6.0)  # the least and the most of a preferred distance from the edge
OFF_COST, NEAR_COST, FAR_COST, FAR_M, BEND_COST, SWERVE_COST, SIDE_COST = 30.0, 0.3, 0.04, 2.5, 60.0, 15.0, 0.6
SPARSE = slice(1, None, 4)  # points of a candidate at which the side of the road is looked up
OBSTACLE_REACH_M, FAR_AWAY_M = 140.0, 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """Where vehicles [V] drive: distance from the edge, which side that edge is on (1 right, -1 left), half their width."""

    clearance_m: Array
    side: Array
    half_width_m: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Paths of V vehicles: one point per metre, the given start excluded."""

    points: Array  # [V, N, 3] x, y, yaw
    curvature_per_m: Array  # [V] at the last point
    length_m: NDArray[np.int64]  # [V] metres before the road ends; N where it goes on


class DrivableField:
    """Distances to the edge of the drivable area on a grid of about half a metre."""

    def __init__(self, scene_map: SceneMap) -> None:
        step = max(round(CELL_M / scene_map.metres_per_pixel), 1)
        layer = scene_map.layers[MAP_LAYERS.index("drivable")]
        rows, cols = (size // step for size in layer.shape)
        coarse = layer[: rows * step, : cols * step].reshape(rows, step, cols, step).mean(axis=(1, 3)) > 0.5
        self.cell_m, self.origin_xy_m = step * scene_map.metres_per_pixel, scene_map.origin_xy_m
        # Positive on the road, negative beside it; 0 is the edge.
        padded = np.pad(coarse, 1)
        inner = np.asarray(distance_transform_edt(padded)) - 0.5
        outer = np.asarray(distance_transform_edt(~padded)) - 0.5 if coarse.any() else np.full(padded.shape, 1e6)
        self.signed_m = (np.where(padded, inner, -outer) * self.cell_m).astype(np.float32)
        smooth = gaussian_filter(self.signed_m, 2.0)
        rise_y, rise_x = np.gradient(smooth)
        steep = np.maximum(np.hypot(rise_x, rise_y), 1e-6)
        self.away_x, self.away_y = rise_x / steep, rise_y / steep  # unit vector away from the nearest edge

    def _cells(self, xy_m: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        cells = ((xy_m - self.origin_xy_m) / self.cell_m + 1.0).astype(np.int64)
        rows, cols = self.signed_m.shape
        return np.clip(cells[..., 1], 0, rows - 1), np.clip(cells[..., 0], 0, cols - 1)

    def edge_m(self, xy_m: Array) -> NDArray[np.float32]:
        """Distance [...] to the edge of the road, negative outside; points [..., 2] beyond the raster count as its rim."""
        return self.signed_m[self._cells(xy_m)]

    def edge_side(self, xyyaw: Array) -> Array:
        """How far to the right [...] the nearest edge is: 1 exactly to the right of poses [..., 3], -1 to the left."""
        cells = self._cells(xyyaw[..., :2])
        return self.away_y[cells] * np.cos(xyyaw[..., 2]) - self.away_x[cells] * np.sin(xyyaw[..., 2])

    def obstacles(self, xy_m: Array, yaw_rad: Array, size_wlh_m: Array, around_xy_m: Array) -> Obstacles:
        """Distances to standing boxes [N] within OBSTACLE_REACH_M of a place."""
        return Obstacles(xy_m, yaw_rad, size_wlh_m, around_xy_m, self.cell_m)

    def on_road(self, xy_m: Array, margin_m: float = 0.0) -> NDArray[np.bool_]:
        """Whether points [N, 2] are drivable, or not farther from it than the margin."""
        return self.edge_m(xy_m) > -margin_m

    def road_clearance(self, xy_m: Array) -> tuple[NDArray[np.bool_], Array]:
        """As ``on_road``, and how far [N] each point can move at least before that changes to True."""
        edge = self.edge_m(xy_m).astype(np.float64)
        return edge > 0.0, -edge - self.cell_m

    def on_crossing(self, xy_m: Array) -> NDArray[np.bool_]:
        """No crossings are known without map vectors."""
        return np.zeros(len(xy_m), dtype=bool)

    def across_yaw(self, xy_m: Array, yaw_rad: Array) -> Array:
        """Who is on the road keeps going the way that they go."""
        return yaw_rad

    def preferred_clearance_m(self, xy_m: Array, half_width_m: float) -> float:
        """The distance from the edge that a track [N, 2] kept, within what makes sense."""
        low, high = CLEARANCE_M
        return float(np.clip(np.median(self.edge_m(xy_m)), max(low, half_width_m + SIDE_M), high))

    def plan(
        self, start_xyyaw: Array, curvature_per_m: Array, habits: Habits, length_m: int, obstacles: Obstacles | None = None
    ) -> Planned:
        """Paths along the road from poses [V, 3]; where the road ends, points go straight on but do not count."""
        pose, bend = start_xyyaw.astype(np.float64), curvature_per_m.astype(np.float64)
        length = np.full(len(pose), length_m)
        points = np.zeros((len(pose), length_m, 3))
        for done in range(0, length_m, ADVANCE_M):
            fan, bends = _fan(pose, bend)
            edge = self.edge_m(fan[..., :2])
            free = edge if obstacles is None else np.minimum(edge, obstacles.distance_m(fan[..., :2]))
            wrong = 1 - habits.side[:, None, None] * self.edge_side(fan[:, :, SPARSE])
            best = np.argmin(_costs(edge, free, bends, habits) + SIDE_COST / 2 * wrong.mean(axis=2), axis=1)
            rows, count = np.arange(len(pose)), min(ADVANCE_M, length_m - done)
            points[:, done : done + count] = fan[rows, best, :count]
            # Even the best way leaves the road with half the vehicle.
            kept = np.cumprod(edge[rows, best, :count] > 0.0, axis=1).sum(axis=1)
            length = np.where((kept < count) & (length == length_m), done + kept, length)
            pose, bend = fan[rows, best, count - 1], bends[rows, best, count - 1]
        return Planned(points=points, curvature_per_m=bend, length_m=length)


class Obstacles:
    """Distances to what stands on the road, on a grid."""

    def __init__(self, xy_m: Array, yaw_rad: Array, size_wlh_m: Array, around_xy_m: Array, cell_m: float) -> None:
        self.origin_xy_m, self.cell_m = around_xy_m - OBSTACLE_REACH_M, cell_m
        count = int(2 * OBSTACLE_REACH_M / cell_m)
        mask = np.ones((count, count), dtype=np.uint8)
        centers = np.concatenate([xy_m, np.zeros((len(xy_m), 1))], axis=1)
        corners = box_corners(centers, size_wlh_m, yaw_rad)[:, [0, 1, 5, 4], :2]
        for corner in np.round((corners - self.origin_xy_m) / cell_m - 0.5).astype(np.int32, order="C"):
            cv2.fillConvexPoly(mask, corner, (0,))
        self._distance = cv2.distanceTransform(mask, cv2.DIST_L2, 5) * np.float32(cell_m)

    def distance_m(self, xy_m: Array) -> NDArray[np.float32]:
        """Distance [...] to the nearest box, 0 inside; far away beyond the grid."""
        cells = ((xy_m - self.origin_xy_m) / self.cell_m).astype(np.int64)
        size = len(self._distance)
        inside = ((cells >= 0) & (cells < size)).all(axis=-1)
        cells = np.clip(cells, 0, size - 1)
        return np.where(inside, self._distance[cells[..., 1], cells[..., 0]], np.float32(FAR_AWAY_M))


def _fan(pose: Array, bend: Array) -> tuple[Array, Array]:
    """Candidate paths [V, C, HORIZON_M, 3] at one point per metre, and their curvatures [V, C, HORIZON_M]."""
    first, then = (grid.ravel() for grid in np.meshgrid(BENDS_PER_M, BENDS_PER_M, indexing="ij"))
    bends = np.empty((len(pose), len(first), HORIZON_M))
    now = np.repeat(bend[:, None], len(first), axis=1)
    for k in range(HORIZON_M):
        wish = first if k < FIRST_M else then
        now = now + np.clip(wish - now, -BEND_RATE_PER_M2, BEND_RATE_PER_M2)
        bends[:, :, k] = now
    yaw = pose[:, None, 2:3] + np.cumsum(bends, axis=2)
    middle = yaw - bends / 2
    x = pose[:, None, 0:1] + np.cumsum(np.cos(middle), axis=2)
    y = pose[:, None, 1:2] + np.cumsum(np.sin(middle), axis=2)
    return np.stack([x, y, yaw], axis=-1), bends


def _costs(edge_m: NDArray, free_m: NDArray, bends: Array, habits: Habits) -> Array:
    """What each candidate [V, C] costs: touching something, then being nearer to the edge than usual, steering, being farther."""
    needed = (habits.half_width_m + SIDE_M)[:, None, None]
    touch = np.maximum(needed - free_m, 0.0) ** 2
    apart = edge_m - habits.clearance_m[:, None, None]
    place = np.where(apart < 0, NEAR_COST * apart**2, FAR_COST * np.minimum(apart, FAR_M) ** 2)
    swerve = np.abs(bends[..., -1] - bends[..., FIRST_M - 1]) * SWERVE_COST
    return (OFF_COST * touch + place + BEND_COST * bends**2).mean(axis=2) + swerve / HORIZON_M


_FIELDS: OrderedDict[int, tuple[SceneMap, DrivableField]] = OrderedDict()


def drivable_field(scene_map: SceneMap) -> DrivableField | None:
    """The field of a map, built on first use and kept for the last few maps; None where nothing is drivable."""
    key = id(scene_map)
    if key not in _FIELDS or _FIELDS[key][0] is not scene_map:
        _FIELDS[key] = (scene_map, DrivableField(scene_map))
        while len(_FIELDS) > 4:
            _FIELDS.popitem(last=False)
    field = _FIELDS[key][1]
    return field if (field.signed_m > 0).any() else None
