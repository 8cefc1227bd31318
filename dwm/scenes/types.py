"""What a logged scene is made of. Arrays are float64 in metres and radians; times are int64 microseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from dwm.geometry import transform
from dwm.scenes.lane_graph import LaneGraph

Array = NDArray[np.float64]
Times = NDArray[np.int64]

# Ring order: neighbours are adjacent, and the last is next to the first.
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
DETECTION_CLASSES = (
    "car", "truck", "bus", "trailer", "construction_vehicle",
    "pedestrian", "motorcycle", "bicycle", "traffic_cone", "barrier",
)  # fmt: skip
# Raster layers of a SceneMap, in this order.
MAP_LAYERS = ("drivable", "divider", "ped_crossing", "walkway")


def other_side(channels: Sequence[str]) -> list[int]:
    """Where each camera's counterpart in a mirror stands: left for right, the others themselves."""
    swap = {"LEFT": "RIGHT", "RIGHT": "LEFT"}
    return [channels.index("_".join(swap.get(part, part) for part in channel.split("_"))) for channel in channels]


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """One camera of the rig."""

    channel: str
    intrinsics: Array  # [3, 3] pixels, for an image of width_px x height_px
    camera_to_ego: Array  # [4, 4]
    width_px: int
    height_px: int

    def resized(self, width_px: int, height_px: int) -> Camera:
        """The same camera for images resized to the given size."""
        scale = np.diag([width_px / self.width_px, height_px / self.height_px, 1.0])
        return Camera(
            channel=self.channel, intrinsics=scale @ self.intrinsics, camera_to_ego=self.camera_to_ego,
            width_px=width_px, height_px=height_px,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraFrame:
    """One logged image: where it is (``path`` may not exist: see ``Scene.missing_images``) and when it was taken."""

    channel: str
    path: Path
    timestamp_us: int
    ego_to_global: Array  # [4, 4] at this camera's own time
    sample_data_token: str
    sample_token: str
    is_key_frame: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LidarSweep:
    """One logged turn of the LiDAR: its file (``path`` may not exist) and when it ended."""

    path: Path
    timestamp_us: int
    is_key_frame: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EgoTrack:
    """Logged ego poses, strictly increasing in time."""

    timestamps_us: Times  # [N]
    ego_to_global: Array  # [N, 4, 4]

    def at(self, timestamps_us: NDArray[np.int64]) -> Array:
        """Poses [M, 4, 4] at the given times: linear in position, slerp in rotation, clamped at the ends."""
        t0 = self.timestamps_us[0]
        own = (self.timestamps_us - t0).astype(np.float64)
        asked = np.clip((np.asarray(timestamps_us) - t0).astype(np.float64), own[0], own[-1])
        xyz = np.stack([np.interp(asked, own, self.ego_to_global[:, i, 3]) for i in range(3)], axis=-1)
        if len(own) == 1:
            return np.repeat(self.ego_to_global, len(asked), axis=0)
        slerp = Slerp(own, Rotation.from_matrix(self.ego_to_global[:, :3, :3]))
        return transform(xyz, slerp(asked).as_matrix())


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTrack:
    """One annotated instance at its key frames, in the global frame."""

    instance_token: str
    category: str  # nuScenes category name, e.g. vehicle.car
    detection_class: str | None  # one of DETECTION_CLASSES, or None when the devkit ignores the category
    size_wlh_m: Array  # [3]
    timestamps_us: Times  # [M] key-frame times
    centers_m: Array  # [M, 3]
    rotations_wxyz: Array  # [M, 4]
    velocities_mps: Array  # [M, 2] as the devkit's box_velocity; NaN where unknown
    attributes: tuple[str, ...]  # [M] attribute name or ""
    num_lidar_pts: NDArray[np.int64]  # [M]
    num_radar_pts: NDArray[np.int64]  # [M]
    visibility: NDArray[np.int64]  # [M] nuScenes level 1-4
    annotation_tokens: tuple[str, ...]  # [M]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapLines:
    """Lines [P, 2] of a map expansion, in the global frame."""

    dividers: tuple[Array, ...]  # between lanes and between directions
    boundaries: tuple[Array, ...]  # edges of the drivable area, cut at the map's region


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneMap:
    """The map around a scene: a raster always, vectors and lanes where a map expansion exists."""

    layers: NDArray[np.uint8]  # [len(MAP_LAYERS), rows, cols] 0 or 1; layers unknown without vectors are all 0
    origin_xy_m: Array  # [2] global position of the corner of pixel (row 0, col 0); rows grow with y, cols with x
    metres_per_pixel: float
    lane_graph: LaneGraph | None  # None without a map expansion
    notes: tuple[str, ...] = ()  # what is missing, in words
    lines: MapLines | None = None  # None without a map expansion

    def lookup(self, layer: str, xy_m: Array) -> NDArray[np.bool_]:
        """Whether points [..., 2] lie on a layer; outside the raster: False."""
        col, row = np.moveaxis(np.floor((xy_m - self.origin_xy_m) / self.metres_per_pixel).astype(np.int64), -1, 0)
        raster = self.layers[MAP_LAYERS.index(layer)]
        inside = (row >= 0) & (row < raster.shape[0]) & (col >= 0) & (col < raster.shape[1])
        return inside & (raster[np.where(inside, row, 0), np.where(inside, col, 0)] > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One logged scene, read from a nuScenes dataroot (``dwm.scenes.nuscenes.read_scene``)."""

    dataroot: Path
    version: str
    token: str
    name: str
    description: str
    location: str
    date_captured: str  # YYYY-MM-DD
    key_timestamps_us: Times  # [K]
    sample_tokens: tuple[str, ...]  # [K]
    cameras: tuple[Camera, ...]  # in CAMERAS order, at the log's resolution
    frames: dict[str, tuple[CameraFrame, ...]]  # channel -> images in time order, sweeps and key frames
    lidar_paths: tuple[Path, ...]  # [K] key-frame LiDAR files; may not exist
    lidar_to_ego: Array  # [4, 4]
    ego: EgoTrack
    agents: tuple[AgentTrack, ...]
    map: SceneMap
    lidar_sweeps: tuple[LidarSweep, ...] = ()  # in time order, key frames among them; their files may not exist

    def key_indices(self, channel: str) -> list[int]:
        """Indices into ``frames[channel]`` of the key frames' images [K]."""
        return [i for i, frame in enumerate(self.frames[channel]) if frame.is_key_frame]

    def key_shots(self, k: int) -> list[CameraFrame]:
        """The images [V] of a key frame, in CAMERAS order."""
        return [self.frames[channel][self.key_indices(channel)[k]] for channel in CAMERAS]
