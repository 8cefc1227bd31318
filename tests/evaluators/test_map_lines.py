"""VAD's map scores against an obvious slow twin, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from dwm.errors import InputError
from evaluators.mapping import (
    MAP_CLASSES,
    THRESHOLDS_M,
    MapLine,
    MapReport,
    area_under_curve,
    chamfer_distances_m,
    evaluate_map_lines,
    resampled,
)

Lines = dict[str, list[MapLine]]


def along_y(x_m: float, score: float = 1.0, name: str = "divider", from_m: float = 0.0, to_m: float = 20.0) -> MapLine:
    return MapLine(class_name=name, points_m=np.array([[x_m, from_m], [x_m, to_m]]), score=score)


def by_threshold(report: MapReport, field: str, name: str = "divider") -> list[float]:
    return [getattr(score, field) for score in report.scores if score.class_name == name]


def random_lines(rng: np.random.Generator, count: int) -> list[MapLine]:
    steps = rng.normal((0, 4), 2, (count, 5, 2))
    starts = rng.uniform(-6, 6, (count, 1, 2))
    return [
        MapLine(class_name=MAP_CLASSES[rng.integers(3)], points_m=points, score=float(rng.random()))
        for points in starts + steps.cumsum(1)
    ]


def disturbed(lines: list[MapLine], rng: np.random.Generator) -> list[MapLine]:
    moved = [
        MapLine(class_name=a.class_name, points_m=a.points_m + rng.normal(0, 0.8, a.points_m.shape), score=float(rng.random()))
        for a in lines
        for _ in range(2)
    ]
    return moved + random_lines(rng, 3)


def slow_resampled(points: np.ndarray) -> np.ndarray:
    travelled = np.concatenate([[0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
    at = np.linspace(0, travelled[-1], 100)
    return np.stack([np.interp(at, travelled, points[:, k]) for k in (0, 1)], axis=1)


def slow_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Every pair of lines, every pair of points, no tree."""
    wide = [shapely.LineString(line).buffer(2.0, cap_style="flat", join_style="mitre") for line in (a, b)]
    if not wide[0].intersects(wide[1]):
        return float("inf")
    between = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return float((between.min(0).mean() + between.min(1).mean()) / 2)


def slow_ap_and_recall(truth: Lines, found: Lines, name: str, threshold: float) -> tuple[float, float]:
    judged, truths = [], 0
    for token in truth:
        true = [slow_resampled(line.points_m) for line in truth[token] if line.class_name == name]
        truths += len(true)
        taken = set()
        for line in sorted((x for x in found[token] if x.class_name == name), key=lambda x: -x.score):
            distances = [slow_distance(slow_resampled(line.points_m), other) for other in true]
            best = int(np.argmin(distances)) if distances else -1
            right = best >= 0 and distances[best] <= threshold and best not in taken
            taken |= {best} if right else set()
            judged.append((line.score, right))
    right = np.cumsum([hit for _, hit in sorted(judged, key=lambda pair: -pair[0])])
    recall = np.concatenate([[0], right / truths, [1]])
    precision = np.concatenate([[0], right / np.arange(1, len(right) + 1), [0]])
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    return float(np.sum(np.diff(recall) * precision[1:])), float(right[-1] / truths)


def test_scores_of_random_lines_equal_those_of_the_slow_twin() -> None:
    rng = np.random.default_rng(0)
    truth = {f"s{k}": random_lines(rng, 7) for k in range(3)}
    found = {token: disturbed(lines, rng) for token, lines in truth.items()}
    report = evaluate_map_lines(truth, found)
    for score in report.scores:
        ap, recall = slow_ap_and_recall(truth, found, score.class_name, score.threshold_m)
        assert score.ap == pytest.approx(ap, abs=1e-9)
        assert score.recall == pytest.approx(recall, abs=1e-9)
    assert 0.02 < report.mean_ap < 0.98
    assert report.mean_ap == pytest.approx(np.mean([score.ap for score in report.scores]))


def test_the_trees_positions_are_those_of_the_lines_asked_about() -> None:
    rng = np.random.default_rng(1)
    a, b = (np.stack([resampled(line.points_m) for line in random_lines(rng, 6)]) for _ in range(2))
    slow = [[slow_distance(x, y) for y in b] for x in a]
    np.testing.assert_allclose(chamfer_distances_m(a, b), slow)
    assert np.isinf(slow).any() and np.isfinite(slow).any()


def test_lines_are_resampled_at_equal_steps_with_both_ends() -> None:
    points = resampled(np.array([[0, 0], [1, 0], [1, 9.0]]))
    assert points.shape == (100, 2)
    np.testing.assert_allclose(points[[0, -1]], [[0, 0], [1, 9]])
    np.testing.assert_allclose(points, slow_resampled(np.array([[0, 0], [1, 0], [1, 9.0]])), atol=1e-12)


