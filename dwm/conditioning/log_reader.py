"""A scene's LiDAR sweeps and the pictures that colour them, from the files of its dataroot."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dwm.conditioning.logged_points import LoggedPoints, Sweep, build_logged_points
from dwm.conditioning.photos import Boxes, Shot
from dwm.geometry import rotation_from_quaternion
from dwm.scenes.clips import read_image, resize
from dwm.scenes.coloured_points import read_lidar
from dwm.scenes.interpolation import boxes_at
from dwm.scenes.nuscenes import nearest_frames
from dwm.scenes.types import LidarSweep, Scene

_BETWEEN_KEYS = 3  # sweeps kept between two key frames
_EGO_M = ((-1.6, 4.2), (-1.3, 1.3))  # of the ego frame, forward and left: the car itself
_IMAGE_PX = (256, 448)  # larger pictures are reduced to this: twice the world model's size


def usable_sweeps(scene: Scene) -> tuple[LidarSweep, ...]:
    """Key-frame sweeps whose file exists, and a few of those between."""
    there = [s for s in scene.lidar_sweeps if s.path.is_file()]
    keys = np.array([s.timestamp_us for s in there if s.is_key_frame], np.int64)
    others = [s for s in there if not s.is_key_frame]
    interval = np.searchsorted(keys, [s.timestamp_us for s in others])
    kept = [others[i] for k in np.unique(interval) for i in _spread(np.flatnonzero(interval == k))]
    return tuple(sorted([s for s in there if s.is_key_frame] + kept, key=lambda s: s.timestamp_us))


def read_logged_points(scene: Scene) -> LoggedPoints | None:
    """Points of a whole scene; None when it has no LiDAR files or no pictures.

    Raises InputError when a file that exists cannot be read.
    """
    sweeps = usable_sweeps(scene)
    moments = _moments(scene) if sweeps else []
    if not moments:
        return None
    return build_logged_points((_sweep(scene, s) for s in sweeps), (shot for m in moments for shot in _shots(scene, m)))


def _spread(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most _BETWEEN_KEYS of some indices, evenly."""
    if len(index) <= _BETWEEN_KEYS:
        return index
    return index[
        np.round((np.arange(_BETWEEN_KEYS) + 1) * len(index) / (_BETWEEN_KEYS + 1)).astype(int).clip(max=len(index) - 1)
    ]


def _sweep(scene: Scene, sweep: LidarSweep) -> Sweep:
    pose = scene.ego.at(np.array([sweep.timestamp_us]))[0]
    local = read_lidar(sweep.path) @ scene.lidar_to_ego[:3, :3].T + scene.lidar_to_ego[:3, 3]
    (back, ahead), (right, left) = _EGO_M
    own = (local[:, 0] > back) & (local[:, 0] < ahead) & (local[:, 1] > right) & (local[:, 1] < left)
    local = local[~own & np.isfinite(local).all(-1)]
    origin = pose[:3, :3] @ scene.lidar_to_ego[:3, 3] + pose[:3, 3]
    return Sweep(xyz_m=local @ pose[:3, :3].T + pose[:3, 3], origin_m=origin, boxes=logged_boxes(scene, sweep.timestamp_us))


def logged_boxes(scene: Scene, timestamp_us: int) -> Boxes:
    """The log's boxes at a time; an agent's number is its place in ``scene.agents``."""
    boxes = boxes_at(scene, timestamp_us)
    return Boxes(
        agents=boxes.agent_indices, centers_m=boxes.centers_m, rotations=rotation_from_quaternion(boxes.rotations_wxyz),
        sizes_wlh_m=boxes.sizes_wlh_m, speeds_mps=np.nan_to_num(np.linalg.norm(boxes.velocities_mps, axis=-1)),
    )  # fmt: skip


def _moments(scene: Scene) -> list[dict[str, int]]:
    """Per key frame, the index of each camera's picture where the file exists."""
    nearest = nearest_frames(scene, scene.key_timestamps_us)
    found = [
        {c: int(n[k]) for c, n in nearest.items() if scene.frames[c][int(n[k])].path.is_file()}
        for k in range(len(scene.key_timestamps_us))
    ]
    return [moment for moment in found if moment]


def _shots(scene: Scene, moment: dict[str, int]) -> Iterator[Shot]:
    first = scene.cameras[0]
    size = (min(first.height_px, _IMAGE_PX[0]), min(first.width_px, _IMAGE_PX[1]))
    for camera in scene.cameras:
        if camera.channel in moment:
            frame = scene.frames[camera.channel][moment[camera.channel]]
            yield Shot(
                image=resize(read_image(frame.path), size), camera=camera, ego_to_global=frame.ego_to_global,
                boxes=logged_boxes(scene, frame.timestamp_us),
            )  # fmt: skip
