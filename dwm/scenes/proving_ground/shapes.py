"""The shapes of the ten detection classes: a few boxes and ellipsoids each, enough to be recognised by.

Coordinates are fractions of the annotated box's half extents, x forward, y left, z up, so that every part lies inside
the box and the box's centre lies inside a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dwm.scenes.proving_ground.materials import GLASS, HEADLIGHT, PLAIN, TAILLIGHT

Vec = tuple[float, float, float]
TYRE, STEEL, SKIN = (0.06, 0.06, 0.07), (0.35, 0.36, 0.38), (0.78, 0.6, 0.48)
PAINT = (
    (0.75, 0.08, 0.08), (0.1, 0.2, 0.62), (0.85, 0.85, 0.83), (0.12, 0.12, 0.13), (0.55, 0.57, 0.6),
    (0.1, 0.42, 0.24), (0.85, 0.65, 0.1), (0.45, 0.2, 0.1), (0.2, 0.55, 0.75), (0.9, 0.4, 0.1),
)  # fmt: skip
CLOTHES = (
    (0.7, 0.1, 0.15),
    (0.1, 0.3, 0.6),
    (0.2, 0.45, 0.2),
    (0.85, 0.8, 0.2),
    (0.5, 0.2, 0.5),
    (0.9, 0.9, 0.9),
    (0.15, 0.15, 0.2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A box or ellipsoid: centre and half extents as fractions of the annotated box's half extents."""

    center: Vec
    half: Vec
    color: Vec
    material: int = PLAIN
    ellipsoid: bool = False


def _box(center: Vec, half: Vec, color: Vec, material: int = PLAIN) -> Part:
    return Part(center=center, half=half, color=color, material=material)


def _ball(center: Vec, half: Vec, color: Vec, material: int = PLAIN) -> Part:
    return Part(center=center, half=half, color=color, material=material, ellipsoid=True)


def _wheels(xs: tuple[float, ...], radius: Vec, y: float = 0.86) -> list[Part]:
    return [_ball((x, side * y, -1 + radius[2]), radius, TYRE) for x in xs for side in (-1, 1)]


def _lights(y: float, z: float, half_y: float, half_z: float) -> list[Part]:
    front = [_box((0.985, s * y, z), (0.014, half_y, half_z), (1.0, 0.95, 0.8), HEADLIGHT) for s in (-1, 1)]
    return front + [_box((-0.985, s * y, z), (0.014, half_y, half_z), (0.85, 0.05, 0.05), TAILLIGHT) for s in (-1, 1)]


def _car(paint: Vec) -> list[Part]:
    return [
        _box((0.0, 0.0, -0.24), (0.97, 0.97, 0.42), paint),
        _box((-0.1, 0.0, 0.5), (0.56, 0.84, 0.4), (0.1, 0.13, 0.17), GLASS),
        _box((-0.1, 0.0, 0.94), (0.48, 0.82, 0.06), paint),
        *_wheels((0.6, -0.6), (0.15, 0.13, 0.38)),
        *_lights(0.68, -0.1, 0.24, 0.12),
    ]


def _truck(paint: Vec) -> list[Part]:
    return [
        _box((0.74, 0.0, -0.15), (0.24, 0.92, 0.62), paint),
        _box((0.9, 0.0, 0.12), (0.09, 0.85, 0.24), (0.1, 0.13, 0.17), GLASS),
        _box((-0.25, 0.0, 0.15), (0.74, 1.0, 0.85), (0.86, 0.86, 0.82)),
        _box((-0.25, 0.0, -0.3), (0.73, 1.0, 0.08), paint),
        _box((0.0, 0.0, -0.78), (0.95, 0.6, 0.1), STEEL),
        *_wheels((0.7, -0.45, -0.75), (0.14, 0.12, 0.32)),
        *_lights(0.75, -0.55, 0.18, 0.08),
    ]


def _bus(paint: Vec) -> list[Part]:
    return [
        _box((0.0, 0.0, 0.08), (0.98, 0.97, 0.9), paint),
        _box((-0.03, 0.0, 0.38), (0.9, 1.0, 0.24), (0.1, 0.14, 0.18), GLASS),
        _box((0.98, 0.0, 0.25), (0.02, 0.85, 0.4), (0.1, 0.14, 0.18), GLASS),
        _box((0.0, 0.0, -0.45), (0.985, 0.99, 0.06), (0.95, 0.95, 0.9)),
        *_wheels((0.68, -0.6), (0.09, 0.1, 0.3)),
        *_lights(0.75, -0.6, 0.15, 0.08),
    ]


def _trailer(paint: Vec) -> list[Part]:
    return [
        _box((0.0, 0.0, 0.18), (1.0, 1.0, 0.82), paint),
        *[_box((x, 0.0, 0.18), (0.02, 1.0, 0.8), STEEL) for x in (-0.6, -0.2, 0.2, 0.6)],
        _box((0.0, 0.0, -0.68), (0.96, 0.5, 0.06), STEEL),
        _box((0.7, 0.0, -0.82), (0.04, 0.6, 0.18), STEEL),
        *_wheels((-0.6, -0.8), (0.08, 0.14, 0.26)),
    ]


