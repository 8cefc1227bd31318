"""Which conditioned boxes materialised."""

from __future__ import annotations

import numpy as np
import pytest

from evaluators.boxes import Boxes, boxes_from
from evaluators.clip_detection import ClipMatchConfig, score_clip_detections, unlabelled_detections
from evaluators.operating_point import operating_score


def boxes(labels: list[int], xy: list[tuple[float, float]], scores: list[float] | None = None) -> Boxes:
    n = len(labels)
    centers = np.array([[x, y, 0.8] for x, y in xy]).reshape(n, 3)
    return boxes_from(
        np.array(labels, np.int64), centers, np.ones((n, 3)), np.zeros(n), scores=None if scores is None else np.array(scores)
    )


def test_support_is_the_score_of_the_detection_matched_greedily_by_score() -> None:
    truth = boxes([0, 0, 5], [(10, 0), (13, 0), (5, 5)])
    found = boxes([0, 0, 0], [(11.4, 0), (11.6, 0), (30, 30)], [0.9, 0.6, 0.8])
    score = score_clip_detections([truth], [found])
    # The better detection takes the nearer car at 10 m (1.4 m away); the other is left with the car at 13 m.
    np.testing.assert_allclose(score.support[0], [0.9, 0.6, 0.0])
    assert score.materialised == pytest.approx(2 / 3)


def test_a_truck_detected_as_car_supports_the_box_but_is_no_recall() -> None:
    score = score_clip_detections([boxes([1], [(8, 2)])], [boxes([0], [(8, 2)], [0.7])])
    np.testing.assert_allclose(score.support[0], [0.7])
    assert score.materialised == 1
    assert score.classes["truck"].recall == 0
    assert score.classes["car"].precision == 0
    assert np.isnan(score.classes["car"].recall)


def test_a_pedestrian_does_not_support_a_car() -> None:
    score = score_clip_detections([boxes([0], [(8, 2)])], [boxes([5], [(8, 2)], [0.7])])
    np.testing.assert_allclose(score.support[0], [0.0])


def test_recall_precision_and_ap_have_their_closed_forms() -> None:
    truth = [boxes([0, 0, 5], [(10, 0), (-10, 0), (4, 4)]), boxes([0], [(6, 6)])]
    found = [
        boxes([0, 0, 5], [(10.5, 0), (20, 20), (4, 4)], [0.8, 0.5, 0.1]),
        boxes([0], [(6, 6.5)], [0.9]),
    ]
    score = score_clip_detections(truth, found)
    assert score.classes["car"].recall == pytest.approx(2 / 3)
    assert score.classes["car"].precision == pytest.approx(2 / 3)
    # The pedestrian is found, but with less than min_score: AP counts it, recall does not.
    assert score.classes["pedestrian"].recall == 0
    assert score.classes["pedestrian"].ap == pytest.approx(1.0)
    assert score.total.recall == pytest.approx(2 / 4)
    np.testing.assert_allclose(score.recall_by_frame, [1 / 3, 1])
    # Precision 1 up to recall 2/3, none beyond: recalls .11 to .66 of the 90 bins above .10.
    assert score.classes["car"].ap == pytest.approx(56 / 90)


def test_the_match_radius_and_the_range_are_limits() -> None:
    config = ClipMatchConfig(match_m=2.0, max_range_m=30)
    truth, far = boxes([0], [(20, 0)]), boxes([0], [(31, 0)])
    assert score_clip_detections([truth], [boxes([0], [(21.9, 0)], [0.5])], config).materialised == 1
    assert score_clip_detections([truth], [boxes([0], [(22.1, 0)], [0.5])], config).materialised == 0
    beyond = score_clip_detections([far], [boxes([0], [(31, 0)], [0.5])], config)
    assert beyond.metrics()["detection.boxes_in_range"] == 0
    assert np.isnan(beyond.materialised)
    np.testing.assert_allclose(beyond.support[0], [0.5])


def test_clips_without_boxes_or_detections_have_no_recall_and_no_precision() -> None:
    score = score_clip_detections([Boxes.empty()], [Boxes.empty()])
    assert np.isnan([score.total.recall, score.total.precision, score.total.ap, score.materialised]).all()


def test_the_operating_score_is_where_f1_peaks() -> None:
    truth = [boxes([0, 0], [(10, 0), (-10, 0)]), boxes([5], [(4, 4)])]
    found = [boxes([0, 0, 0], [(10, 0), (20, 20), (-10, 0)], [0.8, 0.3, 0.2]), boxes([5, 5], [(4, 4), (9, 9)], [0.6, 0.1])]
    # F1 from 0.8 on: 2 / (3 + 1); from 0.6 on: 4 / (3 + 2); from 0.2 on: 6 / (3 + 4), the highest.
    assert operating_score(truth, found) == pytest.approx(0.2)
    noisy = [boxes([0] * 9, [(10, 0), (-10, 0), *[(20, y) for y in range(7)]], [0.8, 0.2, *[0.3] * 7]), found[1]]
    assert operating_score(truth, noisy) == pytest.approx(0.6)


def test_the_operating_score_leaves_out_what_is_far_and_is_nan_when_nothing_is_found() -> None:
    truth = [boxes([0, 0], [(10, 0), (50, 0)])]
    found = [boxes([0, 0], [(10, 0), (50, 0)], [0.7, 0.4])]
    assert operating_score(truth, found) == pytest.approx(0.7)
    assert np.isnan(operating_score(truth, [boxes([5], [(10, 0)], [0.9])]))


def test_a_detection_that_no_label_explains_is_unlabelled_whatever_is_hidden() -> None:
    everyone = [boxes([0, 5], [(8, 2), (12, 0)]), Boxes.empty()]
    found = [
        boxes([5, 0, 0, 0], [(8.5, 2), (12, 0), (20, 0), (40, 0)], [0.9, 0.9, 0.9, 0.9]),
        boxes([0, 0], [(5, 0), (6, 0)], [0.9, 0.1]),
    ]
    assert unlabelled_detections(found, everyone, ClipMatchConfig()).tolist() == [1.0, 1.0]
    assert unlabelled_detections([Boxes.empty()], [everyone[0]], ClipMatchConfig()).tolist() == [0.0]
