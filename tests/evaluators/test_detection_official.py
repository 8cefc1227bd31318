"""Official scores, from a dataroot and from boxes in memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from dwm.errors import InputError
from evaluators.boxes import ALLOWED_ATTRIBUTES, Boxes, boxes_from
from evaluators.detection import DetectionReport, evaluate_boxes_in_memory, evaluate_detection
from evaluators.splits import scenes_of_split
from evaluators.submission import read_submission, write_submission
from tests.evaluators import nuscenes_fake as fake

World = tuple[Path, dict[str, Boxes], dict[str, np.ndarray]]


def truth_boxes() -> list[Boxes]:
    """Two samples half a second apart: every class but trailers, some beyond range, some without LiDAR points."""
    rng = np.random.default_rng(4)
    labels = np.array([0, 0, 0, 1, 2, 4, 5, 5, 5, 6, 7, 8, 9, 9, 0, 5])
    n = len(labels)
    centers = np.concatenate([rng.uniform(-28, 28, (n, 2)), rng.uniform(0, 1, (n, 1))], axis=1)
    centers[14, :2], centers[15, :2] = (60, 0), (38, 18)
    attributes = np.where(ALLOWED_ATTRIBUTES[labels].any(1), ALLOWED_ATTRIBUTES[labels].argmax(1), -1)
    points = rng.integers(1, 50, n)
    points[2] = 0
    first = boxes_from(
        labels, centers, rng.uniform(0.5, 4, (n, 3)), rng.uniform(-3, 3, n), np.zeros((n, 2)), attributes, num_pts=points
    )
    turn = np.array([[np.cos(0.7), np.sin(0.7)], [-np.sin(0.7), np.cos(0.7)]])
    ego_step = turn @ np.array([2.0, 0.0])  # the ego drives 2 m along global x between samples
    second = dataclasses.replace(first, centers_m=first.centers_m - [*ego_step, 0] + [0.8, 0.1, 0])
    velocity = np.tile((second.centers_m - first.centers_m)[0, :2] + ego_step, (n, 1)) / 0.5
    return [dataclasses.replace(b, velocities_mps=velocity) for b in (first, second)]


def noisy(boxes: Boxes, seed: int) -> Boxes:
    """Some boxes lost, the others displaced, and a few invented."""
    rng = np.random.default_rng(seed)
    kept = boxes.select(rng.random(len(boxes)) < 0.8)
    n = len(kept)
    moved = dataclasses.replace(
        kept, centers_m=kept.centers_m + rng.normal(0, 0.7, (n, 3)), yaws_rad=kept.yaws_rad + rng.normal(0, 0.3, n),
        sizes_wlh_m=kept.sizes_wlh_m * rng.uniform(0.8, 1.2, (n, 3)),
        velocities_mps=kept.velocities_mps + rng.normal(0, 1, (n, 2)),
        scores=rng.uniform(0.1, 1, n), num_pts=np.full(n, -1),
    )  # fmt: skip
    centers = rng.uniform(-20, 20, (3, 3))
    invented = boxes_from(np.array([0, 5, 3]), centers, np.ones((3, 3)), np.zeros(3), np.zeros((3, 2)), scores=rng.random(3))
    return Boxes(**{k: np.concatenate([getattr(moved, k), getattr(invented, k)]) for k in Boxes.__dataclass_fields__})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("nuscenes")
    frames = truth_boxes()
    poses = fake.write_dataroot(root, frames)
    return root, {f"s{k}": boxes for k, boxes in enumerate(frames)}, poses


def official(world: World, predictions: dict[str, Boxes], out: Path) -> DetectionReport:
    root, _, poses = world
    path = write_submission(out / "submission.json", predictions, poses)
    return evaluate_detection(root, fake.VERSION, fake.SPLIT, path, out)


def test_in_memory_scores_equal_the_devkit_on_the_same_content(world: World, tmp_path: Path) -> None:
    _, truth, _ = world
    predictions = {token: noisy(boxes, seed) for seed, (token, boxes) in enumerate(truth.items())}
    files, memory = official(world, predictions, tmp_path), evaluate_boxes_in_memory(truth, predictions)
    assert 0.05 < files.mean_ap < 0.9
    assert files.truth_counts == memory.truth_counts
    assert files.prediction_counts == memory.prediction_counts
    for a, b in (
        (files.metrics(), memory.metrics()),
        *zip(files.class_tp_errors.values(), memory.class_tp_errors.values(), strict=True),
    ):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(list(a.values()), list(b.values()), atol=1e-9)
    summary = json.loads((tmp_path / "metrics_summary.json").read_text())
    assert summary["mean_ap"] == pytest.approx(memory.mean_ap)


def test_perfect_predictions_score_one_only_over_classes_with_truth(world: World, tmp_path: Path) -> None:
    _, truth, _ = world
    report = official(world, {token: boxes.select(boxes.num_pts > 0) for token, boxes in truth.items()}, tmp_path)
    assert report.truth_counts["trailer"] == 0
    assert report.mean_ap == pytest.approx(0.9)
    assert report.mean_ap_with_truth == pytest.approx(1.0)
    assert report.nds_with_truth == pytest.approx(1.0, abs=1e-6)
    assert "detection.ap.trailer" not in report.metrics()


def test_boxes_without_points_and_beyond_range_do_not_take_part() -> None:
    frames = truth_boxes()
    report = evaluate_boxes_in_memory({"s0": frames[0]}, {})
    assert report.truth_counts["car"] == 2
    assert report.truth_counts["pedestrian"] == 3
    assert report.mean_ap_with_truth == 0


def test_a_submission_without_any_box_scores_zero_instead_of_failing(world: World, tmp_path: Path) -> None:
    _, truth, _ = world
    report = official(world, {token: Boxes.empty() for token in truth}, tmp_path)
    assert report.mean_ap == 0
    assert report.nds == 0
    assert sum(report.prediction_counts.values()) == 0


def test_a_submission_comes_back_as_it_was_written(world: World, tmp_path: Path) -> None:
    _, truth, poses = world
    predictions = {token: noisy(boxes, 3) for token, boxes in truth.items()}
    back = read_submission(write_submission(tmp_path / "s.json", predictions, poses), poses)
    for token, boxes in predictions.items():
        order = np.argsort(-boxes.scores, kind="stable")
        np.testing.assert_allclose(back[token].centers_m, boxes.centers_m[order], atol=1e-6)
        np.testing.assert_allclose(back[token].velocities_mps, boxes.velocities_mps[order], atol=1e-6)
        np.testing.assert_allclose(np.cos(back[token].yaws_rad - boxes.yaws_rad[order]), 1, atol=1e-9)
        np.testing.assert_array_equal(back[token].attributes, boxes.attributes[order])


def test_a_submission_keeps_the_best_500_boxes_in_plain_types(tmp_path: Path) -> None:
    n = 620
    scores = np.random.default_rng(0).random(n).astype(np.float32)
    boxes = boxes_from(np.zeros(n, np.int64), np.zeros((n, 3)), np.ones((n, 3)), np.zeros(n), scores=scores)
    path = write_submission(tmp_path / "s.json", {"t": boxes}, {"t": np.eye(4)})
    rows = json.loads(path.read_text())["results"]["t"]
    assert len(rows) == 500
    assert min(r["detection_score"] for r in rows) == pytest.approx(np.sort(scores)[n - 500])
    assert rows[0]["velocity"] == [0.0, 0.0]


def test_broken_predictions_and_incomplete_submissions_are_refused(world: World, tmp_path: Path) -> None:
    root, truth, poses = world
    bad = dataclasses.replace(truth["s0"], centers_m=truth["s0"].centers_m * np.nan)
    with pytest.raises(InputError, match="s0"):
        write_submission(tmp_path / "bad.json", {"s0": bad}, poses)
    path = write_submission(tmp_path / "half.json", {"s0": truth["s0"]}, poses)
    with pytest.raises(InputError, match="every sample"):
        evaluate_detection(root, fake.VERSION, fake.SPLIT, path, tmp_path / "out")


def test_unknown_splits_are_named_with_those_present(world: World) -> None:
    root, _, _ = world
    assert scenes_of_split(root, fake.VERSION, fake.SPLIT) == ["scene-0001"]
    with pytest.raises(InputError, match="tiny_val"):
        scenes_of_split(root, fake.VERSION, "nope")
    with pytest.raises(InputError, match="no scene of split 'mini_val'"):
        scenes_of_split(root, fake.VERSION, "mini_val")
