"""Cost of scenarios: the scaled figure in closed form, and a real run on two processes."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dwm.errors import InputError
from dwm.scenario.perturbations import FAMILIES
from pipelines.bench.scenario_cost import SceneCost, bench_scenario_cost, draws, table
from tests.pipelines.tiny_models import VERSION


def cost(reading_s: float, opening_s: float = 0.0) -> SceneCost:
    return SceneCost(
        opening_s=opening_s, reading_s=reading_s, building_s=(0.5, 1.0, 1.5, 2.0), outcomes=("accepted",) * 3 + ("off_road",),
        cpu_s=3.0, agents=20,
    )  # fmt: skip


def test_seven_hundred_scenes_on_two_cores_cost_350_times_the_mean_scene() -> None:
    text = "\n".join(table([cost(1.0, 9.0), cost(3.0, 7.0), cost(2.0)], 3, 60.0, 30.0))
    assert f"**{7.0 * 350 / 60:.1f} minutes**" in text and f"{3.0 * 350 / 60:.1f} minutes" in text
    assert "| opening the tables, once for a process [s] | 8.00 | 8.00 | 1.00 | 9.00 | 2 |" in text
    assert "| a scene with 4 scenarios [s] | 7.00 | 7.00 | 0.82 | 8.00 | 3 |" in text
    assert "| a scenario [s] | 1.25 | 1.25 | 0.56 | 2.00 | 12 |" in text
    assert "Outcomes: 9 x accepted, 3 x off_road." in text


def test_draws_spread_over_the_families_and_repeat_with_their_seed() -> None:
    for seed in range(5):
        drawn = draws(np.random.default_rng(seed))
        counts = Counter(p.name for p in drawn)
        assert len(drawn) == 4 and max(counts.values()) - min(counts[name] for name in FAMILIES) <= 1
        assert drawn == draws(np.random.default_rng(seed))
    assert draws(np.random.default_rng(0)) != draws(np.random.default_rng(1))


def test_two_processes_read_and_build_every_scene_that_is_asked_for(
    pg_dataroot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    text = bench_scenario_cost(pg_dataroot, VERSION, 3, duration_s=1.5)
    assert "3 scenes (2 distinct" in text and "x 4 scenarios of 1.5 s on 2 processes" in text
    assert sum(int(part.split(" x ")[0]) for part in text.split("Outcomes: ")[1].split(".")[0].split(", ")) == 12
    assert os.environ["OMP_NUM_THREADS"] == "2"
    with pytest.raises(InputError, match="0 scenes"):
        bench_scenario_cost(pg_dataroot, VERSION, 0)
