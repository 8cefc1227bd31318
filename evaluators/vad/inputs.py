"""What VAD's weights expect to see: images, projections, motion and command, as the public data pipeline makes them.

Its LiDAR frame has x to the right and y forward. Two differences are left: JPEG files may decode a grey level apart, and a
scene here holds rotation matrices, so the quaternion in the CAN-bus vector has w >= 0 where a log may hold its negative.

Shapes: V cameras, H W pixels of the images given, h w pixels after scaling and padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dwm.geometry import invert, quaternion_from_rotation, yaw_from_rotation
from dwm.scenes.types import CAMERAS, Camera, Scene
from evaluators.vad.config import CAMERA_ORDER, CAN_BUS_SIZE, COMMANDS, VadConfig

Array = NDArray[np.float64]

PAD_DIVISOR = 32
TURN_M = 2.0  # sideways from here on a path counts as a turn
GRAVITY_MPS2 = 9.81
MOTION = ("accel", "rotation_rate", "vel")  # of a pose message of the CAN bus, three numbers each
RING_TO_VAD = [CAMERAS.index(channel) for channel in CAMERA_ORDER]


@dataclass(frozen=True, slots=True, kw_only=True)
class VadFrame:
    """One frame as the network reads it, cameras in ``CAMERA_ORDER``."""

    images_V3hw: Tensor
    lidar_to_image_V44: Tensor
    can_bus_18: Array  # absolute; ``since`` makes the differences that the network reads


def network_images(images: NDArray[np.uint8], config: VadConfig) -> Tensor:
    """Images [V, 3, h, w] from RGB images [V, H, W, 3]: BGR, normalised at full size, scaled, zeros to the right and below."""
    height, width = config.image_hw
    mean, std = np.array(config.pixel_mean_bgr, np.float32), np.array(config.pixel_std_bgr, np.float32)
    scaled = [
        cv2.resize((image[..., ::-1].astype(np.float32) - mean) / std, (width, height), interpolation=cv2.INTER_LINEAR)
        for image in images
    ]
    padded = np.pad(np.stack(scaled), ((0, 0), (0, -height % PAD_DIVISOR), (0, -width % PAD_DIVISOR), (0, 0)))
    return torch.from_numpy(np.ascontiguousarray(padded.transpose(0, 3, 1, 2)))


def lidar_to_images(
    intrinsics: Array, camera_to_ego: Array, camera_ego_to_global: Array, lidar_to_ego: Array, lidar_ego_to_global: Array
) -> Array:
    """LiDAR frame to pixels [V, 4, 4], through the ego poses at the LiDAR's and at each camera's own time.

    Args:
        intrinsics: [V, 3, 3]; camera_to_ego, camera_ego_to_global [V, 4, 4]; lidar_to_ego, lidar_ego_to_global [4, 4].
    """
    lidar_to_camera = invert(camera_to_ego) @ invert(camera_ego_to_global) @ lidar_ego_to_global @ lidar_to_ego
    pixels = np.tile(np.eye(4), (len(intrinsics), 1, 1))
    pixels[:, :3, :3] = intrinsics
    return pixels @ lidar_to_camera


def for_scaled(lidar_to_image: Array, from_hw: tuple[int, int], config: VadConfig) -> Array:
    """The same [V, 4, 4] for images scaled from the given size; padding to the right and below moves nothing."""
    height, width = config.image_hw
    return np.diag([width / from_hw[1], height / from_hw[0], 1.0, 1.0]) @ lidar_to_image


def can_bus_vector(ego_to_global: Array, motion: Array | None = None) -> Array:
    """Position [3], quaternion w,x,y,z [4], motion [9], yaw in rad and in degrees, both from 0 to a full turn: [18].

    Without CAN messages the motion (acceleration, rotation rate, velocity; ego frame) is zero.
    """
    vector = np.zeros(CAN_BUS_SIZE)
    vector[:3] = ego_to_global[:3, 3]
    vector[3:7] = quaternion_from_rotation(ego_to_global[:3, :3])
    if motion is not None:
        vector[7:16] = motion
    vector[16] = float(yaw_from_rotation(ego_to_global)) % (2 * np.pi)
    vector[17] = np.rad2deg(vector[16])
    return vector


def since(vector: Array, before: Array | None) -> Array:
    """The vector with position and degrees since the frame before; both zero on the first frame of a scene.

    Degrees jump by a full turn where the heading passes east, as in the public code: the grid turns alike.
    """
    moved = vector.copy()
    for part in (slice(0, 3), slice(17, 18)):
        moved[part] = 0.0 if before is None else vector[part] - before[part]
    return moved


def can_motion(messages: Sequence[Mapping[str, Any]], timestamp_us: int) -> Array:
    """Acceleration, rotation rate and velocity [9] of the CAN bus's pose messages, in time order, at a frame.

    From the first message after the frame, or the last of all: the public converter means the one before, but reads on.
    """
    message = next((m for m in messages if m["utime"] > timestamp_us), messages[-1])
    return np.concatenate([np.asarray(message[name], dtype=np.float64) for name in MOTION])


def path_motion(ego_to_global: Array, fps: float, frame: int) -> Array:
    """The same [9] of a path [T, 4, 4], by differences between frames: what its CAN bus would say, gravity upwards."""
    first = max(frame - 2, 0)
    poses, at = ego_to_global[first : frame + 3], frame - first
    acceleration, turning, velocity = np.zeros(2), 0.0, np.zeros(2)
    if len(poses) > 1:
        velocities = np.gradient(poses[:, :2, 3], 1 / fps, axis=0)
        to_ego = ego_to_global[frame, :2, :2].T
        acceleration, velocity = to_ego @ np.gradient(velocities, 1 / fps, axis=0)[at], to_ego @ velocities[at]
        turning = np.gradient(np.unwrap(yaw_from_rotation(poses)), 1 / fps)[at]
    return np.array([*acceleration, GRAVITY_MPS2, 0.0, 0.0, turning, *velocity, 0.0])


def drive_command(right_m: float) -> int:
    """Index of COMMANDS for a path that ends so far to the right of the LiDAR, after 3 s or where the log ends."""
    return COMMANDS.index("right" if right_m >= TURN_M else "left" if right_m <= -TURN_M else "straight")


def key_frame(scene: Scene, index: int, images: NDArray[np.uint8], config: VadConfig, motion: Array | None = None) -> VadFrame:
    """A logged key frame.

    Args:
        images: RGB [V, H, W, 3] in the ring order of ``dwm.scenes.types.CAMERAS``, of any size.
        motion: ``can_motion`` at the key frame; None where the scene has no CAN bus, or the network reads none.
    """
    shots = scene.key_shots(index)
    pose = scene.ego.at(scene.key_timestamps_us[index : index + 1])[0]
    return frame_of(images, scene.cameras, np.stack([s.ego_to_global for s in shots]), scene.lidar_to_ego, pose, config, motion)


def frame_of(
    images: NDArray[np.uint8], cameras: Sequence[Camera], camera_ego_to_global: Array, lidar_to_ego: Array, ego_to_global: Array,
    config: VadConfig, motion: Array | None = None,
) -> VadFrame:  # fmt: skip
    """A frame of any source: images [V, H, W, 3], cameras and the ego poses [V, 4, 4] at their own times, all in ring order."""
    hw = (images.shape[1], images.shape[2])
    rig = [cameras[i].resized(hw[1], hw[0]) for i in RING_TO_VAD]
    lidar_to_image = lidar_to_images(
        np.stack([c.intrinsics for c in rig]), np.stack([c.camera_to_ego for c in rig]), camera_ego_to_global[RING_TO_VAD],
        lidar_to_ego, ego_to_global,
    )  # fmt: skip
    return VadFrame(
        images_V3hw=network_images(images[RING_TO_VAD], config),
        lidar_to_image_V44=torch.from_numpy(for_scaled(lidar_to_image, hw, config)).float(),
        can_bus_18=can_bus_vector(ego_to_global, motion),
    )