def test_a_parallel_line_counts_from_the_threshold_beyond_its_offset_on() -> None:
    report = evaluate_map_lines({"s": [along_y(0)]}, {"s": [along_y(0.8)]})
    assert by_threshold(report, "ap") == [0, 1, 1]
    assert by_threshold(report, "recall") == [0, 1, 1]
    assert report.mean_recall_at_m == pytest.approx({0.5: 0, 1.0: 1 / 3, 1.5: 1 / 3})
    assert [score.threshold_m for score in report.scores[:3]] == list(THRESHOLDS_M)


def test_the_direction_of_a_line_does_not_matter_and_half_a_line_is_off_by_what_it_lacks() -> None:
    whole, half = resampled(along_y(0).points_m), resampled(along_y(0, to_m=10).points_m)
    assert chamfer_distances_m(whole[None], whole[None, ::-1])[0, 0] == pytest.approx(0, abs=1e-12)
    # The far half of the whole is 5 m away on average, so 2.5 m over all of it; the half lies on the whole.
    assert chamfer_distances_m(whole[None], half[None])[0, 0] == pytest.approx(1.25, abs=0.05)


def test_short_lines_one_behind_the_other_are_not_compared() -> None:
    first, second = resampled(along_y(0, to_m=0.5).points_m), resampled(along_y(0, from_m=1.0, to_m=1.5).points_m)
    between = np.abs(first[:, None, 1] - second[None, :, 1])
    assert (between.min(0).mean() + between.min(1).mean()) / 2 == pytest.approx(0.75)
    assert np.isinf(chamfer_distances_m(first[None], second[None])[0, 0])


def test_a_second_detection_of_a_line_is_wrong_even_where_another_line_is_within_reach() -> None:
    truth = {"s": [along_y(0), along_y(1.2)]}
    report = evaluate_map_lines(truth, {"s": [along_y(0.3, score=0.9), along_y(0.1, score=0.8)]})
    assert by_threshold(report, "ap") == [0.5, 0.5, 0.5]
    assert by_threshold(report, "recall") == [0.5, 0.5, 0.5]
    assert by_threshold(report, "detections") == [2, 2, 2]


def test_scores_rank_detections_over_all_samples() -> None:
    truth = {"a": [along_y(0)], "b": [along_y(0)]}
    # Right at 0.9, wrong at 0.8, right at 0.7: half of the recall at precision 1, half at 2/3.
    found = {"a": [along_y(0, score=0.7), along_y(9, score=0.8)], "b": [along_y(0, score=0.9)]}
    assert by_threshold(evaluate_map_lines(truth, found), "ap") == pytest.approx([5 / 6] * 3)
    assert area_under_curve(np.array([False, True]), 1) == 0.5
    assert area_under_curve(np.array([False, True, True, True]), 4) == pytest.approx(3 / 4 * 3 / 4)


def test_a_class_without_truth_counts_as_zero_officially_and_not_in_the_other_mean() -> None:
    report = evaluate_map_lines({"s": [along_y(0)]}, {"s": [along_y(0), along_y(3, name="boundary")]})
    assert report.class_ap == {"divider": 1, "ped_crossing": 0, "boundary": 0}
    assert (report.mean_ap, report.mean_recall) == pytest.approx((1 / 3, 1 / 3))
    assert (report.mean_ap_with_truth, report.mean_recall_with_truth) == (1, 1)
    empty = evaluate_map_lines({"s": []}, {})
    assert empty.mean_ap == 0 and np.isnan(empty.mean_ap_with_truth) and np.isnan(empty.mean_recall_with_truth)


def test_samples_without_detections_count_and_detections_of_other_samples_do_not() -> None:
    truth = {"a": [along_y(0)], "b": [along_y(0)]}
    report = evaluate_map_lines(truth, {"a": [along_y(0)], "elsewhere": [along_y(0)]})
    assert by_threshold(report, "truths") == [2, 2, 2]
    assert by_threshold(report, "detections") == [1, 1, 1]
    assert by_threshold(report, "recall") == [0.5, 0.5, 0.5]
    assert report.samples == 2


def test_a_detection_of_one_point_is_dropped_and_what_is_no_line_is_refused() -> None:
    point = MapLine(class_name="divider", points_m=np.zeros((1, 2)))
    assert by_threshold(evaluate_map_lines({"s": [along_y(0)]}, {"s": [point]}), "detections") == [0, 0, 0]
    with pytest.raises(InputError, match="two or more"):
        evaluate_map_lines({"s": [point]}, {})
    with pytest.raises(InputError, match="finite"):
        evaluate_map_lines({"s": [along_y(np.nan)]}, {})
    with pytest.raises(InputError, match="'kerb'"):
        evaluate_map_lines({"s": [along_y(0, name="kerb")]}, {})
    with pytest.raises(InputError, match="no samples"):
        evaluate_map_lines({}, {})
