"""What the network should say about a frame, as it says it (``evaluators.vad.model.VadOutputs``), from labels and map.

Everything in the LiDAR frame, x right and y forward. Shapes: N objects, T steps of 0.5 s, I map lines, G orders of a line's points,
P points of a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor

from dwm.geometry import apply, invert
from dwm.scenes.types import DETECTION_CLASSES
from evaluators.boxes import Boxes, boxes_of_agents
from evaluators.drive import Drive
from evaluators.mapping import MAP_CLASSES, MapLine
from evaluators.vad.config import OBJECT_CLASSES, VadConfig
from evaluators.vad.inputs import drive_command

Array = NDArray[np.float64]
STEP_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class VadTargets:
    """Targets of one key frame."""

    labels_N: Tensor  # index into OBJECT_CLASSES
    boxes_N10: Tensor  # cx, cy, log w, log l, cz, log h, sin, cos, vx, vy; velocities may be NaN
    steps_NT2: Tensor  # metres from step to step
    steps_known_NT: Tensor
    map_labels_I: Tensor  # index into MAP_CLASSES
    map_points_IGP2: Tensor  # shares of the range, in every order that draws the same line
    plan_T2: Tensor  # the ego's metres from step to step
    plan_known_T: Tensor
    command: int  # index of COMMANDS

    def to(self, device: torch.device) -> VadTargets:
        tensors = {name: getattr(self, name).to(device) for name in self.__slots__ if name != "command"}
        return VadTargets(**tensors, command=self.command)


def targets_of(
    drive: Drive, frame: int, config: VadConfig, lines: Sequence[MapLine], seen: NDArray[np.bool_] | None = None
) -> VadTargets:
    """Targets of a frame of a drive; ``seen`` [A] leaves out agents that no picture shows, ``lines`` are ``map_lines``'s.

    Objects count inside the range; futures are known as long as the drive has the agent.
    """
    agents = drive.agents
    known_class = np.array([c is not None for c in agents.detection_classes], dtype=bool)
    rows = np.flatnonzero(agents.present[:, frame] & known_class)
    to_lidar = invert(drive.ego_to_global[frame] @ drive.lidar_to_ego)
    boxes = boxes_of_agents(agents, frame, drive.ego_to_global[frame]).moved(invert(drive.lidar_to_ego))
    low, high = np.array(config.range_m[:3]), np.array(config.range_m[3:])
    kept = ((boxes.centers_m >= low) & (boxes.centers_m <= high)).all(axis=1)
    if seen is not None:
        kept &= seen[rows]
    boxes, rows = boxes.select(kept), rows[kept]
    later = frame + np.round(np.arange(config.steps + 1) * STEP_S * drive.fps).astype(np.int64)
    places, known = places_of(drive, rows, later, to_lidar)
    plan, plan_known = driven_of(drive, later, to_lidar)
    map_labels, map_points = _map(lines, config)
    return VadTargets(
        labels_N=torch.tensor([OBJECT_CLASSES.index(DETECTION_CLASSES[k]) for k in boxes.labels], dtype=torch.long),
        boxes_N10=box_code(boxes), steps_NT2=torch.from_numpy(np.diff(places, axis=1)).float(),
        steps_known_NT=torch.from_numpy(known), map_labels_I=map_labels, map_points_IGP2=map_points,
        plan_T2=torch.from_numpy(np.diff(plan, axis=0)).float(), plan_known_T=torch.from_numpy(plan_known),
        command=command_of(plan, plan_known),
    )  # fmt: skip


def box_code(boxes: Boxes) -> Tensor:
    """Boxes of the LiDAR frame as the network codes them [N, 10]; its angle is -yaw - pi/2 (``coders.decode_objects``)."""
    angle = -boxes.yaws_rad - np.pi / 2
    columns = [
        boxes.centers_m[:, :2], np.log(boxes.sizes_wlh_m[:, :2]), boxes.centers_m[:, 2:], np.log(boxes.sizes_wlh_m[:, 2:]),
        np.column_stack([np.sin(angle), np.cos(angle)]), boxes.velocities_mps,
    ]  # fmt: skip
    return torch.from_numpy(np.concatenate(columns, axis=1)).float()


def orders_of(points_P2: Array) -> Array:
    """The same line in every order of its points [2 (P - 1), P, 2]: from each end, or around from every point of a ring.

    Orders of an open line repeat, so that all lines have as many (after Liao et al., MapTR, ICLR 2023, sec. 3.1).
    """
    count = len(points_P2)
    if not np.allclose(points_P2[0], points_P2[-1]):
        return np.stack([points_P2, points_P2[::-1]] * (count - 1))
    ring = points_P2[:-1]
    around = [np.roll(ring, -k, axis=0) for k in range(count - 1)]
    return np.stack([np.concatenate([turn, turn[:1]]) for ring in around for turn in (ring, np.roll(ring[::-1], 1, axis=0))])


def places_of(
    drive: Drive, rows: NDArray[np.int64], later: NDArray[np.int64], to_lidar: Array
) -> tuple[Array, NDArray[np.bool_]]:
    """Where agents are now and at the steps [N, T + 1, 2], and which steps [N, T] are known; a gap ends a future."""
    inside = later < len(drive)
    clipped = np.minimum(later, len(drive) - 1)
    known = np.logical_and.accumulate(drive.agents.present[rows][:, clipped] & inside, axis=1)
    places = apply(to_lidar, drive.agents.centers_m[rows][:, clipped].reshape(-1, 3)).reshape(len(rows), len(later), 3)[..., :2]
    last = np.maximum.accumulate(np.where(known, np.arange(len(later)), 0), axis=1)
    return np.take_along_axis(places, last[..., None], axis=1), known[:, 1:]


def driven_of(drive: Drive, later: NDArray[np.int64], to_lidar: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Where the LiDAR is now and at the steps [T + 1, 2], and which steps [T] are known."""
    known = later < len(drive)
    poses = drive.ego_to_global[np.minimum(later, len(drive) - 1)] @ drive.lidar_to_ego
    return apply(to_lidar, poses[:, :3, 3])[:, :2], known[1:]


def command_of(driven: Array, known: NDArray[np.bool_]) -> int:
    """Index of COMMANDS for a path as ``driven_of`` gives it, by its last place that is known."""
    return drive_command(float(driven[np.flatnonzero([True, *known])[-1], 0]))


def _map(lines: Sequence[MapLine], config: VadConfig) -> tuple[Tensor, Tensor]:
    """Labels [I] and points [I, G, P, 2] of lines, resampled at equal steps."""
    low, high = np.array(config.range_m[:2]), np.array(config.range_m[3:5])
    count = config.map_points
    shares, labels = [], []
    for line in lines:
        path = shapely.LineString(line.points_m)
        if path.length < 1e-3:
            continue
        places = shapely.get_coordinates(path.interpolate(np.linspace(0, 1, count), normalized=True))
        shares.append(orders_of(np.clip((places - low) / (high - low), 0, 1)))
        labels.append(MAP_CLASSES.index(line.class_name))
    points = np.stack(shares) if shares else np.zeros((0, 2 * (count - 1), count, 2))
    return torch.tensor(labels, dtype=torch.long), torch.from_numpy(points).float()
