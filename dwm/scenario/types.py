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
    """A named change of the log with its parameters (units in the names) and a severity in [0, 1].

    Several at once are joined by "+", and each parameter then begins with its family: ``hard_brake+night`` has
    ``hard_brake.decel_mps2``.
    """

    name: str
    params: dict[str, float]
    severity: float

    def parts(self) -> tuple[Perturbation, ...]:
        """The single changes, in the order given."""
        names = self.name.split("+")
        if len(names) == 1:
            return (self,)
        return tuple(Perturbation(name=n, params=self._of(n), severity=self.severity) for n in names)

    def _of(self, name: str) -> dict[str, float]:
        return {key.removeprefix(f"{name}."): v for key, v in self.params.items() if key.startswith(f"{name}.")}


class Infeasible(Exception):  # noqa: N818 - an outcome, not an error
    """A change that cannot be made here: a short slug as reason and, in words, the number and what was needed."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


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
