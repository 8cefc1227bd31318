"""Layout bench: counts and ratios in closed form, and what an oracle and a blank screen score in a real world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dwm.errors import InputError
from dwm.models.dit import IMAGE_HW
from dwm.scenario.types import Scenario
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.proving_ground.counterfactual import open_counterfactual
from dwm.scenes.types import DETECTION_CLASSES
from evaluators.boxes import Boxes, boxes_from
from evaluators.clip_detection import ClipMatchConfig
from pipelines.bench import layout
from pipelines.bench.layout import bench_layout, group_counts, recall_of, stretches_within
from pipelines.bench.rollouts import Made, Moment, true_frames
from tests.pipelines.tiny_models import VERSION, write_models

CAR, PEDESTRIAN, TRUCK = (DETECTION_CLASSES.index(name) for name in ("car", "pedestrian", "truck"))
DETECTOR = Path(__file__).resolve().parents[2] / "weights" / "proving_ground_detector.safetensors"


def boxes(*rows: tuple[int, float, float, float]) -> Boxes:
    """Boxes of (class, x, y, score)."""
    labels = np.array([r[0] for r in rows], np.int64)
    centers = np.array([[r[1], r[2], 1.0] for r in rows]).reshape(-1, 3)
    return boxes_from(labels, centers, np.full((len(rows), 3), 2.0), np.zeros(len(rows)), scores=np.array([r[3] for r in rows]))


def test_boxes_count_within_range_in_their_own_class_and_from_the_operating_score_on() -> None:
    labels = boxes((CAR, 10, 0, 1), (CAR, 20, 5, 1), (CAR, 35, 0, 1), (PEDESTRIAN, 5, -5, 1))
    made = boxes((CAR, 10.5, 0, 0.9), (CAR, 20, 5, 0.2), (CAR, 35, 0, 0.9), (TRUCK, 20, 5, 0.9), (PEDESTRIAN, 5, -2.9, 0.9))
    seen = boxes((CAR, 10, 0, 0.5), (CAR, 20, 6.9, 0.5), (PEDESTRIAN, 5, -5, 0.4))
    counts = group_counts([labels, labels], [made, made], [seen, Boxes.empty()], ClipMatchConfig(min_score=0.3))
    np.testing.assert_array_equal(counts, [[2, 2, 4], [2, 3, 6]])


def test_frames_without_boxes_count_nothing() -> None:
    counts = group_counts([Boxes.empty()], [boxes((CAR, 1, 1, 1.0))], [Boxes.empty()], ClipMatchConfig())
    np.testing.assert_array_equal(counts, 0)


def test_the_ratio_is_that_of_all_boxes_together_and_its_interval_over_moments() -> None:
    counts = np.array([[8, 10, 20], [1, 2, 4]] * 10)
    row = recall_of(counts, np.random.default_rng(0))
    assert (row.generated, row.true, row.boxes, row.ratio) == (90 / 240, 120 / 240, 240, 0.75)
    assert 0.5 < row.low < 0.75 < row.high < 0.8
    alike = recall_of(np.array([[6, 8, 9]] * 5), np.random.default_rng(0))
    assert (alike.low, alike.high) == (0.75, 0.75)
    assert recall_of(np.array([[0, 0, 0], [6, 8, 9], [0, 0, 0]]), np.random.default_rng(0)) == recall_of(
        np.array([[6, 8, 9]]), np.random.default_rng(0)
    )


def test_a_detector_that_finds_nothing_in_truth_gives_no_ratio() -> None:
    assert np.isnan(recall_of(np.array([[0, 0, 5], [1, 0, 5]]), np.random.default_rng(0)).ratio)


def test_a_stretch_is_scored_when_the_clip_holds_all_of_it() -> None:
    assert [stretches_within(s) for s in (2.9, 3.0, 10.5, 59.9, 60.0)] == [[], [0], [0, 1], [0, 1], [0, 1, 2]]


def test_clips_too_short_to_score_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 s; give 3 or more"):
        bench_layout(tmp_path, VERSION, tmp_path, tmp_path, tmp_path, tmp_path, 1, 2.0, 2.0, 1)


@pytest.fixture
def table(pg_dataroot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the bench on a second of a tiny world, with a stand-in for the roll-out."""
    scene = read_scene(pg_dataroot, VERSION, "scene-0001")
    truth = open_counterfactual(scene)
    assert truth is not None
    moment = Moment(scene=scene, start_s=0.0, truth=truth)
    models = write_models(tmp_path)
    rendered: dict[tuple[str, int], np.ndarray] = {}

    def film(_: Moment, scenario: Scenario, frames, image_hw=IMAGE_HW) -> np.ndarray:
        for f in frames:
            if (scenario.perturbation.name, f) not in rendered:
                rendered[scenario.perturbation.name, f] = true_frames(moment, scenario, [f], image_hw)[0]
        return np.stack([rendered[scenario.perturbation.name, f] for f in frames])

    monkeypatch.setattr(layout, "true_frames", film)
    monkeypatch.setattr(layout, "STRETCHES_S", ((0.25, 0.75), (0.9, 1.0)))
    monkeypatch.setattr(layout, "starting_moments", lambda *_: [moment])

    def run(stand_in, contrast_s: float) -> str:
        def generate(world, conditioner, config, frames):
            images = stand_in(film(moment, conditioner.scenario, frames), config)
            return Made(images=images, seconds=2.0 * max(frames), frames=max(frames))

        monkeypatch.setattr(layout, "generate", generate)
        return bench_layout(
            pg_dataroot,
            VERSION,
            models / "codec.safetensors",
            models / "world.safetensors",
            None,
            DETECTOR,
            1,
            1.0,
            contrast_s,
            1,
        )  # type: ignore[arg-type]

    return run


def rows_of(text: str, mode: str) -> list[list[str]]:
    part = text.split(f"**{mode}**")[1].split("**")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if "% |" in line]


def test_true_frames_reach_the_truth_and_blank_ones_find_nothing(table) -> None:
    text = table(lambda images, config: images if config.layout else np.zeros_like(images), 0.75)
    oracle, blank = rows_of(text, "layout, appearance and memory"), rows_of(text, "none of them")
    assert {row[0] for row in oracle} == {"0.25-0.75 s", "0.9-1 s"} and {row[0] for row in blank} == {"0.25-0.75 s"}
    found = [row for row in oracle if row[4] != "0%"]
    assert found and all(row[3] == row[4] and row[5] == "1.00" for row in found)
    assert all(row[3] == "0%" for row in blank)
    assert "(2.00 s a frame)" in text and "2 clips of 1 starting moments" in text
