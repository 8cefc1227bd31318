"""How many LiDAR points a label would hold: rays of a spinning scan that meet the box first, times what its class returns.

The scan is that of nuScenes: 32 rings of a Velodyne HDL-32E, evenly from -30.67 to 10.67 degrees, 1080 firings a turn (20 Hz),
100 m. Data of another LiDAR is scanned with the same rings: the fill factors take up the difference in density, not the one
in the field of view. Real objects fill less than their box and return less than every ray, by class; the factor is measured
on the log's own key frames.

Shapes: A boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dwm.geometry import rotation_from_quaternion, yaw_from_rotation
from dwm.raycast import Primitives, SphericalScan, cast
from dwm.scenario.sight import Boxes3D
from dwm.scenes.types import Scene

Array = NDArray[np.float64]
RINGS_RAD = np.deg2rad(np.linspace(-30.67, 10.67, 32))
AZIMUTHS = 1080
RANGE_M = 100.0
_ENOUGH_RAYS = 5  # fewer say little about a ratio
_ENOUGH_BOXES = 5


def scan_rays(lidar_to_ego: Array, ego_to_global: Array, boxes: Boxes3D) -> NDArray[np.int64]:
    """Rays [A] of one turn that meet each box before any other. The ground hides nothing: boxes stand on it."""
    count = len(boxes.yaws_rad)
    if count == 0:
        return np.zeros(0, np.int64)
    # Around the sensor, so that float32 holds millimetres anywhere on a map.
    lidar_to_global = ego_to_global @ lidar_to_ego
    middle = lidar_to_global[:3, 3].copy()
    lidar_to_global[:3, 3] = 0
    primitives = Primitives(
        center_N3=torch.from_numpy(boxes.centers_m - middle).float(),
        half_N3=torch.from_numpy(boxes.sizes_wlh_m[:, [1, 0, 2]] / 2).float(),
        yaw_N=torch.from_numpy(boxes.yaws_rad).float(), ellipsoid_N=torch.zeros(count, dtype=torch.bool),
    )  # fmt: skip
    sensor = SphericalScan(torch.from_numpy(lidar_to_global).float(), torch.from_numpy(RINGS_RAD).float(), AZIMUTHS)
    met = cast(sensor, primitives, RANGE_M, ground=False).index_VHW
    return torch.bincount(met[met >= 0], minlength=count).numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class FillFactors:
    """Points per ray by class (``class_key``), as this log's LiDAR returned them."""

    points_per_ray: dict[str, float]
    overall: float  # of all classes together, for those without enough boxes; 1 for a log without counts

    def counts(self, keys: tuple[str, ...], rays: NDArray[np.int64]) -> NDArray[np.int32]:
        """Expected points [A] of boxes met by so many rays."""
        factors = np.array([self.points_per_ray.get(key, self.overall) for key in keys]).reshape(len(keys))
        return np.round(factors * rays).astype(np.int32)

    def missing(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Classes that were not measured, in order of name."""
        return tuple(sorted(set(keys) - set(self.points_per_ray)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CountPairs:
    """Annotations of a log: rays of a simulated scan beside the logged number of points. N annotations."""

    keys: tuple[str, ...]  # [N] class_key
    instance_tokens: tuple[str, ...]  # [N]
    rays: NDArray[np.int64]  # [N]
    points: NDArray[np.int64]  # [N]

    def select(self, index: NDArray[np.int64]) -> CountPairs:
        """Some of the annotations."""
        return CountPairs(
            keys=tuple(self.keys[i] for i in index), instance_tokens=tuple(self.instance_tokens[i] for i in index),
            rays=self.rays[index], points=self.points[index],
        )  # fmt: skip


def class_key(detection_class: str | None, category: str) -> str:
    """What a fill factor belongs to: the detection class, or the category where the devkit has none."""
    return detection_class or category


def fill_factors(pairs: CountPairs) -> FillFactors:
    """Median of logged points over simulated rays, by class; of annotations that enough rays meet."""
    if not pairs.points.any():
        return FillFactors(points_per_ray={}, overall=1.0)
    enough = pairs.rays >= _ENOUGH_RAYS
    ratio, keys, found = pairs.points / np.maximum(pairs.rays, 1), np.array(pairs.keys), {}
    for key in sorted(set(pairs.keys)):
        rows = enough & (keys == key)
        if rows.sum() >= _ENOUGH_BOXES:
            found[key] = float(np.median(ratio[rows]))
    return FillFactors(points_per_ray=found, overall=float(np.median(ratio[enough])) if enough.any() else 1.0)


def logged_counts(scene: Scene) -> CountPairs:
    """Every annotation of a scene with the rays that a scan from the logged pose sends first onto its box."""
    keys: list[str] = []
    tokens: list[str] = []
    rays, points = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    poses = scene.ego.at(scene.key_timestamps_us)
    for time, pose in zip(scene.key_timestamps_us, poses, strict=True):
        rows = [(agent, int(i)) for agent in scene.agents for i in np.flatnonzero(agent.timestamps_us == time)]
        if not rows:
            continue
        boxes = Boxes3D(
            centers_m=np.stack([agent.centers_m[i] for agent, i in rows]), sizes_wlh_m=np.stack([a.size_wlh_m for a, _ in rows]),
            yaws_rad=yaw_from_rotation(rotation_from_quaternion([agent.rotations_wxyz[i] for agent, i in rows])),
        )  # fmt: skip
        rays.append(scan_rays(scene.lidar_to_ego, pose, boxes))
        points.append(np.array([agent.num_lidar_pts[i] for agent, i in rows]))
        keys += [class_key(agent.detection_class, agent.category) for agent, _ in rows]
        tokens += [agent.instance_token for agent, _ in rows]
    return CountPairs(keys=tuple(keys), instance_tokens=tuple(tokens), rays=np.concatenate(rays), points=np.concatenate(points))
