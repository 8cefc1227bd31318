"""What stands beside the roads of the proving ground: buildings, trees, lamps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from shapely import Polygon
from shapely.geometry.base import BaseGeometry
from shapely.ops import unary_union

from dwm.scenes.proving_ground.curves import Array
from dwm.scenes.proving_ground.ground_plan import SIDEWALK_M, GroundPlan
from dwm.scenes.proving_ground.roads import Road, RoadNetwork

_NARROWEST_M, _SHALLOWEST_M = 9.0, 8.0
_OVERRUN_M = 26.0  # frontage beyond a road's ends: the outer side of bends
_FACADE_COLORS = np.array([
    [0.62, 0.24, 0.17], [0.74, 0.42, 0.28], [0.84, 0.66, 0.34], [0.90, 0.84, 0.66], [0.58, 0.60, 0.61],
    [0.32, 0.46, 0.64], [0.30, 0.54, 0.52], [0.52, 0.60, 0.40], [0.78, 0.54, 0.52], [0.44, 0.36, 0.34],
])  # fmt: skip
_AWNING_COLORS = np.array([[0.75, 0.12, 0.12], [0.10, 0.45, 0.25], [0.15, 0.25, 0.60], [0.85, 0.60, 0.10]])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StaticBox:
    """A thing that never moves: an upright box, or the ellipsoid inside it where ``kind`` is canopy."""

    center_m: Array  # [3]
    half_extents_m: Array  # [3] along its own x, y, z
    yaw_rad: float
    kind: str  # building, awning, trunk, canopy, pole or lamp
    color_rgb: Array  # [3] in 0..1
    material: str  # facade or plain
    seed: int  # for its texture

    def footprint(self) -> Polygon:
        """Its rectangle on the ground."""
        return _rectangle(self.center_m[:2], self.half_extents_m[:2], self.yaw_rad)


def furnish(network: RoadNetwork, plan: GroundPlan, size_m: float, rng: np.random.Generator) -> tuple[StaticBox, ...]:
    """Buildings along every road, street trees and lamps on the sidewalks' road edge, a few trees in the blocks."""
    paved = unary_union(plan.drivable + plan.walkways).buffer(0.01)
    lots = _Lots(paved, size_m)
    statics: list[StaticBox] = []
    for road in network.roads:
        for side in (-1, 1):
            statics += _buildings(road, side, lots, rng)
    for road in network.roads:
        for side in (-1, 1):
            statics += _street_trees(road, side, rng) + _lamps(road, side, rng)
    return tuple(statics + _garden_trees(lots, size_m, rng))


class _Lots:
    """The ground that is still free to build on."""

    def __init__(self, paved: BaseGeometry, size_m: float) -> None:
        self._paved, self._bounds = paved, shapely.box(0.5, 0.5, size_m - 0.5, size_m - 0.5)
        shapely.prepare(self._paved)
        self._taken: list[tuple[Polygon, tuple[float, float, float, float]]] = []

    def is_free(self, plot: Polygon) -> bool:
        if not self._bounds.contains(plot) or self._paved.intersects(plot):
            return False
        x0, y0, x1, y1 = plot.bounds
        # Comparing bounds first is several times faster than asking shapely about every plot.
        return not any(
            b[0] < x1 and b[2] > x0 and b[1] < y1 and b[3] > y0 and other.intersects(plot) for other, b in self._taken
        )

    def take(self, plot: Polygon) -> None:
        self._taken.append((plot, plot.bounds))


def _buildings(road: Road, side: int, lots: _Lots, rng: np.random.Generator) -> list[StaticBox]:
    placed: list[StaticBox] = []
    along, end = -_OVERRUN_M, road.length_m + _OVERRUN_M
    while along < end - _NARROWEST_M:
        width, depth = rng.uniform(_NARROWEST_M, 24.0), rng.uniform(_SHALLOWEST_M, 14.0)
        front = road.half_width_m + SIDEWALK_M + rng.uniform(0.5, 3.0)
        fitting = _first_fit(road, side, along, front, width, depth, lots)
        if fitting is None:
            along += 1.5
            continue
        placed += _building(road, side, along, front, *fitting, rng)
        gap = rng.uniform(2.5, 7.0) if rng.random() < 0.22 else rng.uniform(0.1, 0.6)
        along += fitting[0] + gap
    return placed


def _first_fit(
    road: Road, side: int, along: float, front: float, width: float, depth: float, lots: _Lots
) -> tuple[float, float] | None:
    """The width and depth, wished for or smaller, that fit on free ground; takes the ground."""

    def plot(w: float, d: float) -> Polygon:
        return _rectangle(road.point(along + w / 2, side * (front + d / 2)), np.array([w / 2, d / 2]), road.yaw_rad)

    if not lots.is_free(plot(_NARROWEST_M, _SHALLOWEST_M)):  # it lies inside every other plot tried here
        return None
    for w, d in ((width, depth), (max(0.7 * width, _NARROWEST_M), depth), (width, _SHALLOWEST_M), (_NARROWEST_M, depth)):
        if lots.is_free(plot(w, d)):
            lots.take(plot(w, d))
            return w, d
    lots.take(plot(_NARROWEST_M, _SHALLOWEST_M))
    return _NARROWEST_M, _SHALLOWEST_M


