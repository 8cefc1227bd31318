"""Learns what things look like from logs with LiDAR: the shape of each class, and its best seen examples.

All things of a class share one shape in units of their box, and are taken to be symmetric about their length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, gaussian_filter
from scipy.spatial import KDTree
from tqdm import tqdm

from dwm.conditioning.things import GRID, Things
from dwm.device import pick_device
from dwm.errors import InputError
from dwm.scenes.coloured_points import ColouredPoints, coloured_points
from dwm.scenes.nuscenes import list_scenes, read_scene
from dwm.scenes.proving_ground.build import build_world
from dwm.scenes.types import DETECTION_CLASSES, Scene
from dwm.training.config import ThingsConfig

_FLOOR = -0.94  # of a box: what lies lower may be the ground
_LEAST_POINTS = 12  # of an example
_SOLID = 0.2  # a cell belongs to the shape at this share of the density that a well seen cell has
_OTHER_SIDE = 0.15  # how far, in half boxes, the mirror image of a point is from being that point
_NEIGHBOURS = 5
_LEAST_PIXELS = 8.0  # along a half box's height, for a point's colour to count
_COARSE = 0.3  # how far, in half boxes, a point seen that small is from one seen well
_DIM = 0.22  # road darker than this: things are lit too badly to tell their colours


@dataclass(slots=True)
class _Seen:
    """One thing, as seen so far."""

    kind: int
    road_3: NDArray[np.float64]
    parts: list[NDArray[np.float64]] = field(default_factory=list)
    colours: list[NDArray[np.uint8]] = field(default_factory=list)
    coarse: list[NDArray[np.float64]] = field(default_factory=list)


def learn_things(config: ThingsConfig, progress: bool = False) -> Path:
    """Write the things of a dataroot to ``config.out``; the path.

    Raises InputError when the dataroot has nothing to learn from.
    """
    root, counts, seen = Path(config.dataroot), np.zeros((len(DETECTION_CLASSES), *GRID)), []
    if config.world_scenes and not root.exists():
        build_world(
            root, config.world_scenes, config.world_seed, duration_s=config.world_duration_s, version=config.version,
            device=str(pick_device(config.device)), progress=progress,
        )  # fmt: skip
    names = list_scenes(root, config.version)
    for name in tqdm(names, desc="things", unit="scene", disable=not progress):
        scene = read_scene(root, config.version, name)
        seen += _look_at(scene, counts)
    if not seen:
        raise InputError(
            root, "no labelled thing has LiDAR points in sight of a camera", "give a dataroot with LiDAR and annotations"
        )
    solid = np.stack([_shape(grid) for grid in counts])
    chosen = [thing for kind in range(len(DETECTION_CLASSES)) for thing in _best(seen, kind, config.examples)]
    things = Things(
        solid_KXYZ=solid, colours_NXYZ3=np.stack([_coloured(thing, solid[thing.kind]) for thing in chosen]),
        classes_N=np.array([thing.kind for thing in chosen]), road_N3=np.stack([thing.road_3 for thing in chosen]).astype(np.float32),
    )  # fmt: skip
    return things.save(Path(config.out), {"trained_on": config.trained_on, "scenes": str(len(names))})


def _look_at(scene: Scene, counts: NDArray[np.float64]) -> list[_Seen]:
    """Things of one scene with the colours of their points; adds their points to ``counts`` [K, X, Y, Z]."""
    found: dict[int, _Seen] = {}
    sweeps = [coloured_points(scene, k) for k in range(len(scene.key_timestamps_us))]
    road = _road(scene, sweeps)
    for points in sweeps:
        for index in np.unique(points.agent[points.agent >= 0]).tolist():
            agent = scene.agents[index]
            here = (points.agent == index) & (points.part[:, 2] > _FLOOR)
            if agent.detection_class is None or not here.any():
                continue
            kind = DETECTION_CLASSES.index(agent.detection_class)
            part = points.part[here]
            for side in (part, part * [1, -1, 1]):
                np.add.at(counts[kind], tuple(((side + 1) / 2 * GRID).astype(int).clip(0, np.array(GRID) - 1).T), 1)
            coarse = _LEAST_PIXELS / (points.pixels_per_m[here] * agent.size_wlh_m[2] / 2)
            near = coarse < 1
            thing = found.setdefault(index, _Seen(kind, road))
            thing.parts.append(part[near])
            thing.colours.append(points.colours[here][near])
            thing.coarse.append(coarse[near])
    return list(found.values())


def _road(scene: Scene, sweeps: list[ColouredPoints]) -> NDArray[np.float64]:
    """The usual colour of the road in a scene, in [0, 1]."""
    colours = [p.colours[(p.agent < 0) & scene.map.lookup("drivable", p.xyz_m[:, :2])] for p in sweeps]
    return np.median(np.concatenate([*colours, np.full((1, 3), 96)]), axis=0) / 255


def _shape(counts_XYZ: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Cells that hold about as many points as the surface of the class usually does."""
    density = gaussian_filter(counts_XYZ, 0.8)
    if not density.any():
        return np.zeros(counts_XYZ.shape, bool)
    solid = density > _SOLID * np.percentile(density[density > 1e-3], 80)
    return np.asarray(binary_closing(np.pad(solid, 2), np.ones((3, 3, 3))), bool)[2:-2, 2:-2, 2:-2]


def _best(seen: list[_Seen], kind: int, most: int) -> list[_Seen]:
    """The examples of a class that were seen from most sides and in good light, best first."""
    scored: list[tuple[float, int, _Seen]] = []
    for thing in seen:
        if thing.kind == kind and sum(map(len, thing.parts)) >= _LEAST_POINTS:
            part = np.concatenate(thing.parts)
            cells = np.unique(
                np.c_[np.round(part[:, 0] * 4), np.round(np.abs(part[:, 1]) * 2), np.round(part[:, 2] * 5)], axis=0
            )
            scored.append((len(cells) * min(1.0, float(thing.road_3.mean()) / _DIM), -len(scored), thing))
    return [thing for *_, thing in sorted(scored, key=lambda s: s[:2], reverse=True)[:most]]


def _coloured(thing: _Seen, solid_XYZ: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Colours [X, Y, Z, 3] of the solid cells: the median of the nearest points, of either side."""
    part, colours = np.concatenate(thing.parts), np.concatenate(thing.colours)
    coarse = _COARSE * np.concatenate(thing.coarse)
    sides = [np.c_[part, coarse], np.c_[part * [1, -1, 1], coarse + _OTHER_SIDE]]
    tree = KDTree(np.concatenate(sides))
    cells = np.argwhere(solid_XYZ)
    centres = (cells + 0.5) / GRID * 2 - 1
    _, nearest = tree.query(np.c_[centres, np.zeros(len(cells))], k=_NEIGHBOURS)
    out = np.zeros((*GRID, 3), np.uint8)
    out[tuple(cells.T)] = np.median(colours[nearest % len(part)], axis=1)
    return out