def _construction(paint: Vec) -> list[Part]:
    yellow = (0.92, 0.68, 0.08)
    return [
        *[_box((-0.1, s * 0.72, -0.75), (0.75, 0.26, 0.25), TYRE) for s in (-1, 1)],
        _box((-0.2, 0.0, -0.05), (0.6, 0.8, 0.48), yellow),
        _box((0.05, 0.35, 0.62), (0.26, 0.4, 0.36), (0.12, 0.16, 0.2), GLASS),
        _box((0.05, 0.35, 0.98), (0.28, 0.42, 0.02), yellow),
        _box((0.55, -0.25, 0.55), (0.4, 0.12, 0.12), yellow),
        _box((0.9, -0.25, 0.05), (0.07, 0.1, 0.5), yellow),
        _box((0.88, -0.25, -0.65), (0.12, 0.4, 0.25), STEEL),
    ]


def _pedestrian(paint: Vec) -> list[Part]:
    trousers = tuple(0.4 * c + 0.05 for c in paint[::-1])
    return [
        *[_box((s * 0.25, s * 0.35, -0.55), (0.3, 0.24, 0.45), trousers) for s in (-1, 1)],  # type: ignore[arg-type]
        _box((0.0, 0.0, 0.22), (0.42, 0.62, 0.36), paint),
        *[_box((-s * 0.2, s * 0.8, 0.12), (0.25, 0.16, 0.36), paint) for s in (-1, 1)],
        _ball((0.05, 0.0, 0.8), (0.4, 0.36, 0.2), SKIN),
    ]


def _rider(paint: Vec) -> list[Part]:
    return [
        _box((-0.08, 0.0, 0.25), (0.16, 0.55, 0.38), paint),
        _box((0.12, 0.0, 0.3), (0.2, 0.85, 0.08), paint),
        _ball((-0.02, 0.0, 0.82), (0.13, 0.36, 0.18), (0.15, 0.15, 0.18)),
    ]


def _motorcycle(paint: Vec) -> list[Part]:
    return [
        _box((0.0, 0.0, -0.25), (0.5, 0.42, 0.26), paint),
        *[_ball((x, 0.0, -0.6), (0.3, 0.22, 0.4), TYRE) for x in (-0.68, 0.68)],
        *_rider((0.2, 0.2, 0.24)),
        _box((0.75, 0.0, 0.0), (0.05, 0.3, 0.12), (1.0, 0.95, 0.8), HEADLIGHT),
    ]


def _bicycle(paint: Vec) -> list[Part]:
    return [
        _box((0.0, 0.0, -0.25), (0.5, 0.16, 0.12), paint),
        _box((0.0, 0.0, -0.12), (0.05, 0.16, 0.3), paint),
        *[_ball((x, 0.0, -0.55), (0.38, 0.14, 0.45), TYRE) for x in (-0.6, 0.6)],
        *_rider(paint),
    ]


def _cone(_: Vec) -> list[Part]:
    orange, white = (0.95, 0.38, 0.05), (0.95, 0.95, 0.95)
    rings = ((-0.62, 0.78, 0.26, orange), (-0.15, 0.56, 0.24, white), (0.3, 0.38, 0.22, orange), (0.75, 0.24, 0.25, orange))
    return [_box((0.0, 0.0, -0.93), (1.0, 1.0, 0.07), (0.15, 0.15, 0.15))] + [
        _box((0.0, 0.0, z), (r, r, h), color) for z, r, h, color in rings
    ]


def _barrier(_: Vec) -> list[Part]:
    colors = ((0.85, 0.12, 0.1), (0.92, 0.92, 0.9))
    panels = [_box((0.0, -0.8 + 0.4 * i, 0.15), (0.45, 0.2, 0.85), colors[i % 2]) for i in range(5)]
    return [*panels, _box((0.0, 0.0, -0.82), (1.0, 1.0, 0.18), (0.5, 0.5, 0.48))]


_SHAPES: dict[str, tuple[Callable[[Vec], list[Part]], tuple[Vec, ...]]] = {
    "car": (_car, PAINT), "truck": (_truck, PAINT), "bus": (_bus, PAINT), "trailer": (_trailer, PAINT),
    "construction_vehicle": (_construction, PAINT), "pedestrian": (_pedestrian, CLOTHES),
    "motorcycle": (_motorcycle, PAINT), "bicycle": (_bicycle, CLOTHES),
    "traffic_cone": (_cone, PAINT), "barrier": (_barrier, PAINT),
}  # fmt: skip


def shape_of(detection_class: str, seed: int) -> list[Part]:
    """The parts of one agent; the seed picks its colour."""
    build, palette = _SHAPES[detection_class]
    return build(palette[int(np.random.default_rng(seed).integers(len(palette)))])
