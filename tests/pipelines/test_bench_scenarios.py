"""The bench over every family, on a small world."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dwm.scenario.perturbations import FAMILIES
from pipelines.bench.degenerate import LOGS, bench_degenerate
from pipelines.bench.scenarios import _moment, _outcomes, _reasons, draw
from tests.pipelines.tiny_models import VERSION


def test_every_family_is_tried_and_every_outcome_is_accounted_for(pg_dataroot: Path, tmp_path: Path):
    found = _moment(pg_dataroot, VERSION, 3.0, "scene-0001", 0.0, 2, 0)
    assert set(found) == {"baseline", *FAMILIES}
    for family, tally in found.items():
        assert tally.tried == (1 if family == "baseline" else 2) == len(tally.opinions) + tally.reasons.total()
        assert all(not opinion.broken for opinion in tally.opinions)
    assert len(found["night"].opinions) == 2
    rows = _outcomes(found, 3.0)
    assert rows[-1].startswith(f"| **all** | {1 + 2 * len(FAMILIES)} |") and "nothing broken" in rows[-1]
    assert any("after_log" in line for line in _reasons(found))
    # In so short a log nobody gets far from the baseline.
    found["swerve"].paths.append(np.column_stack([np.zeros(24), np.linspace(0, 1, 24), np.full(24, 8.0), np.zeros(24)]))
    draw(found, tmp_path / "figures" / "families.png")
    assert (tmp_path / "figures" / "families.png").stat().st_size > 5000


def test_a_start_beyond_the_log_has_nothing_to_try(pg_dataroot: Path):
    assert _moment(pg_dataroot, VERSION, 3.0, "scene-0001", 1e4, 2, 0) == {}


def test_every_degenerate_log_gives_a_scenario_or_a_reason(pg_dataroot: Path):
    table = bench_degenerate(pg_dataroot, VERSION, 6.0)
    rows = [line for line in table.splitlines() if line.startswith("| ") and "family" not in line]
    assert len(rows) == 1 + len(FAMILIES) and all(len(row.split(" | ")) == 1 + len(LOGS) for row in rows)
    assert "| parked ego" in table and "0 emitted scenarios break a limit" in table
    columns = list(zip(*(row.strip("| ").split(" | ") for row in rows), strict=True))
    assert columns[0] == ("baseline", *FAMILIES)
    # A parked ego moves only once the log is over.
    assert columns[1][columns[0].index("hard_brake")] in ("no_effect", "after_log") and "after_log" in columns[2]
    # Without lanes a lane is assumed; off the map nothing of the map can be in the way.
    assert "no_lane" not in columns[4] and "off_road" not in columns[5]
