"""The bench of what scoring costs: every metric is there, scaled to a minute, and the shares are of making the clip."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluators.vad.score import VadScores
from pipelines.bench import scoring_cost
from pipelines.bench.scoring_cost import MAKING, _table, bench_scoring_cost
from tests.pipelines.tiny_models import VERSION, write_models


def test_shares_are_of_what_making_costs_and_the_sum_is_by_clip():
    table = _table({MAKING: [100.0, 300.0], "a": [10.0, 20.0], "b": [1.0, 9.0]})
    assert table[2:] == [
        "| a | 15.0 | 10.0 to 20.0 | 7.5% |",
        "| b | 5.0 | 1.0 to 9.0 | 2.5% |",
        "| all of these | 20.0 | 11.0 to 29.0 | 10.0% |",
        f"| {MAKING} | 200.0 | 100.0 to 300.0 | 100.0% |",
    ]


def test_every_metric_is_timed_on_a_clip_of_a_real_world(pg_dataroot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models = write_models(tmp_path)
    codec, world = models / "codec.safetensors", models / "world.safetensors"
    things, detector = (Path(f"weights/proving_ground_{name}.safetensors") for name in ("things", "detector"))
    clock, scored = iter(range(1000)), []

    def score_frames(stretches):
        scored.append((stretches, VadScores(frames=tuple(stretches[0]))))
        return scored[0][1]

    monkeypatch.setattr(scoring_cost, "score_frames", score_frames)
    monkeypatch.setattr(scoring_cost.time, "perf_counter", lambda: float(next(clock)))
    table = bench_scoring_cost(pg_dataroot, VERSION, codec, world, things, detector, 1, 2.0)
    rows = {cells[1].strip(): float(cells[2]) for line in table.splitlines()[4:] if len(cells := line.split("|")) > 3}
    assert table.startswith("1 clips of 2 s, six cameras, 128x224, cpu")
    single = {name: value for name, value in rows.items() if name not in (MAKING, "all of these")}
    # A tick each, of a clip of 2 s; making it ticks inside as well.
    assert set(single.values()) == {30.0} and len(single) == 11
    ((stretches, scores),) = scored
    assert {"detection", "map", "motion", "planning"} <= scores.__dict__.keys(), "figures that no one asks for cost nothing"
    assert sum(sum(frame.lines.truths.values()) for frame in stretches[0]) > 0
    assert rows["all of these"] == 11 * 30.0 and rows[MAKING] > 30.0
