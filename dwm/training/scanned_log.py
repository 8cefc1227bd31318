"""A log to remember for a training drive: LiDAR sweeps and pictures from another path along the same street.

Memory mode ``log`` shows a moved ego what the log saw from its own path. A drive filmed from the path it is trained on would
teach the model to copy, so the log drives otherwise: to the side, earlier or later, with the same traffic around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from dwm.conditioning.logged_points import LoggedPoints, Sweep, build_logged_points
from dwm.conditioning.photos import Boxes, Shot
from dwm.geometry import rotation_from_yaw, transform_from_xy_yaw, yaw_from_rotation
from dwm.models.dit import IMAGE_HW
from dwm.scenario.types import Scenario
from dwm.scenes.proving_ground.rig import KEY_FRAME_EVERY
from dwm.scenes.proving_ground.weather import WEATHERS
from dwm.training.sequences import Town, render_agents, wander

Array = NDArray[np.float64]
_AROUND = 36  # frames of the log before the first and after the last frame of interest
_APART_M = 0.7  # mean distance to the drive's own path from which on a path is different enough
_TRIES = 6


def scan_log(town: Town, scenario: Scenario, weather: str, frames: Sequence[int], rng: np.random.Generator) -> LoggedPoints:
    """What another drive at the same time, at 2 Hz around some frames of a scenario, saw of the street and its agents.

    An agent's number is its place among the scenario's.
    """
    path = other_path(scenario.ego_to_global, rng)
    first, last = max(min(frames) - _AROUND, 0), min(max(frames) + _AROUND, len(path) - 1)
    moments = range(first, last + 1, KEY_FRAME_EVERY)
    sweeps = (_sweep(town, scenario, weather, frame, path[frame]) for frame in moments)
    return build_logged_points(sweeps, (shot for f in moments for shot in _shots(town, scenario, weather, f, path[f])))


def other_path(ego_to_global_T44: Array, rng: np.random.Generator) -> Array:
    """Another way [T, 4, 4] to drive the same road, mostly more than a step aside from the first."""
    xy, yaw = ego_to_global_T44[:, :2, 3], yaw_from_rotation(ego_to_global_T44)
    drawn = []
    for _ in range(_TRIES):
        moved, heading = wander(xy, yaw, rng)
        apart = float(KDTree(xy).query(moved)[0].mean())
        drawn.append((apart, moved, heading))
        if apart > _APART_M:
            break
    _, moved, heading = max(drawn, key=lambda d: d[0])
    return transform_from_xy_yaw(moved[:, 0], moved[:, 1], heading)


def _sweep(town: Town, scenario: Scenario, weather: str, frame: int, ego: Array) -> Sweep:
    assert town.renderer is not None
    pose = ego @ scenario.scene.lidar_to_ego
    points = town.renderer.scan(pose, render_agents(scenario, frame), WEATHERS[weather], frame)[:, :3].astype(np.float64)
    return Sweep(xyz_m=points @ pose[:3, :3].T + pose[:3, 3], origin_m=pose[:3, 3], boxes=_boxes(scenario, frame))


def _shots(town: Town, scenario: Scenario, weather: str, frame: int, ego: Array) -> Iterator[Shot]:
    assert town.renderer is not None
    height, width = IMAGE_HW
    cameras = tuple(c.resized(width, height) for c in scenario.scene.cameras)
    poses = np.repeat(ego[None], len(cameras), axis=0)
    images = town.renderer.render(cameras, poses, render_agents(scenario, frame), WEATHERS[weather], frame).image
    for camera, image in zip(cameras, images, strict=True):
        yield Shot(image=image, camera=camera, ego_to_global=ego, boxes=_boxes(scenario, frame))


def _boxes(scenario: Scenario, frame: int) -> Boxes:
    a = scenario.agents
    index = np.flatnonzero(a.present[:, frame])
    return Boxes(
        agents=index, centers_m=a.centers_m[index, frame], rotations=rotation_from_yaw(a.yaws_rad[index, frame]),
        sizes_wlh_m=a.sizes_wlh_m[index], speeds_mps=np.nan_to_num(np.linalg.norm(a.velocities_mps[index, frame], axis=-1)),
    )  # fmt: skip
