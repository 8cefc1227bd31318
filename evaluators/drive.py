"""What is known of a drive besides its pictures: path, rig and labelled agents, of a scenario or read back from a dataset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.scenario.types import AgentBoxes, Scenario
from dwm.scenes.types import Camera

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

    @staticmethod
    def of(scenario: Scenario) -> Drive:
        """A scenario along its commanded path."""
        scene = scenario.scene
        return Drive(
            fps=scenario.fps, ego_to_global=scenario.ego_to_global, agents=scenario.agents, cameras=tuple(scene.cameras),
            lidar_to_ego=scene.lidar_to_ego,
        )  # fmt: skip
