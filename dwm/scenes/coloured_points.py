"""A log's LiDAR points, each with the colour that the cameras saw there and the thing it lies on.

Shapes: P points, A agents of one key frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from nuscenes.utils.data_classes import LidarPointCloud

from dwm.errors import InputError
from dwm.geometry import invert, rotation_from_quaternion
from dwm.scenes.clips import read_image
from dwm.scenes.interpolation import BoxesAt, boxes_at
from dwm.scenes.nuscenes import nearest_frames
from dwm.scenes.types import Camera, Scene

_NEAR_M = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class ColouredPoints:
    """The points of one key frame that some camera saw."""

    xyz_m: NDArray[np.float64]  # [P, 3] global, at the key frame's time
    colours: NDArray[np.uint8]  # [P, 3] RGB
    pixels_per_m: NDArray[np.float64]  # [P] of the camera that gave the colour
    agent: NDArray[np.int64]  # [P] index into scene.agents; -1 on nothing labelled
    part: NDArray[np.float64]  # [P, 3] place in the agent's box, which spans [-1, 1]: forward, left, up


def coloured_points(scene: Scene, key_frame: int) -> ColouredPoints:
    """Points of a key frame's LiDAR sweep that fall into a camera image.

    A point on a moving thing is looked up where the thing was when the camera fired. Raises InputError when the sweep or
    an image is missing or broken.
    """
    time = int(scene.key_timestamps_us[key_frame])
    pose = scene.ego.at(np.array([time]))[0] @ scene.lidar_to_ego
    xyz = read_lidar(scene.lidar_paths[key_frame]) @ pose[:3, :3].T + pose[:3, 3]
    boxes = boxes_at(scene, time)
    agent, part, velocity = _on_boxes(xyz, boxes)
    colours, sharpness = np.zeros((len(xyz), 3), np.uint8), np.zeros(len(xyz))
    nearest = nearest_frames(scene, scene.key_timestamps_us[key_frame : key_frame + 1])
    for camera in scene.cameras:
        frame = scene.frames[camera.channel][int(nearest[camera.channel][0])]
        image = read_image(frame.path)
        there = xyz + velocity * ((frame.timestamp_us - time) * 1e-6)
        pixel, depth = _project(camera, frame.ego_to_global, there)
        scale = camera.intrinsics[0, 0] / np.maximum(depth, _NEAR_M)
        inside = (depth > _NEAR_M) & (pixel >= 0).all(-1) & (pixel < [image.shape[1], image.shape[0]]).all(-1)
        better = inside & (scale > sharpness)
        column, row = pixel[better].astype(np.int64).T
        colours[better], sharpness[better] = image[row, column], scale[better]
    seen = sharpness > 0
    return ColouredPoints(
        xyz_m=xyz[seen], colours=colours[seen], pixels_per_m=sharpness[seen], agent=agent[seen], part=part[seen]
    )


def read_lidar(path: Path) -> NDArray[np.float64]:
    """Points [P, 3] of a file in the LiDAR's own frame; InputError when it is missing or broken."""
    try:
        return LidarPointCloud.from_file(str(path)).points[:3].T.astype(np.float64)
    except FileNotFoundError as error:
        raise InputError(
            path, "the LiDAR file is missing", "unpack the LiDAR archives, or choose scenes that have them"
        ) from error
    except ValueError as error:
        raise InputError(path, f"not a LiDAR file ({error})", "restore the truncated file") from error


def _on_boxes(xyz_m: NDArray[np.float64], boxes: BoxesAt) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Which agent each point lies on [P] (-1: none), where on it [P, 3], and its velocity [P, 3] in m/s (0 where unknown)."""
    agent, part, velocity = np.full(len(xyz_m), -1), np.zeros((len(xyz_m), 3)), np.zeros((len(xyz_m), 3))
    for i, index in enumerate(boxes.agent_indices):
        local = (xyz_m - boxes.centers_m[i]) @ rotation_from_quaternion(boxes.rotations_wxyz[i])
        place = local / (boxes.sizes_wlh_m[i, [1, 0, 2]] / 2)
        inside = (np.abs(place) <= 1).all(-1)
        agent[inside], part[inside] = index, place[inside]
        velocity[inside, :2] = np.nan_to_num(boxes.velocities_mps[i])
    return agent, part, velocity


def _project(
    camera: Camera, ego_to_global: NDArray[np.float64], xyz_m: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels [P, 2] and z-depth in metres [P]."""
    pose = invert(ego_to_global @ camera.camera_to_ego)
    local = xyz_m @ pose[:3, :3].T + pose[:3, 3]
    homogeneous = local @ camera.intrinsics.T
    return homogeneous[:, :2] / np.maximum(local[:, 2:], _NEAR_M), local[:, 2]
