"""Boxes of one moment: ground truth and detections alike, in the ego frame or, after ``moved``, in another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import apply, invert, rotation_from_quaternion, rotation_from_yaw, yaw_from_rotation
from dwm.scenario.types import AgentBoxes, Scenario
from dwm.scenes.types import DETECTION_CLASSES, Scene

Array = NDArray[np.float64]

ATTRIBUTES = (
    "cycle.with_rider", "cycle.without_rider", "pedestrian.moving", "pedestrian.standing",
    "pedestrian.sitting_lying_down", "vehicle.moving", "vehicle.parked", "vehicle.stopped",
)  # fmt: skip
_ATTRIBUTE_FAMILY = {
    "pedestrian": "pedestrian",
    "motorcycle": "cycle",
    "bicycle": "cycle",
    "traffic_cone": "none",
    "barrier": "none",
}
# [class, attribute]: which attributes a class may have.
ALLOWED_ATTRIBUTES = np.array(
    [[a.startswith(_ATTRIBUTE_FAMILY.get(name, "vehicle") + ".") for a in ATTRIBUTES] for name in DETECTION_CLASSES]
)
# Classes that a detector confuses without the object being absent: support is counted within a group.
CLASS_GROUPS = np.array([0, 0, 0, 0, 0, 1, 2, 2, 3, 4])
UNKNOWN = -1
_RACK, _CYCLES = "static_object.bicycle_rack", ("bicycle", "motorcycle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """N upright boxes. Unknown velocities are NaN, unknown attributes and point counts -1."""

    labels: NDArray[np.int64]  # [N] index into DETECTION_CLASSES
    centers_m: Array  # [N, 3]
    sizes_wlh_m: Array  # [N, 3]
    yaws_rad: Array  # [N]
    velocities_mps: Array  # [N, 2]
    attributes: NDArray[np.int64]  # [N] index into ATTRIBUTES
    scores: Array  # [N]; 1 for ground truth
    num_pts: NDArray[np.int64]  # [N] LiDAR and radar points inside

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: NDArray[np.bool_] | NDArray[np.int64]) -> Boxes:
        """The boxes of a mask or of indices, in that order."""
        return Boxes(**{name: getattr(self, name)[index] for name in self.__dataclass_fields__})

    def moved(self, from_to: Array) -> Boxes:
        """The same boxes in another frame, by its rigid transform [4, 4]; boxes stay upright."""
        rotation = np.asarray(from_to)[:3, :3]
        return replace(
            self,
            centers_m=apply(from_to, self.centers_m),
            yaws_rad=yaw_from_rotation(rotation @ rotation_from_yaw(self.yaws_rad)),
            velocities_mps=self.velocities_mps @ rotation[:2, :2].T,
        )

    @property
    def distances_m(self) -> Array:
        """Distance [N] from the origin in the plane."""
        return np.linalg.norm(self.centers_m[:, :2], axis=1)

    @staticmethod
    def empty() -> Boxes:
        return boxes_from(np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))


def boxes_from(
    labels: NDArray[np.int64],
    centers_m: Array,
    sizes_wlh_m: Array,
    yaws_rad: Array,
    velocities_mps: Array | None = None,
    attributes: NDArray[np.int64] | None = None,
    scores: Array | None = None,
    num_pts: NDArray[np.int64] | None = None,
) -> Boxes:
    """Boxes with the unknowns filled in: velocity NaN, attribute -1, score 1, points -1."""
    n = len(labels)
    return Boxes(
        labels=np.asarray(labels, np.int64),
        centers_m=np.asarray(centers_m, np.float64).reshape(n, 3),
        sizes_wlh_m=np.asarray(sizes_wlh_m, np.float64).reshape(n, 3),
        yaws_rad=np.asarray(yaws_rad, np.float64),
        velocities_mps=np.full((n, 2), np.nan)
        if velocities_mps is None
        else np.asarray(velocities_mps, np.float64).reshape(n, 2),
        attributes=np.full(n, UNKNOWN, np.int64) if attributes is None else np.asarray(attributes, np.int64),
        scores=np.ones(n) if scores is None else np.asarray(scores, np.float64),
        num_pts=np.full(n, UNKNOWN, np.int64) if num_pts is None else np.asarray(num_pts, np.int64),
    )


def attribute_index(name: str) -> int:
    return ATTRIBUTES.index(name) if name in ATTRIBUTES else UNKNOWN


def boxes_of_scene(scene: Scene, key_index: int, min_visibility: int = 1) -> Boxes:
    """The annotations of a logged key frame that the devkit evaluates, in the ego frame of the sample's own time."""
    time_us = scene.key_timestamps_us[key_index]
    racked = cycles_in_racks(scene, time_us)
    found = [
        (agent, int(index))
        for agent in scene.agents
        if agent.detection_class is not None and agent.instance_token not in racked
        for index in np.flatnonzero(agent.timestamps_us == time_us)
        if agent.visibility[index] >= min_visibility
    ]
    if not found:
        return Boxes.empty()
    rotations = rotation_from_quaternion([agent.rotations_wxyz[i] for agent, i in found])
    boxes = boxes_from(
        np.array([DETECTION_CLASSES.index(str(agent.detection_class)) for agent, _ in found]),
        np.array([agent.centers_m[i] for agent, i in found]),
        np.array([agent.size_wlh_m for agent, _ in found]),
        yaw_from_rotation(rotations),
        np.array([agent.velocities_mps[i] for agent, i in found]),
        np.array([attribute_index(agent.attributes[i]) for agent, i in found]),
        num_pts=np.array([agent.num_lidar_pts[i] + agent.num_radar_pts[i] for agent, i in found]),
    )
    return boxes.moved(invert(scene.ego.at(np.array([time_us]))[0]))


