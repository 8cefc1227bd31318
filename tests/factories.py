"""Small scenes in memory: a straight road to the east with two lanes in the same direction, an ego on the right one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import quaternion_from_yaw, transform, transform_from_xy_yaw
from dwm.scenes.lane_graph import Lane, LaneGraph
from dwm.scenes.types import CAMERAS, MAP_LAYERS, AgentTrack, Camera, EgoTrack, Scene, SceneMap

Array = NDArray[np.float64]
START_US = 1_538_000_000_000_000
ROAD_X_M = (-200.0, 1300.0)
ROAD_Y_M = (-4.0, 8.0)  # drivable
RING_YAW_DEG = (0.0, -55.0, -110.0, 180.0, 110.0, 55.0)  # CAMERAS order


def straight_lane(token: str, start_xy_m: tuple[float, float], end_xy_m: tuple[float, float], **fields) -> Lane:
    """A straight lane with a point at most every metre."""
    start, end = np.array(start_xy_m), np.array(end_xy_m)
    length = float(np.linalg.norm(end - start))
    points = start + np.linspace(0, 1, int(np.ceil(length)) + 1)[:, None] * (end - start)
    yaw = np.full((len(points), 1), np.arctan2(*(end - start)[::-1]))
    defaults = dict(is_connector=False, incoming=(), outgoing=())
    return Lane(token=token, centerline=np.concatenate([points, yaw], axis=1), **{**defaults, **fields})


def arc_lane(token: str, centre_xy_m: tuple[float, float], radius_m: float, from_rad: float, to_rad: float, **fields) -> Lane:
    """A lane along a circle, anticlockwise when ``to_rad`` is larger."""
    count = int(np.ceil(abs(to_rad - from_rad) * radius_m)) + 1
    angle = np.linspace(from_rad, to_rad, max(count, 3))
    x, y = centre_xy_m[0] + radius_m * np.cos(angle), centre_xy_m[1] + radius_m * np.sin(angle)
    yaw = angle + np.copysign(np.pi / 2, to_rad - from_rad)
    defaults = dict(is_connector=False, incoming=(), outgoing=())
    return Lane(token=token, centerline=np.stack([x, y, yaw], axis=-1), **{**defaults, **fields})


def make_road() -> LaneGraph:
    """Two lanes to the east: ``right`` at y = 0 and ``left`` at y = 3.5."""
    right = straight_lane("right", (ROAD_X_M[0], 0.0), (ROAD_X_M[1], 0.0), left="left")
    left = straight_lane("left", (ROAD_X_M[0], 3.5), (ROAD_X_M[1], 3.5), right="right")
    return LaneGraph({"right": right, "left": left})


def make_map(lane_graph: bool = True, drivable: bool = True) -> SceneMap:
    """The road as a raster of half a metre."""
    shape = (int((ROAD_Y_M[1] - ROAD_Y_M[0] + 40) * 2), int((ROAD_X_M[1] - ROAD_X_M[0]) * 2))
    layers = np.zeros((len(MAP_LAYERS), *shape), dtype=np.uint8)
    if drivable:
        layers[MAP_LAYERS.index("drivable"), 40 : 40 + int((ROAD_Y_M[1] - ROAD_Y_M[0]) * 2)] = 1
    origin = np.array([ROAD_X_M[0], ROAD_Y_M[0] - 20.0])
    return SceneMap(layers=layers, origin_xy_m=origin, metres_per_pixel=0.5, lane_graph=make_road() if lane_graph else None)


def make_agent(
    token: str,
    pose_at: Callable[[float], tuple[float, float, float]],
    key_timestamps_us: NDArray[np.int64],
    *,
    category: str = "vehicle.car",
    detection_class: str | None = "car",
    size_wlh_m: tuple[float, float, float] = (1.95, 4.6, 1.7),
    attribute: str = "",
) -> AgentTrack:
    """An agent annotated at the given key frames; ``pose_at`` maps seconds since START_US to x, y, yaw."""
    times = (key_timestamps_us - START_US) * 1e-6
    poses = np.array([pose_at(t) for t in times]).reshape(-1, 3)
    centers = np.column_stack([poses[:, :2], np.full(len(poses), size_wlh_m[2] / 2)])
    velocities = np.gradient(poses[:, :2], times, axis=0) if len(poses) > 1 else np.full((len(poses), 2), np.nan)
    count = len(poses)
    return AgentTrack(
        instance_token=token, category=category, detection_class=detection_class, size_wlh_m=np.array(size_wlh_m),
        timestamps_us=key_timestamps_us, centers_m=centers, rotations_wxyz=quaternion_from_yaw(poses[:, 2]),
        velocities_mps=velocities, attributes=(attribute,) * count, num_lidar_pts=np.arange(count) + 5, num_radar_pts=np.zeros(count, int),
        visibility=np.full(count, 4), annotation_tokens=tuple(f"{token}-{i}" for i in range(count)),
    )  # fmt: skip


def key_times(key_frames: int) -> NDArray[np.int64]:
    """Key-frame times, 2 Hz from START_US."""
    return START_US + np.arange(key_frames, dtype=np.int64) * 500_000


def default_agents(key_frames: int, speed_mps: float) -> tuple[AgentTrack, ...]:
    """A car 35 m ahead, a parked car, a pedestrian beside the road and a cone."""
    keys = key_times(key_frames)
    cone = dict(category="movable_object.trafficcone", detection_class="traffic_cone", size_wlh_m=(0.4, 0.4, 1.0))
    walker = dict(category="human.pedestrian.adult", detection_class="pedestrian", size_wlh_m=(0.7, 0.7, 1.8))
    return (
        make_agent("leader", lambda t: (35.0 + speed_mps * t, 0.0, 0.0), keys, attribute="vehicle.moving"),
        make_agent("parked", lambda t: (60.0, -3.5, 0.0), keys, attribute="vehicle.parked"),
        make_agent("walker", lambda t: (20.0 + 1.2 * t, -7.0, 0.0), keys, attribute="pedestrian.moving", **walker),
        make_agent("cone", lambda t: (80.0, -3.6, 0.0), keys, **cone),
    )


def make_cameras(width_px: int = 1600, height_px: int = 900) -> tuple[Camera, ...]:
    """Six cameras in a ring at 1.5 m height."""
    focal = width_px * 0.79
    intrinsics = np.array([[focal, 0, width_px / 2], [0, focal, height_px / 2], [0, 0, 1.0]])
    axes = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # camera z forward, x right, y down, seen from the ego frame
    cameras = []
    for channel, yaw in zip(CAMERAS, np.radians(RING_YAW_DEG), strict=True):
        turn = transform_from_xy_yaw(0.0, 0.0, yaw)[:3, :3]
        pose = transform(np.array([1.0, 0.0, 1.5]), turn @ axes)
        cameras.append(
            Camera(channel=channel, intrinsics=intrinsics, camera_to_ego=pose, width_px=width_px, height_px=height_px)
        )
    return tuple(cameras)


def make_scene(
    *,
    key_frames: int = 21,
    ego_speed_mps: float = 10.0,
    ego_xy_m: tuple[float, float] = (0.0, 0.0),
    agents: Sequence[AgentTrack] | None = None,
    lane_graph: bool = True,
    drivable: bool = True,
    name: str = "scene-0001",
) -> Scene:
    """A scene of ``key_frames`` at 2 Hz; the ego (rear axle) drives east at constant speed from ``ego_xy_m``."""
    keys = key_times(key_frames)
    times = np.arange(START_US, keys[-1] + 1, 50_000, dtype=np.int64)
    x = ego_xy_m[0] + ego_speed_mps * (times - START_US) * 1e-6
    ego = EgoTrack(timestamps_us=times, ego_to_global=transform_from_xy_yaw(x, np.full(len(x), ego_xy_m[1]), np.zeros(len(x))))
    return Scene(
        dataroot=Path("nowhere"), version="v1.0-mini", token=f"{name}-token", name=name, description="Busy street, rain",
        location="boston-seaport", date_captured="2018-09-26", key_timestamps_us=keys,
        sample_tokens=tuple(f"{name}-sample-{i}" for i in range(key_frames)), cameras=make_cameras(),
        frames={channel: () for channel in CAMERAS}, lidar_paths=tuple(Path(f"nowhere/{i}.bin") for i in range(key_frames)),
        lidar_to_ego=transform(np.array([0.94, 0.0, 1.84]), np.eye(3)), ego=ego,
        agents=tuple(default_agents(key_frames, ego_speed_mps) if agents is None else agents), map=make_map(lane_graph, drivable),
    )  # fmt: skip
