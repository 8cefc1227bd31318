"""What a detector is asked to find in a clip, and what it finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dwm.conditioning.build import ScenarioConditioner
from dwm.scenario.types import Scenario
from evaluators.box_finder import BoxFinder
from evaluators.boxes import Boxes, boxes_of_scenario
from evaluators.clip_detection import ClipMatchConfig

Array = NDArray[np.float64]
# Rays of the layout cast that must meet a box first before a detector is asked to find it, of so many in a view: a larger image has more
# of them, but the detector sees the box at its own size.
_MIN_RAYS, _RAYS = 2, 64 * 112


def rig(conditioner: ScenarioConditioner) -> tuple[Array, Array]:
    """Intrinsics [V, 3, 3] and camera-to-ego poses [V, 4, 4]."""
    cameras = conditioner.cameras
    return np.stack([c.intrinsics for c in cameras]), np.stack([c.camera_to_ego for c in cameras])


def matching(detector: BoxFinder) -> ClipMatchConfig:
    """Within a detector's own reach, from its own operating score on where it knows one."""
    config, known = ClipMatchConfig(reach_m=detector.reach_m), detector.operating_score
    return config if known is None else replace(config, min_score=known)


def detect_frames(
    detector: BoxFinder, conditioner: ScenarioConditioner, scenario: Scenario, images: NDArray[np.uint8], frames: Sequence[int]
) -> list[Boxes]:
    """Boxes in the ego frame of each of these frames, from their images [K, V, H, W, 3]."""
    return detector.detect_clip(images, *rig(conditioner), scenario.ego_to_global[list(frames)])


def visible_labels(scenario: Scenario, conditioner: ScenarioConditioner, frame: int) -> tuple[NDArray[np.int64], Boxes]:
    """Agents that enough rays of the layout meet first, with their boxes in the ego frame."""
    shown = np.flatnonzero(conditioner.seen_rays(frame) * _RAYS >= _MIN_RAYS * math.prod(conditioner.cast_hw))
    known = np.array([c is not None for c in scenario.agents.detection_classes], dtype=bool)
    rows = np.flatnonzero(scenario.agents.present[:, frame] & known)
    return shown, boxes_of_scenario(scenario, frame).select(np.flatnonzero(np.isin(rows, shown)))
