"""The traffic benchmark on a small world."""

from __future__ import annotations

from pathlib import Path

from pipelines.bench import traffic


def test_the_table_has_a_line_per_quantity_and_the_figure_is_a_png(pg_dataroot: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(traffic, "DURATION_S", 4.0)
    out = tmp_path / "figures" / "traffic.png"
    text = traffic.bench_traffic(pg_dataroot, "v1.0-mini", 1, out)
    assert "1 seeds each, 4 s; 0 of" in text and "| quantity | mean, log | simulated |" in text
    assert "| vehicle speed [m/s] |" in text and "| ego speed [m/s] |" in text
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_rejected_scenarios_are_listed_and_do_not_count(pg_dataroot: Path, monkeypatch):
    from dwm.scenario.perturbations import BASELINE
    from dwm.scenario.types import Rejection

    def refuse(scene, perturbation, seed, **_):
        return Rejection(scene=scene.name, perturbation=BASELINE, seed=seed, reason="collision", detail="planted")

    monkeypatch.setattr(traffic, "build_scenario", refuse)
    text = traffic.bench_traffic(pg_dataroot, "v1.0-mini", 2)
    assert (
        text.startswith("0 scenes")
        and "collision, planted" in text
        and text.count("- rejected:") == 2 * (text.count("seed 0:"))
    )
