"""What moves in a scene, without its maps and images: enough to tell what kind of scene it is, for thousands of scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import rotation_from_quaternion, yaw_from_rotation
from dwm.scenes.types import CAMERAS, DETECTION_CLASSES, Scene, Times

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
NO_CLASS = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotations:
    """R annotations at key frames, ordered by instance and then by time, in the global frame."""

    key_index: Indices  # [R] into SceneTracks.key_timestamps_us
    instance: Indices  # [R] the same number for the same instance
    label: Indices  # [R] into DETECTION_CLASSES, or NO_CLASS
    category: tuple[str, ...]  # [R]
    xy_m: Array  # [R, 2]
    yaw_rad: Array  # [R]
    size_wl_m: Array  # [R, 2] width and length


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneTracks:
    """One scene as a corpus needs it."""

    name: str
    token: str
    description: str
    location: str
    key_timestamps_us: Times  # [K]
    key_images: tuple[tuple[Path, ...], ...]  # [K][6] in CAMERAS order; may not exist
    ego_timestamps_us: Times  # [N] strictly increasing
    ego_xy_m: Array  # [N, 2] rear axle
    ego_yaw_rad: Array  # [N]
    annotations: Annotations

    @property
    def length_s(self) -> float:
        """From the first key frame to the last."""
        return float(self.key_timestamps_us[-1] - self.key_timestamps_us[0]) * 1e-6


def tracks_of(scene: Scene) -> SceneTracks:
    """The same for a scene that was read in full."""
    keyed = {c: {f.sample_token: f.path for f in scene.frames[c] if f.is_key_frame} for c in CAMERAS if scene.frames[c]}
    images = tuple(tuple(keyed[c][token] for c in keyed if token in keyed[c]) for token in scene.sample_tokens)
    return SceneTracks(
        name=scene.name, token=scene.token, description=scene.description, location=scene.location,
        key_timestamps_us=scene.key_timestamps_us, key_images=images, ego_timestamps_us=scene.ego.timestamps_us,
        ego_xy_m=scene.ego.ego_to_global[:, :2, 3], ego_yaw_rad=yaw_from_rotation(scene.ego.ego_to_global),
        annotations=_annotations(scene),
    )  # fmt: skip


def label_of(detection_class: str | None) -> int:
    """Index into DETECTION_CLASSES, or NO_CLASS."""
    return DETECTION_CLASSES.index(detection_class) if detection_class in DETECTION_CLASSES else NO_CLASS


def _annotations(scene: Scene) -> Annotations:
    counts = [len(agent.timestamps_us) for agent in scene.agents]
    spread = lambda values: np.repeat(np.asarray(values), counts, axis=0)  # noqa: E731
    stack = lambda parts, width: np.concatenate(parts) if parts else np.zeros((0, width))  # noqa: E731
    rotations = stack([a.rotations_wxyz for a in scene.agents], 4)
    return Annotations(
        key_index=np.searchsorted(scene.key_timestamps_us, stack([a.timestamps_us for a in scene.agents], 1).ravel()),
        instance=spread(np.arange(len(counts))).astype(np.int64),
        label=spread([label_of(a.detection_class) for a in scene.agents]).astype(np.int64),
        category=tuple(a.category for a, n in zip(scene.agents, counts, strict=True) for _ in range(n)),
        xy_m=stack([a.centers_m for a in scene.agents], 3)[:, :2], yaw_rad=yaw_from_rotation(rotation_from_quaternion(rotations)),
        size_wl_m=spread(np.reshape([a.size_wlh_m for a in scene.agents], (-1, 3)))[:, :2],
    )  # fmt: skip
