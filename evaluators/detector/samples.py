"""Key frames with images, cameras and boxes, cached as one uint8 memory map.

Shapes: S key frames, V views, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dwm.geometry import invert
from dwm.scenes.clips import read_images
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.types import CAMERAS, DETECTION_CLASSES, Scene
from evaluators.boxes import Boxes, boxes_of_scene

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFrames:
    """S key frames; the previous key frame of the same scene by index, or the frame itself at the start of a scene."""

    images: NDArray[np.uint8]  # [S, V, H, W, 3], usually memory mapped
    intrinsics: Array  # [S, V, 3, 3] for these images
    camera_to_ego: Array  # [S, V, 4, 4] into the ego frame of the sample's own time, whatever the camera's time
    ego_to_global: Array  # [S, 4, 4]
    previous: NDArray[np.int64]  # [S]
    boxes: tuple[Boxes, ...]  # [S] ego frame
    tokens: tuple[str, ...]  # [S] sample tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def history(self, index: int, frames: int) -> tuple[NDArray[np.uint8], Array, Array]:
        """Images [F, V, H, W, 3], intrinsics and cameras of a key frame and its past, all in its own ego frame."""
        chain = [index]
        while len(chain) < frames:
            chain.append(int(self.previous[chain[-1]]))
        to_present = invert(self.ego_to_global[index]) @ self.ego_to_global[chain]
        return self.images[chain], self.intrinsics[chain], to_present[:, None] @ self.camera_to_ego[chain]


def key_frames_of_scene(scene: Scene, size_hw: tuple[int, int], min_visibility: int = 1) -> KeyFrames:
    """All key frames of one scene, images resized."""
    times = scene.key_timestamps_us
    key = {c: scene.key_indices(c) for c in CAMERAS}
    ego = scene.ego.at(times)
    images = np.stack([read_images(scene, c, key[c], size_hw) for c in CAMERAS], axis=1)
    cameras = [camera.resized(size_hw[1], size_hw[0]) for camera in scene.cameras]
    # A camera fires a little before or after the LiDAR: its pose at its own time counts.
    poses = np.stack([[scene.frames[c][i].ego_to_global for i in key[c]] for c in CAMERAS], axis=1)
    mounted = np.stack([camera.camera_to_ego for camera in cameras])
    return KeyFrames(
        images=images,
        intrinsics=np.repeat(np.stack([camera.intrinsics for camera in cameras])[None], len(times), axis=0),
        camera_to_ego=invert(ego)[:, None] @ poses @ mounted,
        ego_to_global=ego,
        previous=np.maximum(np.arange(len(times)) - 1, 0),
        boxes=tuple(boxes_of_scene(scene, k, min_visibility) for k in range(len(times))),
        tokens=scene.sample_tokens,
    )


def cached_key_frames(
    dataroot: Path, version: str, scene_names: list[str], size_hw: tuple[int, int], cache_dir: Path, min_visibility: int = 1
) -> KeyFrames:
    """The key frames of scenes; decoded once, then memory mapped from ``cache_dir``."""
    tables = [(p.name, p.stat().st_mtime_ns) for p in sorted((dataroot / version).glob("*.json"))]
    identity = json.dumps([str(dataroot.resolve()), version, tables, scene_names, size_hw, min_visibility])
    folder = cache_dir / hashlib.sha256(identity.encode()).hexdigest()[:16]
    if not (folder / "facts.npz").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        progress = tqdm(scene_names, desc="decoding key frames", disable=None)
        write_cache(
            folder, [key_frames_of_scene(read_scene(dataroot, version, n, 1.0), size_hw, min_visibility) for n in progress]
        )
    return read_cache(folder)


def write_cache(folder: Path, parts: list[KeyFrames]) -> None:
    """Key frames of several scenes into one memory map and one file of facts; the latter appears last."""
    images = np.concatenate([p.images for p in parts])
    starts = np.cumsum([0, *(len(p) for p in parts)])
    np.save(folder / "images.npy", images)
    boxes = [b for p in parts for b in p.boxes]
    columns = {f"box_{name}": np.concatenate([getattr(b, name) for b in boxes]) for name in Boxes.__dataclass_fields__}
    scratch = folder / f"facts.{os.getpid()}.npz"
    np.savez(
        scratch,
        intrinsics=np.concatenate([p.intrinsics for p in parts]),
        camera_to_ego=np.concatenate([p.camera_to_ego for p in parts]),
        ego_to_global=np.concatenate([p.ego_to_global for p in parts]),
        previous=np.concatenate([p.previous + start for p, start in zip(parts, starts, strict=False)]),
        tokens=np.array([t for p in parts for t in p.tokens]),
        box_count=np.array([len(b) for b in boxes]),
        **columns,
    )
    os.replace(scratch, folder / "facts.npz")


def read_cache(folder: Path) -> KeyFrames:
    """What ``write_cache`` wrote, images memory mapped."""
    with np.load(folder / "facts.npz") as facts:
        stops = np.cumsum(facts["box_count"])
        columns = {name: facts[f"box_{name}"] for name in Boxes.__dataclass_fields__}
        boxes = [
            Boxes(**{name: values[stop - count : stop] for name, values in columns.items()})
            for stop, count in zip(stops, facts["box_count"], strict=True)
        ]
        return KeyFrames(
            images=np.load(folder / "images.npy", mmap_mode="r"), intrinsics=facts["intrinsics"],
            camera_to_ego=facts["camera_to_ego"], ego_to_global=facts["ego_to_global"], previous=facts["previous"],
            boxes=tuple(boxes), tokens=tuple(str(t) for t in facts["tokens"]),
        )  # fmt: skip


def sampling_weights(frames: KeyFrames, power: float) -> Array:
    """Probabilities [S] that favour key frames with rare classes (after Zhu et al., CBGS, 2019); power 0 is uniform."""
    counts = np.array([np.bincount(b.labels, minlength=len(DETECTION_CLASSES)) > 0 for b in frames.boxes], dtype=np.float64)
    rarity = np.where(counts.any(0), 1 / np.maximum(counts.mean(0), 1e-9), 0.0) ** power
    weights = np.maximum((counts * rarity).max(1), 1.0)
    return weights / weights.sum()
