"""A published clip read back at its key frames: what evaluators need besides the pictures, from the tables alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.geometry import rotation_from_yaw, transform
from dwm.scenario.map_labels import seen_from
from dwm.scenario.types import KEY_FRAME_HZ, AgentBoxes, LabelSource
from dwm.scenes.types import CAMERAS, Camera
from evaluators.drive import Drive
from evaluators.mapping import MAP_CLASSES, MapLine
from pipelines.dataset import Dataset

Row = dict[str, Any]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipDrive:
    """A clip at K key frames of 2 Hz."""

    drive: Drive
    frames: tuple[int, ...]  # [K] of the clip
    seen: NDArray[np.bool_]  # [K, A] agents with a visible part
    lines: dict[str, list[Array]]  # kind -> polylines [P, 2], global

    def lines_at(self, k: int, range_m: tuple[float, float] = (60.0, 30.0)) -> tuple[MapLine, ...]:
        """Dividers, crossings and boundaries around the LiDAR at a key frame, x right and y forward, not resampled.

        The window is centred on the LiDAR and turned with it, ``range_m`` along and across the way it looks.
        """
        pose = self.drive.ego_to_global[k] @ self.drive.lidar_to_ego @ transform(np.zeros(3), rotation_from_yaw(np.pi / 2))
        forward_left = seen_from({kind: self.lines[kind] for kind in MAP_CLASSES if kind in self.lines}, pose, range_m)
        return tuple(
            MapLine(class_name=kind, points_m=np.stack([-line[:, 1], line[:, 0]], axis=1))
            for kind, some in forward_left.items()
            for line in some
        )


def read_clip_drive(dataset: Dataset, clip_id: str) -> ClipDrive:
    """Raises InputError for an unknown clip, and for one of a version without ``clips.lidar_to_ego``."""
    clips = dataset.rows("clips", clip_id)
    if not clips:
        raise InputError(dataset.folder, f"there is no clip '{clip_id}'", "use a clip_id of the clips table")
    if "lidar_to_ego" not in clips[0]:
        problem = f"schema {dataset.info['schema_version']} does not say where the LiDAR is"
        raise InputError(dataset.folder, problem, "generate it again with this version of roadreel")
    images = [row for row in dataset.rows("camera_frames", clip_id, channel=CAMERAS[0]) if row["is_key_frame"]]
    frames = tuple(int(row["frame_index"]) for row in images)
    poses = dataset.poses(clip_id)
    agents, seen = tracks_of(dataset.rows("boxes", clip_id), frames)
    drive = Drive(
        fps=KEY_FRAME_HZ, ego_to_global=np.stack([poses[frame] for frame in frames]), agents=agents,
        cameras=_cameras(dataset, clip_id), lidar_to_ego=np.array(clips[0]["lidar_to_ego"]).reshape(4, 4),
    )  # fmt: skip
    return ClipDrive(drive=drive, frames=frames, seen=seen, lines=dataset.lines(clip_id))


def _cameras(dataset: Dataset, clip_id: str) -> tuple[Camera, ...]:
    """The rig, at the size of the videos."""
    sizes = {row["channel"]: (row["width"], row["height"]) for row in dataset.rows("videos", clip_id, stream="rgb")}
    cameras = []
    for channel in CAMERAS:
        row = dataset.rows("camera_frames", clip_id, channel=channel, frame_index=0)[0]
        width, height = sizes[channel]
        cameras.append(Camera(
            channel=channel, intrinsics=np.array(row["intrinsics"]).reshape(3, 3),
            camera_to_ego=np.array(row["camera_to_ego"]).reshape(4, 4), width_px=width, height_px=height,
        ))  # fmt: skip
    return tuple(cameras)


def tracks_of(rows: Sequence[Row], frames: Sequence[int]) -> tuple[AgentBoxes, NDArray[np.bool_]]:
    """Label rows at key frames as tracks, and which of them have a visible part; absent agents stand at zero."""
    at = {frame: k for k, frame in enumerate(frames)}
    labels = [row for row in rows if row["label_source"] != "detected" and row["frame_index"] in at]
    tokens = tuple(sorted({row["instance_token"] for row in labels}))
    number = {token: a for a, token in enumerate(tokens)}
    first = {row["instance_token"]: row for row in reversed(labels)}
    shape = (len(tokens), len(frames))
    centers, yaws, velocities = np.zeros((*shape, 3)), np.zeros(shape), np.full((*shape, 2), np.nan)
    present, seen, counts = np.zeros(shape, bool), np.zeros(shape, bool), np.full(shape, -1, np.int32)
    sources, attributes = np.zeros(shape, np.int8), [[""] * len(frames) for _ in tokens]
    for row in labels:
        a, k = number[row["instance_token"]], at[row["frame_index"]]
        centers[a, k] = [row["center_x"], row["center_y"], row["center_z"]]
        yaws[a, k], present[a, k], counts[a, k] = row["yaw"], True, row["num_lidar_pts"]
        velocities[a, k] = [np.nan if row[v] is None else row[v] for v in ("vx", "vy")]
        sources[a, k], attributes[a][k] = LabelSource[row["label_source"].upper()], row["attribute"]
        seen[a, k] = row["truncation"] < 1 and row["occlusion"] is not None and row["occlusion"] < 1
    agents = AgentBoxes(
        instance_tokens=tokens, detection_classes=tuple(first[t]["detection_class"] for t in tokens),
        categories=tuple(first[t]["category"] for t in tokens),
        sizes_wlh_m=np.array([[first[t][f"size_{s}"] for s in "wlh"] for t in tokens]).reshape(-1, 3), centers_m=centers, yaws_rad=yaws,
        velocities_mps=velocities, present=present, label_sources=sources, num_lidar_pts=counts,
        attributes=tuple(tuple(own) for own in attributes),
    )  # fmt: skip
    return agents, seen.T