def _building(
    road: Road, side: int, along: float, front: float, width: float, depth: float, rng: np.random.Generator
) -> list[StaticBox]:
    """A building whose own x axis runs along the road, sometimes with an awning over the sidewalk."""
    height = float(rng.choice([rng.uniform(6, 12), rng.uniform(10, 18), rng.uniform(16, 28)], p=[0.4, 0.4, 0.2]))
    center = road.point(along + width / 2, side * (front + depth / 2))
    color = _vary(_FACADE_COLORS[rng.integers(len(_FACADE_COLORS))], 0.05, rng)
    parts = [_box(center, height / 2, (width / 2, depth / 2, height / 2), road.yaw_rad, "building", color, rng, "facade")]
    if rng.random() < 0.3:
        color = _AWNING_COLORS[rng.integers(len(_AWNING_COLORS))]
        position = road.point(along + width / 2, side * (front - 0.6))
        parts.append(_box(position, 2.9, (0.35 * width, 0.6, 0.1), road.yaw_rad, "awning", color, rng))
    return parts


def _street_trees(road: Road, side: int, rng: np.random.Generator) -> list[StaticBox]:
    """Trees between the lane ends only, so that none stands on a crossing."""
    parts: list[StaticBox] = []
    along = road.trim_a_m + rng.uniform(2.0, 6.0)
    while along < road.length_m - road.trim_b_m - 2.0:
        if rng.random() < 0.88:
            parts += _tree(road.point(along, side * (road.half_width_m + rng.uniform(0.7, 1.0))), 1.7, rng)
        along += rng.uniform(9.0, 16.0)
    return parts


def _lamps(road: Road, side: int, rng: np.random.Generator) -> list[StaticBox]:
    parts: list[StaticBox] = []
    grey = np.array([0.30, 0.31, 0.33])
    first = road.trim_a_m + (1.2 if side > 0 else 13.0)
    for along in np.arange(first, road.length_m - road.trim_b_m - 1.0, 26.0):
        foot = road.point(along, side * (road.half_width_m + 0.45))
        head = road.point(along, side * (road.half_width_m - 0.35))
        parts.append(_box(foot, 3.4, (0.08, 0.08, 3.4), road.yaw_rad, "pole", grey, rng))
        parts.append(_box(head, 6.8, (0.14, 0.85, 0.07), road.yaw_rad, "lamp", grey, rng))
    return parts


def _garden_trees(lots: _Lots, size_m: float, rng: np.random.Generator) -> list[StaticBox]:
    parts: list[StaticBox] = []
    for position in rng.uniform(3.0, size_m - 3.0, (round(size_m * 0.6), 2)):
        plot = _rectangle(position, np.array([1.8, 1.8]), 0.0)
        if lots.is_free(plot):
            lots.take(plot)
            parts += _tree(position, 2.4, rng)
    return parts


def _tree(position: Array, largest_radius_m: float, rng: np.random.Generator) -> list[StaticBox]:
    radius, trunk = rng.uniform(1.1, largest_radius_m), rng.uniform(0.11, 0.2)
    tall, bottom = rng.uniform(1.3, 2.2), rng.uniform(2.2, 2.8)
    green = _vary(np.array([0.20, 0.42, 0.16]), 0.07, rng)
    brown = _vary(np.array([0.33, 0.23, 0.15]), 0.03, rng)
    stem = bottom + 0.4 * tall  # reaches into the canopy
    yaw = float(rng.uniform(0, np.pi))
    return [
        _box(position, stem / 2, (trunk, trunk, stem / 2), yaw, "trunk", brown, rng),
        _box(position, bottom + tall, (radius, radius * rng.uniform(0.85, 1.0), tall), yaw, "canopy", green, rng),
    ]


def _box(
    center_xy: Array, z: float, half: tuple[float, float, float], yaw: float, kind: str, color: Array,
    rng: np.random.Generator, material: str = "plain",
) -> StaticBox:  # fmt: skip
    return StaticBox(
        center_m=np.array([*center_xy, z]), half_extents_m=np.array(half), yaw_rad=float(yaw), kind=kind,
        color_rgb=np.asarray(color, float), material=material, seed=int(rng.integers(2**31)),
    )  # fmt: skip


def _vary(color: Array, spread: float, rng: np.random.Generator) -> Array:
    return np.clip(color + rng.uniform(-spread, spread, 3), 0.02, 0.98)


def _rectangle(center_xy: Array, half_xy: Array, yaw: float) -> Polygon:
    c, s = np.cos(yaw), np.sin(yaw)
    corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * half_xy
    return Polygon(corners @ np.array([[c, s], [-s, c]]) + center_xy)
