"""A scenario: what happens in one generated clip, in closed form, before any pixel exists."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dwm.scenes.types import Scene

Array = NDArray[np.float64]
KEY_FRAME_HZ = 2.0


class LabelSource(IntEnum):
    """Where a box comes from. Tables store the lower-case name."""

    LOG = 0  # a log annotation at its own key frame, seen from the logged ego path
    INTERPOLATED = 1  # between two log annotations
    TRANSFORMED = 2  # a log or interpolated box seen from a moved ego, or moved because the agent reacted
    SIMULATED = 3  # beyond the log
    DETECTED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBoxes:
    """All agents at all frames, in the global frame. A agents, T frames."""

    instance_tokens: tuple[str, ...]  # [A]
    detection_classes: tuple[str | None, ...]  # [A]
    categories: tuple[str, ...]  # [A]
    sizes_wlh_m: Array  # [A, 3]
    centers_m: Array  # [A, T, 3]
    yaws_rad: Array  # [A, T]
    velocities_mps: Array  # [A, T, 2]
    present: NDArray[np.bool_]  # [A, T]
    label_sources: NDArray[np.int8]  # [A, T] LabelSource values
    num_lidar_pts: NDArray[np.int32]  # [A, T] as logged at key frames; -1 where unknown
    attributes: tuple[tuple[str, ...], ...]  # [A][T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbation:
    """One named change of the ego path with its parameters (units in the names) and a severity in [0, 1]."""

    name: str
    params: dict[str, float]
    severity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A clip to generate: ego path, agents and text for T frames of ``fps`` frames a second."""

    scene: Scene
    perturbation: Perturbation
    seed: int
    fps: float
    timestamps_us: NDArray[np.int64]  # [T]; the first is a key frame of the log
    ego_to_global: Array  # [T, 4, 4] commanded path
    baseline_ego_to_global: Array  # [T, 4, 4] the same clip without the perturbation
    agents: AgentBoxes
    is_key_frame: NDArray[np.bool_]  # [T] 2 Hz
    log_end_index: int  # frames with index >= this lie beyond the log
    prompt: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a scenario was not made: reason (a short slug), the violated value and its limit with unit, in words."""

    scene: str
    perturbation: Perturbation
    seed: int
    reason: str
    detail: str
