"""Forecast scores, by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dwm.errors import InputError
from dwm.scenes.types import DETECTION_CLASSES
from evaluators.motion import STEPS, ForecastMotion, MotionScore, TrueMotion, evaluate_motion

AHEAD = np.stack([np.arange(1, STEPS + 1), np.zeros(STEPS)], axis=-1)  # one metre a step


def indices(names: tuple[str, ...]) -> np.ndarray:
    return np.array([DETECTION_CLASSES.index(name) for name in names], np.int64)


def true(*names: str, at: tuple[float, ...] = (0.0,), steps: int = STEPS) -> TrueMotion:
    """Agents at (x, 0), driving along x, their futures known for some steps."""
    centers = np.array([[x, 0.0] for x in at]).reshape(-1, 2)[: len(names)]
    known = np.tile(np.arange(STEPS) < steps, (len(names), 1))
    futures = np.where(known[..., None], centers[:, None] + AHEAD, np.nan)
    return TrueMotion(labels=indices(names), centers_m=centers, futures_m=futures, known=known)


def forecast(
    *names: str, at: tuple[float, ...] = (0.0,), errors_m: tuple[tuple[float, ...], ...] = ((0.0,) * STEPS,), score: float = 0.9
) -> ForecastMotion:
    """Detections at (x, 0) with a forecast for each row of errors, sideways by step."""
    centers = np.array([[x, 0.0] for x in at]).reshape(-1, 2)[: len(names)]
    aside = np.stack([np.zeros((len(errors_m), STEPS)), np.array(errors_m)], axis=-1)
    return ForecastMotion(
        labels=indices(names), scores=np.full(len(names), score), centers_m=centers,
        futures_m=centers[:, None, None] + AHEAD + aside,
    )  # fmt: skip


def car(truth: TrueMotion, found: ForecastMotion) -> MotionScore:
    return evaluate_motion([(truth, found)])["car"]


def test_ade_and_fde_each_take_the_forecast_that_is_best_for_them() -> None:
    found = forecast("car", errors_m=((0.5,) * 6, (0, 0, 0, 0, 0, 2.4)))
    score = car(true("car"), found)
    assert score.ade_m == pytest.approx(0.4)
    assert score.fde_m == pytest.approx(0.5)
    assert (score.miss_rate, score.epa, score.hits) == (0, 1, 1)


def test_a_future_cut_short_counts_in_ade_alone() -> None:
    score = car(true("car", steps=2), forecast("car", errors_m=((1.0, 2.0, 9, 9, 9, 9),)))
    assert score.ade_m == pytest.approx(1.5)
    assert (score.truths, score.matched, score.matched_full) == (0, 1, 0)
    assert np.isnan([score.fde_m, score.miss_rate, score.epa]).all()


def test_an_end_farther_off_than_two_metres_is_a_miss() -> None:
    assert car(true("car"), forecast("car", errors_m=((2.0,) * 6,))).miss_rate == 0
    score = car(true("car"), forecast("car", errors_m=((2.5,) * 6,)))
    assert (score.miss_rate, score.hits, score.epa) == (1, 0, 0)


def test_a_false_alarm_costs_half_a_hit() -> None:
    score = car(true("car"), forecast("car", "bus", at=(0.0, 30.0)))
    assert (score.false_alarms, score.epa) == (1, 0.5)
    assert car(true("car"), forecast("car", "bus", "truck", "trailer", "car", at=(0.0, 30.0, 40.0, 50.0, 60.0))).epa == -1


def test_detections_need_more_than_the_least_score_and_two_metres_at_most() -> None:
    weak = car(true("car"), forecast("car", score=0.6))
    assert (weak.matched, weak.false_alarms) == (0, 0)
    far = car(true("car"), forecast("car", at=(2.01,)))
    assert (far.matched, far.false_alarms) == (0, 1)
    assert car(true("car"), forecast("car", at=(2.0,))).matched == 1


def test_detections_are_assigned_together_not_one_by_one() -> None:
    score = car(true("car", "car", at=(0.0, 1.5)), forecast("car", "car", at=(1.0, 2.9)))
    assert (score.matched, score.false_alarms) == (2, 0)


def test_heavy_vehicles_count_as_cars_and_a_match_belongs_to_the_true_class() -> None:
    scores = evaluate_motion([(true("truck"), forecast("pedestrian"))])
    assert (scores["car"].matched, scores["car"].hits, scores["car"].truths) == (1, 1, 1)
    assert (scores["pedestrian"].matched, scores["pedestrian"].false_alarms) == (0, 0)


def test_what_does_not_drive_or_walk_neither_matches_nor_counts() -> None:
    standing = ("construction_vehicle", "traffic_cone", "barrier")
    for name in standing:
        score = car(true("car"), forecast(name))
        assert (score.matched, score.false_alarms, score.truths) == (0, 0, 1)
        assert car(true(name), forecast("car")).false_alarms == 1
    # Two-wheelers take part in the assignment and are not reported.
    scores = evaluate_motion([(true("bicycle"), forecast("car"))])
    assert (scores["car"].false_alarms, scores["car"].truths) == (0, 0)


def test_without_truth_figures_are_unknown_and_counts_say_so() -> None:
    nothing = evaluate_motion([(true(), forecast())])["pedestrian"]
    assert np.isnan([nothing.ade_m, nothing.fde_m, nothing.miss_rate, nothing.epa]).all()
    assert (nothing.truths, nothing.matched, nothing.false_alarms) == (0, 0, 0)
    alarm = evaluate_motion([(true(), forecast("pedestrian"))])["pedestrian"]
    assert np.isnan(alarm.epa) and alarm.false_alarms == 1
    assert np.isnan(evaluate_motion([])["car"].epa)


def test_key_frames_add_up() -> None:
    good, bad = (true("car"), forecast("car")), (true("car"), forecast("car", errors_m=((3.0,) * 6,)))
    score = evaluate_motion([good, bad, bad])["car"]
    assert score.ade_m == pytest.approx(2.0)
    assert score.miss_rate == pytest.approx(2 / 3)
    assert score.epa == pytest.approx(1 / 3)


def test_arrays_that_do_not_fit_and_futures_with_gaps_are_refused() -> None:
    truth = true("car")
    gap = dataclasses.replace(truth, known=np.array([[True, False, True, True, True, True]]))
    with pytest.raises(InputError, match="after an unknown one"):
        evaluate_motion([(gap, forecast("car"))])
    with pytest.raises(InputError, match="scores of shape"):
        evaluate_motion([(truth, dataclasses.replace(forecast("car"), scores=np.ones(2)))])
    with pytest.raises(InputError, match="futures_m of shape"):
        evaluate_motion([(truth, dataclasses.replace(forecast("car"), futures_m=np.zeros((1, STEPS, 2))))])
