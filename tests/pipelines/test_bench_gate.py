"""Gate bench: tables by hand, and every fault through the real scores of a small world."""

from __future__ import annotations

from pathlib import Path

import pytest

from dwm.models.weights import save_model
from evaluators.corruptions import IN_PICTURES, IN_WHAT_IS_FILMED
from evaluators.ego_motion.network import EgoMotion, EgoMotionConfig
from evaluators.gate import GATED, GateConfig, Reason, Verdict, judge
from pipelines.bench import gate
from pipelines.bench.gate import EXPECTED, TRUTH, Tried, bench_gate, gated_value, metric_table, verdict_table
from tests.pipelines.tiny_models import VERSION, write_models


def tried(kind: str, *reasons: str, **metrics: float) -> Tried:
    found = tuple(Reason(metric=m, value=0.0, limit=1.0, sentence="") for m in reasons)
    return Tried(kind=kind, metrics=metrics, verdict=Verdict(keep=not reasons, reasons=found))


def test_every_fault_has_a_reason_that_the_gate_knows():
    assert set(EXPECTED) == {*IN_PICTURES, *IN_WHAT_IS_FILMED}
    assert {metric for metrics in EXPECTED.values() for metric in metrics} <= set(GATED)


def test_rightly_is_kept_if_true_and_rejected_for_what_was_planted():
    clips = [
        tried(TRUTH), tried(TRUTH), tried(TRUTH, "flicker.mean"), tried("noise", "flicker.mean"),
        tried("noise", "cross_view.worst_pair"), tried("noise"), tried("noise", "ego_motion.agreed_ade_m", "sharpness.ratio_last"),
    ]  # fmt: skip
    assert [clip.rightly for clip in clips] == [True, True, False, True, False, False, True]
    unmeasured = judge({}, GateConfig(max_path_error_m=1.0, min_cross_view=0.5, max_unlabelled=0.3))
    assert not any(Tried(kind=kind, metrics={}, verdict=unmeasured).rightly for kind in EXPECTED)
    lines = verdict_table(clips)
    assert lines[3] == "| true video | 3 | 67% | 33% | 67% | flicker.mean 33% |"
    assert lines[4].startswith("| noise | 4 | 25% | 75% | 50% | ")


def test_ratios_and_differences_are_those_of_the_gate():
    metrics = {"detection.materialised": 0.3, "detection.reference_materialised": 0.6, "detection.unlabelled": 1.5,
               "detection.reference_unlabelled": 1.0, "flicker.mean": 0.9}  # fmt: skip
    assert gated_value(metrics, "detection.materialised") == pytest.approx(0.5)
    assert gated_value(metrics, "detection.unlabelled") == pytest.approx(0.5)
    assert gated_value(metrics, "flicker.mean") == 0.9
    rows = metric_table([Tried(kind=TRUTH, metrics=metrics, verdict=Verdict(keep=True, reasons=()))])
    assert any(row.startswith("| flicker.mean | 0.90, 0.90, 0.90 |") for row in rows)


def test_all_faults_of_a_small_world_are_told_by_what_needs_no_training(pg_dataroot: Path, tmp_path: Path, monkeypatch):
    models = write_models(tmp_path)
    save_model(EgoMotion(EgoMotionConfig()), tmp_path / "ego.safetensors", {})
    off = dict(min_relative_recall=None, min_sharpness_ratio=None, min_reconstruction_db=None)
    monkeypatch.setattr(gate, "GateConfig", lambda: GateConfig(min_cross_view=0.5, **off))
    files = [models / f"{name}.safetensors" for name in ("codec", "world")]
    things = Path("weights/proving_ground_things.safetensors")
    table = bench_gate(
        pg_dataroot, VERSION, *files, things, models / "detector.safetensors", tmp_path / "ego.safetensors", 1, 2.0
    )
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in table.splitlines()
        if "|" in line
    }
    assert rows[TRUTH][1:4] == ["100%", "0%", "100%"]
    assert rows["frozen video"][3] == "100%" and "motion.frozen_fraction" in rows["frozen video"][4]
    assert rows["noise"][3] == rows["swapped cameras"][3] == "100%"
    assert int(rows["wrong path"][0]) == int(rows[TRUTH][0]) - 1, "as driven there is no wrong path"
