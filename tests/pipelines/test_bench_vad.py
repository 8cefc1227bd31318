"""The bench of VAD on held-out scenes: all families, and two detectors under one protocol."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dwm.models.weights import save_model
from dwm.scenes.nuscenes import read_scene
from evaluators.clip_detection import ClipMatchConfig
from evaluators.vad.logged import logged_stretch
from evaluators.vad.model import VAD
from evaluators.vad.score import JudgedFrame, judge_stretch
from pipelines.bench.vad import _as_judges, _detections, bench_vad
from tests.evaluators.vad.vad_factories import TINY
from tests.pipelines.tiny_models import VERSION

DETECTOR = Path("weights/proving_ground_detector.safetensors")


def cells(table: str, row: str) -> list[str]:
    return next([c.strip() for c in line.split("|")[2:-1]] for line in table.splitlines() if line.startswith(f"| {row} |"))


@pytest.fixture(scope="module")
def judged(pg_dataroot: Path) -> list[JudgedFrame]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VAD(replace(TINY, steps=6)).eval()
    return judge_stretch(model, logged_stretch(read_scene(pg_dataroot, VERSION, "scene-0001")))


def test_true_boxes_of_low_score_count_once_scores_do_not(judged: list[JudgedFrame]):
    def told(score: float) -> list[JudgedFrame]:
        return [replace(f, found=replace(f.truth, scores=np.full(len(f.truth), score))) for f in judged]

    table = _detections({"faint": [told(0.1)], "sure": [told(0.9)]})
    present = [cells(table, name) for name in ("car", "pedestrian", "traffic_cone")]
    assert any(int(row[0]) > 0 for row in present)
    for boxes, faint, faint_all, sure, sure_all in present:
        if int(boxes):
            assert float(faint) == 0.0 and faint_all == sure == sure_all and float(sure) > 0.9
    mean = cells(table, "**mAP**")[1:]
    assert float(mean[0]) == 0.0 and mean[1] == mean[2] == mean[3]


def test_as_judges_both_are_held_to_the_same_labels_each_at_its_best_score(judged: list[JudgedFrame]):
    def told(scores: float, lost: int) -> list[JudgedFrame]:
        """True boxes but the last few of each frame."""
        kept = [f.truth.select(np.arange(max(len(f.truth) - lost, 0))) for f in judged]
        return [replace(f, found=replace(k, scores=np.full(len(k), scores))) for f, k in zip(judged, kept, strict=True)]

    table = _as_judges({"all": [told(0.4, 0)], "some": [told(0.8, 2)]}, (30.0, 15.0))
    config = ClipMatchConfig(reach_m=(30.0, 15.0))
    labels = sum(int(config.counts(frame.truth).sum()) for frame in judged)
    assert labels > 0 and cells(table, "all") == ["0.400", str(labels), "1.00", "1.00", "1.00", "0.00"]
    score, count, found, right, _, invented = cells(table, "some")
    assert (score, count, right, invented) == ("0.800", str(labels), "1.00", "0.00") and float(found) < 1


def test_the_bench_reads_a_world_and_prints_every_family(pg_dataroot: Path, tmp_path: Path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(VAD(replace(TINY, steps=6)), tmp_path / "vad.safetensors", {})
    table = bench_vad(pg_dataroot, VERSION, "pg_all", tmp_path / "vad.safetensors", "", DETECTOR)
    for head in ("mAP_Line", "heading-aware", "forecasts of", "VAD, all scores", "detector, from 0.2"):
        assert head in table
    assert len(cells(table, "truck")) == 5
