"""The finished table of boxes: the log's, followed by the simulated ones, with velocities and attributes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dwm.scenario.continuation import Continued
from dwm.scenario.logged import BoxTable, empty_table
from dwm.scenario.types import AgentBoxes
from dwm.scenes.types import Scene

Array = NDArray[np.float64]
STOPPED_MPS = 0.2
CYCLES = ("vehicle.bicycle", "vehicle.motorcycle")


def joined(
    scene: Scene, table: BoxTable, after: Continued, log_end: int, frames: int, ground_m: float, fps: float
) -> AgentBoxes:
    """The log's boxes followed by the simulated ones."""
    entered = after.specs[len(after.known) :]
    rest = frames - log_end
    whole = empty_table(len(scene.agents) + len(entered), frames)
    for name in ("centers_m", "yaws_rad", "present", "sources", "num_lidar_pts"):
        getattr(whole, name)[: len(scene.agents)] = getattr(table, name)
    whole.attributes[: len(scene.agents)] = table.attributes
    rows = [*after.known, *range(len(scene.agents), len(scene.agents) + len(entered))]
    heights = [table.centers_m[i, log_end - 1, 2] for i in after.known] + [ground_m + s.size_wlh_m[2] / 2 for s in entered]
    for k, (row, z) in enumerate(zip(rows, heights, strict=True)):
        whole.present[row, log_end:] = after.present[k, 1 : rest + 1]
        whole.centers_m[row, log_end:, :2], whole.centers_m[row, log_end:, 2] = after.xy_m[k, 1 : rest + 1], z
        whole.yaws_rad[row, log_end:] = after.yaw_rad[k, 1 : rest + 1]
    return finished(scene, whole, entered, fps)


def finished(scene: Scene, table: BoxTable, entered: tuple, fps: float | Array) -> AgentBoxes:
    """The finished table, without agents that never appear; ``fps`` may be that of every step [T - 1]."""
    who = [(a.instance_token, a.detection_class, a.category, a.size_wlh_m) for a in scene.agents]
    who += [(s.token, s.detection_class, s.category, np.array(s.size_wlh_m)) for s in entered]
    keep = np.flatnonzero(table.present.any(axis=1))
    velocities = _velocities(table.centers_m[keep, :, :2], table.present[keep], fps)
    speeds = np.linalg.norm(np.nan_to_num(velocities), axis=-1)
    attributes = tuple(
        _attributes(who[i][2], table.attributes[i], speeds[k], table.present[i], i >= len(scene.agents))
        for k, i in enumerate(keep)
    )
    there = table.present[keep][..., None]
    return AgentBoxes(
        instance_tokens=tuple(who[i][0] for i in keep), detection_classes=tuple(who[i][1] for i in keep),
        categories=tuple(who[i][2] for i in keep),
        sizes_wlh_m=np.reshape([who[i][3] for i in keep], (-1, 3)).astype(np.float64),
        centers_m=np.where(there, table.centers_m[keep], 0.0), yaws_rad=table.yaws_rad[keep],
        velocities_mps=np.where(there, velocities, 0.0), present=table.present[keep],
        label_sources=table.sources[keep], num_lidar_pts=table.num_lidar_pts[keep], attributes=attributes,
    )  # fmt: skip


def _velocities(xy_m: Array, present: NDArray[np.bool_], fps: float | Array) -> Array:
    """Velocities [A, T, 2] by central differences, one-sided at the ends of presence; NaN for a single frame."""
    forward = np.full_like(xy_m, np.nan)
    forward[:, :-1] = (xy_m[:, 1:] - xy_m[:, :-1]) * np.reshape(fps, (-1, 1))
    both = present[:, :-1] & present[:, 1:]
    forward[:, :-1][~both] = np.nan
    backward = np.full_like(xy_m, np.nan)
    backward[:, 1:] = forward[:, :-1]
    mean = (forward + backward) / 2
    out = np.where(np.isnan(mean), np.where(np.isnan(forward), backward, forward), mean)
    out[~present] = np.nan
    return out


def _attributes(
    category: str, logged: list[str], speed_mps: Array, present: NDArray[np.bool_], entered: bool
) -> tuple[str, ...]:
    """Attributes [T]: the logged one, else what the speed suggests; a rider does not get off in between."""
    rider = "cycle.with_rider" if entered and category in CYCLES else ""
    out = []
    for there, own, speed in zip(present, logged, speed_mps, strict=True):
        rider = own if own.startswith("cycle.") else rider
        out.append((own or rider or default_attribute(category, float(speed))) if there else "")
    return tuple(out)


def default_attribute(category: str, speed_mps: float) -> str:
    """The nuScenes attribute that a speed suggests; '' where the category has none."""
    moves = speed_mps > STOPPED_MPS
    if category in CYCLES:
        return "cycle.with_rider" if moves else "cycle.without_rider"
    if category.startswith("vehicle."):
        return "vehicle.moving" if moves else "vehicle.stopped"
    if category.startswith("human."):
        return "pedestrian.moving" if moves else "pedestrian.standing"
    return ""
