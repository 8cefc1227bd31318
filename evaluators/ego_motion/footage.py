"""Stretches of video with known poses, to learn ego motion from: rendered drives, or logs in nuScenes format.

Shapes: T moments, V views, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dwm.errors import InputError
from dwm.geometry import invert, yaw_from_rotation
from dwm.scenes.clips import read_images, resize
from dwm.scenes.nuscenes import missing_images, nearest_frames, read_scene
from dwm.scenes.types import CAMERAS, Scene, other_side
from dwm.training.cache import rendered_drives
from evaluators.splits import scenes_of_split

Array = NDArray[np.float64]
Images = NDArray[np.uint8]


class LoggedImages:
    """Images of a log's moments, decoded when they are asked for: a split does not fit into memory."""

    def __init__(self, scene: Scene, rows: dict[str, list[int]], image_hw: tuple[int, int]) -> None:
        self._scene, self._rows, self._image_hw = scene, rows, image_hw

    def __getitem__(self, moment: int) -> Images:
        """[V, H, W, 3]"""
        views = [read_images(self._scene, channel, [self._rows[channel][moment]], self._image_hw)[0] for channel in CAMERAS]
        return np.stack(views)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footage:
    """One stretch."""

    images: Images | LoggedImages  # [T, V, H, W, 3]
    times_s: Array  # [T]
    ego_to_global: Array  # [T, 4, 4]
    intrinsics: Array  # [V, 3, 3] for these images
    camera_to_ego: Array  # [V, 4, 4]

    def pairs(self, shortest_s: float, longest_s: float) -> list[tuple[int, int]]:
        """Moments so far apart, earlier one first."""
        apart = self.times_s[None] - self.times_s[:, None]
        return [(int(a), int(b)) for a, b in np.argwhere((apart > shortest_s - 1e-3) & (apart < longest_s + 1e-3))]

    def step(self, a: int, b: int) -> Array:
        """The motion [3] from moment a to moment b (``evaluators.ego_motion.path``), also backwards in time."""
        relative = invert(self.ego_to_global[a]) @ self.ego_to_global[b]
        return np.array([relative[0, 3], relative[1, 3], float(yaw_from_rotation(relative))])


def footage_of_drives(folder: Path, image_hw: tuple[int, int]) -> list[Footage]:
    """What the training target "drives" rendered, drive by drive; InputError where there is nothing."""
    out = []
    for each in rendered_drives(folder):
        cameras = each.scenario.scene.cameras
        out.append(
            Footage(
                images=_resized(each.images, image_hw), times_s=np.array(each.frames) / each.scenario.fps,
                ego_to_global=each.scenario.ego_to_global[each.frames],
                intrinsics=np.stack([c.resized(image_hw[1], image_hw[0]).intrinsics for c in cameras]),
                camera_to_ego=np.stack([c.camera_to_ego for c in cameras]),
            )
        )  # fmt: skip
    return out


def footage_of_logs(dataroot: Path, version: str, split: str, image_hw: tuple[int, int]) -> list[Footage]:
    """The scenes of a split whose images are there, at the times of the front camera; InputError where none is."""
    out = []
    for name in tqdm(scenes_of_split(dataroot, version, split), desc="logs", disable=None):
        scene = read_scene(dataroot, version, name, 1.0)
        front = np.array([frame.timestamp_us for frame in scene.frames[CAMERAS[0]]])
        rows = nearest_frames(scene, front)
        gone = {channel: set(missing) for channel, missing in missing_images(scene).items()}
        there = [t for t in range(len(front)) if not any(int(rows[c][t]) in gone.get(c, ()) for c in CAMERAS)]
        if len(there) < 2:
            continue
        cameras = [c.resized(image_hw[1], image_hw[0]) for c in scene.cameras]
        out.append(
            Footage(
                images=LoggedImages(scene, {c: [int(rows[c][t]) for t in there] for c in CAMERAS}, image_hw),
                times_s=(front[there] - front[0]) * 1e-6, ego_to_global=scene.ego.at(front[there]),
                intrinsics=np.stack([c.intrinsics for c in cameras]), camera_to_ego=np.stack([c.camera_to_ego for c in cameras]),
            )
        )  # fmt: skip
    if not out:
        raise InputError(
            dataroot, f"no scene of {version}, split '{split}', has two moments with all six images", "check split and files"
        )
    return out


def _resized(images: Images, image_hw: tuple[int, int]) -> Images:
    if images.shape[2:4] == image_hw:
        return images
    return np.stack([np.stack([resize(view, image_hw) for view in frame]) for frame in images])


def mirrored(images: Sequence[Images], intrinsics: Array, camera_to_ego: Array) -> tuple[list[Images], Array, Array]:
    """The world in a mirror: images [V, H, W, 3] flipped and left cameras for right ones, with cameras that see just that."""
    width = images[0].shape[2]
    order = other_side(CAMERAS)
    flip_x, flip_y = np.diag([-1.0, 1.0, 1.0, 1.0]), np.diag([1.0, -1.0, 1.0, 1.0])
    flipped = intrinsics.copy()
    flipped[:, 0, 2] = width - 1 - intrinsics[:, 0, 2]
    return [image[order, :, ::-1] for image in images], flipped[order], (flip_y @ camera_to_ego @ flip_x)[order]
