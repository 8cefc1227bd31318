"""Forecasts of other road users: ADE, FDE, miss rate and EPA, as VAD scores them (after ViP3D, Gu et al., CVPR 2023).

Detections of more than 0.6 are assigned to true agents by the Hungarian method on centre distance, at most 2 m. All moving classes
take part in the assignment, whatever class a detection says; a match is accounted to the true agent's class, a false alarm
to its own. Two classes are reported: car (car, truck, bus and trailer together) and pedestrian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from dwm.errors import InputError
from dwm.scenes.types import DETECTION_CLASSES

Array = NDArray[np.float64]

STEPS, STEP_S = 6, 0.5
MIN_SCORE = 0.6
MATCH_M = 2.0  # for detections, and for the end of a forecast to be a hit
FALSE_ALARM_WEIGHT = 0.5  # alpha of EPA
MOTION_CLASSES = {"car": ("car", "truck", "bus", "trailer"), "pedestrian": ("pedestrian",)}
_MOVING = (*MOTION_CLASSES["car"], "motorcycle", "bicycle", "pedestrian")
_FAR_M = 1e6  # instead of infinity, with which an assignment may not exist


@dataclass(frozen=True, slots=True, kw_only=True)
class TrueMotion:
    """N annotated agents of a key frame; positions in any one frame of reference, the same for all of the key frame."""

    labels: NDArray[np.int64]  # [N] index into DETECTION_CLASSES
    centers_m: Array  # [N, 2]
    futures_m: Array  # [N, STEPS, 2] positions 0.5 s to 3 s later
    known: NDArray[np.bool_]  # [N, STEPS] whether the log has them; once it does not, later ones are unknown too


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastMotion:
    """M detections of a key frame with K forecasts each; positions, not steps."""

    labels: NDArray[np.int64]  # [M]
    scores: Array  # [M]
    centers_m: Array  # [M, 2]
    futures_m: Array  # [M, K, STEPS, 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionScore:
    """One class. A figure of which there is no case is NaN; the counts say so."""

    ade_m: float  # mean over the known steps of the forecast of which that mean is least
    fde_m: float  # least distance of any forecast after 3 s
    miss_rate: float  # share of those ends farther off than 2 m
    epa: float  # end-to-end prediction accuracy: (hits - 0.5 false alarms) / truths; may be negative
    truths: int  # agents with all steps known
    matched: int  # with a detection and at least one known step; ADE averages over them
    matched_full: int  # with a detection and all steps; FDE and miss rate average over them
    hits: int
    false_alarms: int  # detections without a true agent


@dataclass(slots=True)
class _Sums:
    ade: float = 0.0
    fde: float = 0.0
    truths: int = 0
    matched: int = 0
    matched_full: int = 0
    hits: int = 0
    false_alarms: int = 0

    def score(self) -> MotionScore:
        return MotionScore(
            ade_m=_ratio(self.ade, self.matched), fde_m=_ratio(self.fde, self.matched_full),
            miss_rate=_ratio(self.matched_full - self.hits, self.matched_full),
            epa=_ratio(self.hits - FALSE_ALARM_WEIGHT * self.false_alarms, self.truths),
            truths=self.truths, matched=self.matched, matched_full=self.matched_full, hits=self.hits,
            false_alarms=self.false_alarms,
        )  # fmt: skip


def evaluate_motion(frames: Sequence[tuple[TrueMotion, ForecastMotion]]) -> dict[str, MotionScore]:
    """Scores by class of MOTION_CLASSES over all key frames together.

    Raises:
        InputError: arrays that do not fit together, or a known step after an unknown one.
    """
    sums = {name: _Sums() for name in MOTION_CLASSES}
    for truth, forecast in frames:
        _check(truth, forecast)
        _add(sums, truth, forecast)
    return {name: found.score() for name, found in sums.items()}


def _add(sums: dict[str, _Sums], truth: TrueMotion, forecast: ForecastMotion) -> None:
    used = np.flatnonzero(forecast.scores > MIN_SCORE)
    match = _assigned(truth, forecast, used)
    for name, members in MOTION_CLASSES.items():
        total = sums[name]
        unmatched = np.setdiff1d(used, match)
        total.false_alarms += int(_is_one_of(forecast.labels[unmatched], members).sum())
        for i in np.flatnonzero(_is_one_of(truth.labels, members)):
            steps = int(truth.known[i].sum())
            total.truths += steps == STEPS
            if match[i] < 0 or not steps:
                continue
            errors_KT = np.linalg.norm(forecast.futures_m[match[i], :, :steps] - truth.futures_m[i, :steps], axis=-1)
            total.matched += 1
            total.ade += float(errors_KT.mean(1).min())
            if steps == STEPS:
                end = float(errors_KT[:, -1].min())
                total.matched_full += 1
                total.fde += end
                total.hits += end <= MATCH_M


def _assigned(truth: TrueMotion, forecast: ForecastMotion, used: NDArray[np.int64]) -> NDArray[np.int64]:
    """Detection [N] of each true agent, -1 for none."""
    distance = np.linalg.norm(forecast.centers_m[used, None] - truth.centers_m[None], axis=-1)
    allowed = _is_one_of(forecast.labels[used], _MOVING)[:, None] & _is_one_of(truth.labels, _MOVING)
    distance = np.where(allowed & (distance <= MATCH_M), distance, _FAR_M)
    rows, columns = linear_sum_assignment(distance)
    near = distance[rows, columns] <= MATCH_M
    match = np.full(len(truth.labels), -1)
    match[columns[near]] = used[rows[near]]
    return match


def _is_one_of(labels: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.bool_]:
    return np.isin(labels, [DETECTION_CLASSES.index(name) for name in names])


def _check(truth: TrueMotion, forecast: ForecastMotion) -> None:
    n, m = len(truth.labels), len(forecast.labels)
    modes = forecast.futures_m.shape[1] if forecast.futures_m.ndim == 4 else 0
    expected = (
        (truth, {"labels": (n,), "centers_m": (n, 2), "futures_m": (n, STEPS, 2), "known": (n, STEPS)}),
        (forecast, {"labels": (m,), "scores": (m,), "centers_m": (m, 2), "futures_m": (m, max(modes, 1), STEPS, 2)}),
    )
    for record, shapes in expected:
        for field in fields(record):
            shape = getattr(record, field.name).shape
            if shape != shapes[field.name]:
                raise InputError("motion", f"{field.name} of shape {shape}", f"give {shapes[field.name]}")
    if (truth.known[:, 1:] & ~truth.known[:, :-1]).any():
        raise InputError("motion", "a known step after an unknown one", "stop a future where the log first has none")


def _ratio(total: float, count: int) -> float:
    return total / count if count else float("nan")
