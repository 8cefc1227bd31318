"""VAD's range-limited detection scores, through the devkit on a tiny dataroot; and what tracking needs."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.tracking.data_classes import TrackingConfig, TrackingMetrics

from dwm.errors import InputError
from evaluators.boxes import Boxes, boxes_from
from evaluators.detection import evaluate_detection
from evaluators.submission import write_submission
from evaluators.tracking import evaluate_tracking, tracking_report
from evaluators.vad_detection import VadDetectionReport, evaluate_vad_boxes, evaluate_vad_detection
from tests.evaluators import nuscenes_fake as fake
from tests.evaluators.nuscenes_fake import edit

CAR, PEDESTRIAN, BICYCLE, CONE = 0, 5, 7, 8


def boxes(*places: tuple[float, float], labels: tuple[int, ...] = (), scores: tuple[float, ...] = ()) -> Boxes:
    """Standing boxes in the ego frame, cars unless told otherwise."""
    n = len(places)
    centers = np.column_stack([np.array(places).reshape(-1, 2), np.full(n, 0.8)])
    return boxes_from(
        np.array(labels or (CAR,) * n), centers, np.tile([2.0, 4.0, 1.6], (n, 1)), np.zeros(n), np.zeros((n, 2)),
        scores=np.array(scores or (0.9,) * n), num_pts=np.full(n, 9),
    )  # fmt: skip


def scored(root: Path, truth: Boxes, found: Boxes, yaw_rad: float = 0.0) -> VadDetectionReport:
    """A scene of one key frame."""
    poses = fake.write_dataroot(root, [truth], yaw_rad)
    return evaluate_vad_detection(
        root, fake.VERSION, fake.SPLIT, write_submission(root / "submission.json", {"s0": found}, poses)
    )


def test_perfect_detections_in_range_score_one_and_count_nothing_beyond_it(tmp_path: Path) -> None:
    truth = boxes((10, 0), (-29, 14), (31, 0), (0, 16), (12, 3), labels=(CAR, CAR, CAR, CAR, PEDESTRIAN))
    report = scored(tmp_path, truth, truth)
    assert (report.scores.truth_counts["car"], report.scores.truth_counts["pedestrian"]) == (2, 1)
    assert report.scores.prediction_counts["car"] == 2
    assert report.scores.mean_ap_with_truth == pytest.approx(1)
    assert report.scores.mean_ap == pytest.approx(0.2)
    assert report.truths_out_of_reach == 0
    path = tmp_path / "submission.json"
    official = evaluate_detection(tmp_path, fake.VERSION, fake.SPLIT, path, tmp_path / "official")
    assert official.truth_counts["car"] == 4


def test_the_report_does_not_pass_for_nuscenes_scores(tmp_path: Path) -> None:
    report = scored(tmp_path, boxes((10, 0)), boxes((10, 0)))
    assert report.scores.config == "vad_nusc_detection_cvpr_2019"
    assert "Not comparable" in (sys.modules[evaluate_vad_detection.__module__].__doc__ or "")


def test_the_second_rectangle_does_not_turn_with_the_ego(tmp_path: Path) -> None:
    # The ego heads along global y: 20 m ahead leaves the global rectangle, 20 m to the left stays inside it.
    truth = boxes((10, 0), (20, 0), (5, 20))
    report = scored(tmp_path, truth, truth, yaw_rad=np.pi / 2)
    assert (report.scores.truth_counts["car"], report.scores.prediction_counts["car"]) == (2, 1)
    assert report.truths_out_of_reach == 1
    # Half the truth found: precision 1 at the devkit's recall points 0.11 to 0.50, of 0.11 to 1.
    assert report.scores.class_ap["car"] == pytest.approx(40 / 90)


def test_detections_need_a_score_of_a_fifth(tmp_path: Path) -> None:
    report = scored(tmp_path, boxes((10, 0), (-10, 0)), boxes((10, 0), (-10, 0), scores=(0.2, 0.19)))
    assert (report.scores.prediction_counts["car"], report.detections_below_score) == (1, 1)


def test_shifted_detections_count_from_the_distance_threshold_on(tmp_path: Path) -> None:
    report = scored(tmp_path, boxes((10, 0)), boxes((13, 0)))
    assert report.scores.class_distance_ap["car"] == {"0.5": 0, "1.0": 0, "2.0": 0, "4.0": pytest.approx(1)}
    assert report.scores.mean_ap_with_truth == pytest.approx(0.25)


def test_duplicated_detections_are_false_alarms(tmp_path: Path) -> None:
    report = scored(tmp_path, boxes((10, 0), (-10, 0)), boxes((10, 0), (10, 0), (-10, 0), scores=(0.9, 0.8, 0.7)))
    assert report.scores.prediction_counts["car"] == 3
    # Precision 1 up to recall 0.5 and from there linear to 2/3: at 50 recall points by the devkit's interpolation.
    recalls = np.linspace(0, 1, 101)[11:]
    precision = np.interp(recalls, [0.5, 0.5, 1.0], [1.0, 0.5, 2 / 3])
    assert report.scores.class_ap["car"] == pytest.approx(np.clip(precision - 0.1, 0, None).mean() / 0.9)
    assert report.scores.class_ap["car"] < 0.85


def test_an_empty_submission_scores_zero_and_an_empty_world_is_unknown(tmp_path: Path) -> None:
    report = scored(tmp_path / "a", boxes((10, 0)), Boxes.empty())
    assert (report.scores.mean_ap, report.scores.nds, report.detections_below_score) == (0, 0, 0)
    far = scored(tmp_path / "b", boxes((40, 0)), Boxes.empty())
    assert np.isnan(far.scores.mean_ap_with_truth)


def test_boxes_without_points_do_not_count(tmp_path: Path) -> None:
    truth = dataclasses.replace(boxes((10, 0), (-10, 0)), num_pts=np.array([3, 0]))
    assert scored(tmp_path, truth, truth).scores.truth_counts["car"] == 1


def test_the_range_is_the_same_for_every_class(tmp_path: Path) -> None:
    cone = boxes((29, 14), labels=(CONE,))
    report = scored(tmp_path, cone, cone)
    assert (report.scores.truth_counts["traffic_cone"], report.scores.class_ap["traffic_cone"]) == (1, pytest.approx(1))
    memory = evaluate_vad_boxes({"s0": cone}, {"s0": cone}, {"s0": np.eye(4)})
    assert (memory.scores.truth_counts["traffic_cone"], memory.scores.class_ap["traffic_cone"]) == (1, pytest.approx(1))
    official = evaluate_detection(tmp_path, fake.VERSION, fake.SPLIT, tmp_path / "submission.json", tmp_path / "out")
    assert official.truth_counts["traffic_cone"] == 0


def test_boxes_that_only_the_radar_met_count(tmp_path: Path) -> None:
    truth = dataclasses.replace(boxes((10, 0), (-10, 0), (5, 5)), num_pts=np.array([3, 0, 0]))
    poses = fake.write_dataroot(tmp_path, [truth], 0.0)
    edit(tmp_path, "sample_annotation", lambda rows: rows[1].update(num_radar_pts=2))
    submission = write_submission(tmp_path / "submission.json", {"s0": truth}, poses)
    assert evaluate_vad_detection(tmp_path, fake.VERSION, fake.SPLIT, submission).scores.truth_counts["car"] == 2
    assert evaluate_detection(tmp_path, fake.VERSION, fake.SPLIT, submission, tmp_path / "out").truth_counts["car"] == 2


def test_cycles_in_racks_do_not_count(tmp_path: Path) -> None:
    truth = boxes((10, 0), (-10, 0), labels=(BICYCLE, BICYCLE))
    poses = fake.write_dataroot(tmp_path, [truth], 0.0)
    append = {
        "category": {"token": "rack", "name": "static_object.bicycle_rack", "description": ""},
        "instance": {"token": "i-rack", "category_token": "rack", "nbr_annotations": 1},
        "sample_annotation": {"token": "a-rack", "instance_token": "i-rack", "size": [6.0, 6.0, 6.0]},
    }
    for table, row in append.items():
        path = tmp_path / fake.VERSION / f"{table}.json"
        rows = json.loads(path.read_text())
        path.write_text(json.dumps([*rows, {**rows[0], **row}]))
    submission = write_submission(tmp_path / "submission.json", {"s0": truth}, poses)
    report = evaluate_vad_detection(tmp_path, fake.VERSION, fake.SPLIT, submission)
    official = evaluate_detection(tmp_path, fake.VERSION, fake.SPLIT, submission, tmp_path / "out")
    for scores in (report.scores, official):
        assert (scores.truth_counts["bicycle"], scores.prediction_counts["bicycle"]) == (1, 1)


@pytest.mark.parametrize("yaw_rad", [0.0, 0.7, 2.0])
def test_in_memory_and_through_files_the_scores_are_the_same(tmp_path: Path, yaw_rad: float) -> None:
    rng = np.random.default_rng(4)
    places = [tuple(place) for place in rng.uniform([-35, -20], [35, 20], (24, 2))]
    labels = tuple(int(k) for k in rng.integers(0, 10, 24))
    truth = dataclasses.replace(boxes(*places, labels=labels), num_pts=rng.integers(0, 4, 24))
    found = dataclasses.replace(
        boxes(*places, labels=labels, scores=tuple(rng.uniform(0.05, 1, 24))),
        centers_m=truth.centers_m + rng.normal(size=(24, 3)) * [0.8, 0.8, 0.1],
    )
    poses = fake.write_dataroot(tmp_path, [truth], yaw_rad)
    path = write_submission(tmp_path / "submission.json", {"s0": found}, poses)
    official = evaluate_vad_detection(tmp_path, fake.VERSION, fake.SPLIT, path)
    own = evaluate_vad_boxes({"s0": truth}, {"s0": found}, poses)
    assert own.truths_out_of_reach == official.truths_out_of_reach
    assert own.detections_below_score == official.detections_below_score
    assert own.scores.truth_counts == official.scores.truth_counts
    assert own.scores.prediction_counts == official.scores.prediction_counts
    assert own.scores.mean_ap == pytest.approx(official.scores.mean_ap, abs=1e-9)


def test_missing_and_incomplete_submissions_are_refused(tmp_path: Path) -> None:
    poses = fake.write_dataroot(tmp_path, [boxes((10, 0)), boxes((8, 0))])
    with pytest.raises(InputError, match="no such submission"):
        evaluate_vad_detection(tmp_path, fake.VERSION, fake.SPLIT, tmp_path / "none.json")
    half = write_submission(tmp_path / "half.json", {"s0": boxes((10, 0))}, poses)
    with pytest.raises(InputError, match="every sample"):
        evaluate_vad_detection(tmp_path, fake.VERSION, fake.SPLIT, half)


@pytest.mark.parametrize("missing", ["pandas", "motmetrics"])
def test_tracking_without_its_packages_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for package in ("pandas", "motmetrics"):
        monkeypatch.setitem(sys.modules, package, None if package == missing else ModuleType(package))
    with pytest.raises(InputError, match=rf"{missing}: cannot be imported .*roadreel\[tracking\]"):
        evaluate_tracking(tmp_path, "v1.0-mini", "val", tmp_path / "tracks.json", tmp_path)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_a_tracking_report_is_what_the_devkit_sums_up() -> None:
    config = config_factory("tracking_nips_2019")
    assert isinstance(config, TrackingConfig)
    metrics = TrackingMetrics(config)
    for name, amota, switches in (("car", 0.6, 3), ("bus", 0.2, 1)):
        metrics.add_label_metric("amota", name, amota)
        metrics.add_label_metric("ids", name, switches)
    report = tracking_report(metrics.serialize())
    assert (report.amota, report.id_switches) == (pytest.approx(0.4), 4)
    assert report.class_metrics["car"]["amota"] == 0.6
    assert np.isnan(report.class_metrics["truck"]["amota"]) and len(report.class_metrics) == 7
