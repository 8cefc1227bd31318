"""The sensor rig of the proving ground: six cameras and one LiDAR, placed and timed as on a nuScenes car."""

from __future__ import annotations

import numpy as np

from dwm.geometry import rotation_from_yaw, transform
from dwm.scenes.types import CAMERAS, Array, Camera, Times

CAMERA_HZ, KEY_FRAME_EVERY = 12, 6
# Channel -> position in the ego frame [m] and yaw [deg], rounded from a nuScenes calibration.
MOUNTS = {
    "CAM_FRONT": ((1.70, 0.0, 1.51), 0.0),
    "CAM_FRONT_RIGHT": ((1.55, -0.49, 1.50), -55.0),
    "CAM_BACK_RIGHT": ((1.01, -0.48, 1.57), -110.0),
    "CAM_BACK": ((0.03, 0.0, 1.58), 180.0),
    "CAM_BACK_LEFT": ((1.01, 0.48, 1.57), 110.0),
    "CAM_FRONT_LEFT": ((1.55, 0.49, 1.50), 55.0),
}
FULL_WIDTH_PX, FULL_HEIGHT_PX = 1600, 900
FOCAL_PX, BACK_FOCAL_PX = 1266.0, 809.0  # at full width
# Each camera fires when the spinning LiDAR passes it; the sweep ends, and is stamped, at the sample's time.
TIME_OFFSETS_US = {
    "CAM_FRONT": -35186, "CAM_FRONT_RIGHT": -27108, "CAM_BACK_RIGHT": -19477,
    "CAM_BACK": -10032, "CAM_BACK_LEFT": -185, "CAM_FRONT_LEFT": -42791,
}  # fmt: skip
# Camera axes (x right, y down, z forward) seen from a body frame (x forward, y left, z up).
_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
# As on nuScenes cars, the LiDAR's x axis points right and its y axis forward.
LIDAR_TO_EGO = transform([0.94, 0.0, 1.84], rotation_from_yaw(-np.pi / 2))


def make_rig(size_hw: tuple[int, int] = (128, 224)) -> tuple[Camera, ...]:
    """The six cameras in ring order, for images of the given size (height, width)."""
    return tuple(_camera(channel).resized(size_hw[1], size_hw[0]) for channel in CAMERAS)


def frame_times_us(start_us: int, n_frames: int) -> Times:
    """Nominal times [N] of 12 Hz frames; every sixth is a key frame."""
    return start_us + np.round(np.arange(n_frames) * (1e6 / CAMERA_HZ)).astype(np.int64)


def _camera(channel: str) -> Camera:
    position, yaw_deg = MOUNTS[channel]
    focal = BACK_FOCAL_PX if channel == "CAM_BACK" else FOCAL_PX
    intrinsics: Array = np.array([[focal, 0.0, FULL_WIDTH_PX / 2], [0.0, focal, FULL_HEIGHT_PX / 2], [0.0, 0.0, 1.0]])
    camera_to_ego = transform(position, rotation_from_yaw(np.deg2rad(yaw_deg)) @ _OPTICAL)
    return Camera(
        channel=channel, intrinsics=intrinsics, camera_to_ego=camera_to_ego, width_px=FULL_WIDTH_PX, height_px=FULL_HEIGHT_PX
    )
