"""Errors of planned ego paths over 3 s: distance to the driven path and collisions with others, in both published conventions.

Average (ST-P3, VAD): the figure at N seconds is the mean over the first 2N steps of 0.5 s. At time (UniAD): that of step 2N
alone. A path that drifts away scores about half as much in the first as in the second, so figures may only be compared within
one convention, and with the same ego box and obstacles (``evaluators/ego_collision.py``).

A step at which the driven path itself collides by the same check is no collision of the plan, but still counts in the
denominator. Only key frames followed by all six true positions count. Shapes: F key frames, T = 6 steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from evaluators.ego_collision import (
    OBSTACLES,
    VAD_EGO_BOX,
    EgoBox,
    FutureAgents,
    Mask,
    as_labelled_by_vad,
    hits_on_grid,
    hits_with_heading,
    obstacles,
    occupancy,
)

Array = NDArray[np.float64]

STEPS, STEPS_PER_S = 6, 2
HORIZONS_S = (1, 2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFrame:
    """A plan and what came of it: positions 0.5 s to 3 s ahead (x forward, y left, from the reference point now)."""

    planned_m: Array  # [T, 2]
    driven_m: Array  # [T, 2]
    driven_known: Mask  # [T] whether the log has them
    agents: FutureAgents


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningScore:
    """Figures by horizon in seconds, in one convention; NaN without a key frame that counts."""

    l2_m: dict[int, float]
    grid_collision_rate: dict[int, float]  # share of steps; publications give per cent
    heading_collision_rate: dict[int, float]  # the same by rectangles that turn with the path


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningReport:
    """Both conventions, with what they hang on."""

    average: PlanningScore  # ST-P3, VAD
    at_time: PlanningScore  # UniAD, but over whole futures only
    l2_at_time_missing_as_zero_m: dict[int, float]  # UniAD's own: an unknown step has error 0 and counts
    frames: int  # that count
    frames_cut_short: int  # left out: fewer than six true positions
    driven_grid_collision_steps: int  # of the driven path, left out of the numerator
    driven_heading_collision_steps: int
    ego: EgoBox
    obstacle_kinds: tuple[str, ...]
    only_vad_labels: bool  # whether agents that VAD's ground truth does not hold were left out


def evaluate_planning(
    frames: Iterable[PlannedFrame],
    *,
    ego: EgoBox = VAD_EGO_BOX,
    obstacle_kinds: Sequence[str] = OBSTACLES,
    only_vad_labels: bool = True,
) -> PlanningReport:
    """Scores of planned paths. UniAD's own collision rates count vehicles only: ``obstacle_kinds=("vehicle",)``.

    Raises:
        InputError: arrays that do not fit together, or a position that should be known and is not finite.
    """
    errors, whole, checks = [], [], []
    for frame in frames:
        _check(frame)
        errors.append(np.linalg.norm(frame.planned_m - frame.driven_m, axis=-1))
        whole.append(frame.driven_known)
        if frame.driven_known.all():
            checks.append(_collisions(frame, ego, obstacle_kinds, only_vad_labels))
    known_FT = np.array(whole, bool).reshape(-1, STEPS)
    l2_FT, counts = np.array(errors).reshape(-1, STEPS), known_FT.all(1)
    planned, driven = np.moveaxis(np.array(checks, bool).reshape(-1, 2, 2, STEPS), (1, 2), (0, 1))  # [grid or heading, F, T]
    fault = planned & ~driven

    def score(at: Callable[[Array, int], Array]) -> PlanningScore:
        return PlanningScore(
            l2_m=_by_horizon(l2_FT[counts], at),
            grid_collision_rate=_by_horizon(fault[0], at),
            heading_collision_rate=_by_horizon(fault[1], at),
        )

    return PlanningReport(
        average=score(lambda values, seconds: values[:, : seconds * STEPS_PER_S]), at_time=score(_step_at),
        l2_at_time_missing_as_zero_m=_by_horizon(np.where(known_FT, l2_FT, 0.0), _step_at),
        frames=int(counts.sum()), frames_cut_short=int((~counts).sum()),
        driven_grid_collision_steps=int(driven[0].sum()), driven_heading_collision_steps=int(driven[1].sum()),
        ego=ego, obstacle_kinds=tuple(obstacle_kinds), only_vad_labels=only_vad_labels,
    )  # fmt: skip


def _collisions(frame: PlannedFrame, ego: EgoBox, kinds: Sequence[str], only_vad_labels: bool) -> list[list[Mask]]:
    """[planned or driven][grid or heading], steps [T] each."""
    agents = obstacles(as_labelled_by_vad(frame.agents) if only_vad_labels else frame.agents, kinds)
    grid = occupancy(agents)
    return [[hits_on_grid(path, grid, ego), hits_with_heading(path, agents, ego)] for path in (frame.planned_m, frame.driven_m)]


def _step_at(values: Array, seconds: int) -> Array:
    return values[:, seconds * STEPS_PER_S - 1]


def _by_horizon(values_FT: NDArray[np.generic], at: Callable[[Array, int], Array]) -> dict[int, float]:
    values = np.asarray(values_FT, np.float64)
    return {s: float(at(values, s).mean()) if len(values) else float("nan") for s in HORIZONS_S}


def _check(frame: PlannedFrame) -> None:
    agents, n = frame.agents, len(frame.agents.categories)
    expected = {
        "planned_m": (frame.planned_m, (STEPS, 2)),
        "driven_m": (frame.driven_m, (STEPS, 2)),
        "driven_known": (frame.driven_known, (STEPS,)),
        "agents.sizes_wl_m": (agents.sizes_wl_m, (n, 2)),
        "agents.now_m": (agents.now_m, (n, 2)),
        "agents.centers_m": (agents.centers_m, (n, STEPS, 2)),
        "agents.yaws_rad": (agents.yaws_rad, (n, STEPS)),
        "agents.known": (agents.known, (n, STEPS)),
    }
    for name, (value, shape) in expected.items():
        if value.shape != shape:
            raise InputError("planning", f"{name} of shape {value.shape}", f"give {shape}")
    needed = (frame.planned_m, frame.driven_m[frame.driven_known], agents.now_m, agents.centers_m[agents.known])
    if not all(np.isfinite(value).all() for value in needed):
        raise InputError("planning", "a known position is not finite", "mark what the log does not have as unknown")