def cycles_in_racks(scene: Scene, time_us: int) -> set[str]:
    """Instances that the devkit's evaluations leave out at a key frame: bicycles and motorcycles with their centre in a bicycle rack."""
    racks, cycles = [], []
    for agent in scene.agents:
        kind = racks if agent.category == _RACK else cycles if agent.detection_class in _CYCLES else None
        if kind is not None:
            kind.extend((agent, int(index)) for index in np.flatnonzero(agent.timestamps_us == time_us))
    inside = set()
    for rack, i in racks:
        to_global, reach = rotation_from_quaternion(rack.rotations_wxyz[i]), rack.size_wlh_m[[1, 0, 2]] / 2
        apart = {cycle.instance_token: (cycle.centers_m[k] - rack.centers_m[i]) @ to_global for cycle, k in cycles}
        inside |= {token for token, local in apart.items() if (np.abs(local) <= reach).all()}
    return inside


def boxes_of_scenario(scenario: Scenario, frame: int) -> Boxes:
    """The labels of one frame of a scenario, in the ego frame of the commanded path."""
    return boxes_of_agents(scenario.agents, frame, scenario.ego_to_global[frame])


def boxes_of_agents(agents: AgentBoxes, frame: int, ego_to_global: Array) -> Boxes:
    """The agents of one frame that have a detection class, in the ego frame at a pose [4, 4]."""
    known = np.array([name is not None for name in agents.detection_classes], dtype=bool)
    rows = np.flatnonzero(agents.present[:, frame] & known)
    boxes = boxes_from(
        np.array([DETECTION_CLASSES.index(str(agents.detection_classes[a])) for a in rows], np.int64),
        agents.centers_m[rows, frame],
        agents.sizes_wlh_m[rows],
        agents.yaws_rad[rows, frame],
        agents.velocities_mps[rows, frame],
        np.array([attribute_index(agents.attributes[a][frame]) for a in rows], np.int64),
        num_pts=agents.num_lidar_pts[rows, frame],
    )
    return boxes.moved(invert(ego_to_global))
