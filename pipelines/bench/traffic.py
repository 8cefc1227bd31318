"""Traffic beyond the log against the log: distances of distributions, with the log's own first and second half as the floor."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Rejection
from dwm.scenes.nuscenes import list_scenes, read_scene
from evaluators.traffic import UNITS, Samples, compare, traffic_samples

DURATION_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Samples by scene; the simulated part pools all seeds."""

    logged: list[Samples]
    simulated: list[Samples]
    first_half: list[Samples]  # of the log
    second_half: list[Samples]
    rejected: list[str]  # scene, seed and reason
    read_s: list[float]  # CPU seconds per scene
    build_s: list[float]  # CPU seconds per scenario


def measure(dataroot: Path, version: str, seeds: int) -> Measured:
    """Baselines of DURATION_S of every scene, continued with each seed."""
    found = Measured(logged=[], simulated=[], first_half=[], second_half=[], rejected=[], read_s=[], build_s=[])
    for name in tqdm(list_scenes(dataroot, version), disable=None, unit="scene"):
        begin = time.process_time()
        scene = read_scene(dataroot, version, name)
        found.read_s.append(time.process_time() - begin)
        kept = []
        for seed in range(seeds):
            begin = time.process_time()
            result = build_scenario(scene, BASELINE, seed, duration_s=DURATION_S)
            found.build_s.append(time.process_time() - begin)
            if isinstance(result, Rejection):
                found.rejected.append(f"{name} seed {seed}: {result.reason}, {result.detail}")
            else:
                kept.append(result)
        if not kept:
            continue
        middle = kept[0].log_end_index // 2
        found.logged.append(traffic_samples(kept[0], simulated=False))
        found.first_half.append(traffic_samples(kept[0], simulated=False, last=middle))
        found.second_half.append(traffic_samples(kept[0], simulated=False, first=middle))
        drawn = [traffic_samples(scenario, simulated=True) for scenario in kept]
        found.simulated.append({name: np.concatenate([d[name] for d in drawn]) for name in UNITS})
    return found


def bench_traffic(dataroot: Path, version: str, seeds: int, out: Path | None = None) -> str:
    """Markdown table of all scenes of a dataroot; with ``out`` also a figure, written there as PNG."""
    found = measure(dataroot, version, seeds)
    built = len(found.build_s)
    lines = [
        f"{len(found.logged)} scenes, {seeds} seeds each, {DURATION_S:g} s; {len(found.rejected)} of {built} scenarios rejected; "
        f"CPU seconds: {np.mean(found.read_s):.2f} to read a scene, {np.mean(found.build_s):.2f} to build a scenario",
        *(f"- rejected: {line}" for line in found.rejected),
    ]
    if not found.logged:
        return "\n".join(lines)
    floor = {d.quantity: d for d in compare(found.first_half, found.second_half)}
    lines += [
        "",
        "| quantity | mean, log | simulated | W1 (95 %) | floor | KS | floor | samples |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for d in compare(found.logged, found.simulated):
        base = floor.get(d.quantity)
        unit = f" [{UNITS[d.quantity]}]" if UNITS[d.quantity] else ""
        lines.append(
            f"| {d.quantity}{unit} | {d.mean[0]:.2f} | {d.mean[1]:.2f} | {d.wasserstein:.2f} ({d.interval[0]:.2f} to "
            f"{d.interval[1]:.2f}) | {f'{base.wasserstein:.2f}' if base else ''} | {d.ks:.2f} | "
            f"{f'{base.ks:.2f}' if base else ''} | {d.count[0]} / {d.count[1]} |"
        )
    if out is not None:
        plot_traffic(found, out)
    return "\n".join(lines)


def plot_traffic(found: Measured, path: Path) -> None:
    """Distribution functions of every quantity, logged and simulated, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(15, 6.5), constrained_layout=True)
    for axis, (quantity, unit) in zip(axes.ravel(), UNITS.items(), strict=True):
        for part, label, colour in ((found.logged, "log", "black"), (found.simulated, "simulated", "tab:red")):
            values = np.sort(np.concatenate([samples[quantity] for samples in part]))
            if len(values):
                axis.step(values, np.arange(1, len(values) + 1) / len(values), label=f"{label} ({len(values)})", color=colour)
        axis.set(title=quantity, xlabel=unit, ylim=(0, 1))
        axis.legend(loc="lower right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
