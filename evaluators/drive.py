"""What is known of a drive besides its pictures: path, rig and labelled agents, of a scenario or read back from a dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dwm.scenario.types import AgentBoxes, Scenario
from dwm.scenes.types import Camera
from evaluators.boxes import Boxes, boxes_of_agents

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """T frames of ``fps`` frames a second."""

    fps: float
    ego_to_global: Array  # [T, 4, 4]
    agents: AgentBoxes  # [A, T]
    cameras: tuple[Camera, ...]  # in ring order
    lidar_to_ego: Array  # [4, 4]

    def __len__(self) -> int:
        return len(self.ego_to_global)

    def seen_boxes(self, frame: int, seen_A: NDArray[np.bool_]) -> tuple[Boxes, NDArray[np.int64]]:
        """Labelled boxes in the ego frame that some picture shows, and their agents. The devkit is to leave none out for its LiDAR points."""
        known = np.array([c is not None for c in self.agents.detection_classes], dtype=bool)
        rows = np.flatnonzero(self.agents.present[:, frame] & known)
        boxes = boxes_of_agents(self.agents, frame, self.ego_to_global[frame]).select(np.flatnonzero(seen_A[rows]))
        return replace(boxes, num_pts=np.maximum(boxes.num_pts, 1)), rows[seen_A[rows]]

    @staticmethod
    def of(scenario: Scenario) -> Drive:
        """A scenario along its commanded path."""
        scene = scenario.scene
        return Drive(
            fps=scenario.fps, ego_to_global=scenario.ego_to_global, agents=scenario.agents, cameras=tuple(scene.cameras),
            lidar_to_ego=scene.lidar_to_ego,
        )  # fmt: skip
