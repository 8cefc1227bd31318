"""How things look that no frame of the clip has shown yet: a shape for each class and some examples of its colours.

Learnt from LiDAR and cameras of other logs (``dwm.training.things``). A box says where a thing is; the shape says which rays
through the box meet it, and the example what they see.

Shapes: P rays, K classes (DETECTION_CLASSES), N examples, X Y Z cells of a box, forward, left, up.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dwm.errors import InputError
from dwm.models.weights import load_tensors
from dwm.scenes.types import DETECTION_CLASSES

GRID = (40, 20, 28)
_STEPS = 48  # of a ray through a box: about a cell each
_ENOUGH, _ALIKE = 5, 0.12  # examples, and how far from their median most may be, in units of the road's brightness
_KIND = "things"


@dataclass(frozen=True, slots=True, kw_only=True)
class Things:
    """Shapes and examples. Colours lie in [-1, 1] outside this class and are bytes inside."""

    solid_KXYZ: NDArray[np.bool_]  # which cells of a box the class fills; none: the class is unknown
    colours_NXYZ3: NDArray[np.uint8]  # of the surface of each example; meaningless where its class is not solid
    classes_N: NDArray[np.int64]
    road_N3: NDArray[np.float32]  # what plain road looked like under the same light, in [0, 1]
    # Where examples look alike: glass, tyres; elsewhere each has a paint of its own.
    shared_KXYZ: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((len(DETECTION_CLASSES), *GRID), bool))

    def examples(self, kind: int) -> list[int]:
        """Examples of a class."""
        return np.flatnonzero(self.classes_N == kind).tolist()

    def meet(
        self, kind_P: NDArray[np.int64], origin_P3: NDArray[np.floating], ray_P3: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Where rays from ``origin`` through a box first meet the thing in it [P, 3], NaN where they pass it by.

        Both are in half boxes. A class without a shape fills its box.
        """
        enter, leave = crossed(origin_P3, ray_P3)
        place = (origin_P3 + enter[:, None] * ray_P3).clip(-1, 1).astype(np.float32)
        step = (ray_P3 * (leave - enter).clip(min=0)[:, None] / _STEPS).astype(np.float32)
        met = np.full_like(place, np.nan)
        shaped = self.solid_KXYZ.any((1, 2, 3))[kind_P]
        met[~shaped] = place[~shaped]
        ahead, solid = shaped.nonzero()[0], self.solid_KXYZ.ravel()
        for n in range(_STEPS):
            now = place.take(ahead, axis=0) + n * step.take(ahead, axis=0)
            x, y, z = _cells(now).T
            hit = solid.take(((kind_P.take(ahead) * GRID[0] + x) * GRID[1] + y) * GRID[2] + z)
            met[ahead[hit]] = now[hit]
            ahead = ahead[~hit]
        return met

    def colours(
        self, example_P: NDArray[np.int64], place_P3: NDArray[np.floating], road_3: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """Colours [P, 3] of places on examples under the light in which plain road looks like ``road``."""
        seen = self.colours_NXYZ3[(example_P, *np.moveaxis(_cells(place_P3), -1, 0))] / 255.0
        light = ((road_3 + 1) / 2 / np.maximum(self.road_N3, 0.02))[example_P]
        return (2 * seen * light - 1).clip(-1, 1)

    def corrected(self) -> Things:
        """Where most examples of a class look alike, all of them do: whose surface was not seen there was filled from beside it."""
        colours, shared = self.colours_NXYZ3.copy(), self.shared_KXYZ.copy()
        for kind in np.unique(self.classes_N).tolist():
            examples = self.examples(kind)
            if len(examples) < _ENOUGH:
                continue
            light = 255 * np.maximum(self.road_N3[examples], 0.02)[:, None, None, None]
            seen = colours[examples] / light
            usual = np.median(seen, 0)
            shared[kind] = (np.median(np.abs(seen - usual), 0) < _ALIKE).all(-1) & self.solid_KXYZ[kind]
            colours[examples] = np.where(shared[kind][..., None], (usual * light).clip(0, 255).round(), colours[examples])
        return replace(self, colours_NXYZ3=colours, shared_KXYZ=shared)

    def is_shared(self, kind_P: NDArray[np.int64], place_P3: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether places of classes look alike in all examples [P]."""
        return self.shared_KXYZ[(kind_P, *np.moveaxis(_cells(place_P3), -1, 0))]

    def save(self, path: Path, metadata: dict[str, str]) -> Path:
        """Write a file for ``load``, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            "solid": self.solid_KXYZ.astype(np.uint8), "colours": self.colours_NXYZ3, "classes": self.classes_N, "road": self.road_N3
        }  # fmt: skip
        partial = path.with_name(path.name + ".partial")
        save_file(tensors, partial, metadata={**metadata, "format": "np", "kind": _KIND})
        os.replace(partial, path)
        return path

    @staticmethod
    def load(path: Path) -> Things:
        """Raises InputError when the file is missing, broken or holds something else."""
        tensors, metadata = load_tensors(path)
        shapes = {name: tuple(t.shape) for name, t in tensors.items()}
        n = shapes.get("classes", (0,))[0]
        fits = {"solid": (len(DETECTION_CLASSES), *GRID), "colours": (n, *GRID, 3), "classes": (n,), "road": (n, 3)}
        if metadata.get("kind") != _KIND or shapes != fits:
            raise InputError(
                path, f"holds no examples of things (kind '{metadata.get('kind', '')}')", "make them with `roadreel train`"
            )
        values = {name: t.numpy() for name, t in tensors.items()}
        return Things(
            solid_KXYZ=values["solid"] > 0, colours_NXYZ3=values["colours"], classes_N=values["classes"].astype(np.int64), road_N3=values["road"],
        ).corrected()  # fmt: skip

    @staticmethod
    def none() -> Things:
        """No shapes and no examples: every thing fills its box."""
        return Things(
            solid_KXYZ=np.zeros((len(DETECTION_CLASSES), *GRID), bool), colours_NXYZ3=np.zeros((0, *GRID, 3), np.uint8),
            classes_N=np.zeros(0, np.int64), road_N3=np.zeros((0, 3), np.float32),
        )  # fmt: skip


def crossed(origin_P3: NDArray[np.floating], ray_P3: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """How many rays' lengths from its origin a ray enters [P] and leaves [P] the box [-1, 1]; not before the origin."""
    speed = np.where(np.abs(ray_P3) < 1e-9, 1e-9, ray_P3)
    enter, leave = ((side * np.sign(speed) - origin_P3) / speed for side in (-1, 1))
    return enter.max(-1).clip(min=0), leave.min(-1)


def _cells(place: NDArray[np.floating]) -> NDArray[np.int32]:
    """Indices of the cells of places in [-1, 1]."""
    return ((place + 1) * (np.array(GRID, np.float32) / 2)).astype(np.int32).clip(0, np.array(GRID, np.int32) - 1)
