"""Are emitted scenarios what they promise? Every family on every scene, each result judged again by other means.

A table of what was tried, emitted and rejected for which reason, what the second opinion found, and one figure.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dwm.geometry import wrap_angle, yaw_from_rotation
from dwm.scenario.build import ScenarioBuilder
from dwm.scenario.feasibility import LIMITS
from dwm.scenario.perturbations import BASELINE, FAMILIES, sample_perturbation
from dwm.scenario.types import Rejection, Scenario
from dwm.scenes.nuscenes import list_scenes, read_scene
from evaluators.scenario_check import Opinion, RoadPolygons, second_opinion

Array = NDArray[np.float64]
STARTS_S = (0.0, 2.0, 4.0, 6.0, 8.0)
QUANTITIES = (
    "acceleration_mps2", "deceleration_mps2", "lateral_acceleration_mps2", "jerk_mps3", "curvature_per_m", "steering_rate_radps",
)  # fmt: skip
_DRAWN_PATHS = 12  # of each family, in the figure


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of one family."""

    tried: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # rejections
    opinions: list[Opinion] = field(default_factory=list)  # of emitted scenarios
    paths: list[Array] = field(default_factory=list)  # [T, 3]: x, y in the first pose's frame and speed, before the log's end

    def add(self, other: Tally) -> None:
        self.tried += other.tried
        self.reasons += other.reasons
        self.opinions += other.opinions
        self.paths = (self.paths + other.paths)[:_DRAWN_PATHS]


def bench_scenarios(
    dataroot: Path, version: str, per_family: int, duration_s: float, out: Path | None, processes: int = 2
) -> str:
    """Markdown tables for ``per_family`` tries of each family, spread over scenes and starting moments; the figure goes to ``out``."""
    moments = [(name, start) for name in list_scenes(dataroot, version) for start in STARTS_S]
    tries = [len(range(i, per_family, len(moments))) for i in range(len(moments))]
    work = partial(_moment, dataroot, version, duration_s)
    found: dict[str, Tally] = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(work, name, start, n, i) for i, ((name, start), n) in enumerate(zip(moments, tries, strict=True)) if n
        ]
        for job in tqdm(jobs, desc="scenarios", disable=None):
            for family, tally in job.result().items():
                found.setdefault(family, Tally()).add(tally)
    if out is not None:
        draw(found, out)
    return "\n".join([*_outcomes(found, duration_s), "", *_extremes(found), "", *_reasons(found)])


def _moment(
    dataroot: Path, version: str, duration_s: float, name: str, start_s: float, tries: int, moment: int
) -> dict[str, Tally]:
    scene = read_scene(dataroot, version, name)
    if start_s * 1e6 > scene.key_timestamps_us[-1] - scene.key_timestamps_us[0]:
        return {}
    builder, road = ScenarioBuilder(scene, moment, duration_s=duration_s, start_s=start_s), RoadPolygons(scene)
    out: dict[str, Tally] = {}
    for family in (BASELINE.name, *FAMILIES):
        tally = out[family] = Tally()
        for k in range(1 if family == BASELINE.name else tries):
            severity = (k + 0.5) / tries
            made = builder.build(sample_perturbation(family, severity, np.random.default_rng((moment, k))))
            tally.tried += 1
            if isinstance(made, Rejection):
                tally.reasons[made.reason] += 1
                continue
            tally.opinions.append(second_opinion(made, road))
            tally.paths.append(_path(made))
    return out


def _path(scenario: Scenario) -> Array:
    """Where the ego went beside its baseline: time-aligned difference ahead and to the left [m], and speed [m/s], within the log."""
    end = scenario.log_end_index
    ego, base = scenario.ego_to_global[:end], scenario.baseline_ego_to_global[:end]
    yaw = yaw_from_rotation(base)
    delta = ego[:, :2, 3] - base[:, :2, 3]
    ahead = delta[:, 0] * np.cos(yaw) + delta[:, 1] * np.sin(yaw)
    left = delta[:, 1] * np.cos(yaw) - delta[:, 0] * np.sin(yaw)
    speed = np.linalg.norm(np.gradient(ego[:, :2, 3], axis=0), axis=1) * scenario.fps if end > 1 else np.zeros(end)
    turned = wrap_angle(yaw_from_rotation(ego) - yaw)
    return np.column_stack([ahead, left, speed, turned])


def _outcomes(found: dict[str, Tally], duration_s: float) -> list[str]:
    rows = [
        f"Clips of {duration_s:g} s.",
        "",
        "| family | tried | emitted | share | inside limits, on road, collision-free by the second opinion |",
        "|---|---|---|---|---|",
    ]
    for family, tally in found.items():
        good = sum(not o.broken for o in tally.opinions)
        share = len(tally.opinions) / max(tally.tried, 1)
        rows.append(f"| {family} | {tally.tried} | {len(tally.opinions)} | {share:.0%} | {good} of {len(tally.opinions)} |")
    every = [o for tally in found.values() for o in tally.opinions]
    broken = Counter(name for o in every for name in o.broken)
    words = ", ".join(f"{name} {n}" for name, n in broken.items()) or "nothing broken"
    return [
        *rows,
        f"| **all** | {sum(t.tried for t in found.values())} | {len(every)} | | {sum(not o.broken for o in every)} of {len(every)} ({words}) |",
    ]


def _extremes(found: dict[str, Tally]) -> list[str]:
    limits = [f"{name} (limit {getattr(LIMITS, name):g})" for name in QUANTITIES]
    rows = [
        "Largest value in any emitted scenario, by the second opinion:",
        "",
        f"| family | {' | '.join(limits)} |",
        "|---|" + "---|" * len(limits),
    ]
    for family, tally in found.items():
        if tally.opinions:
            worst = [max(getattr(o, name) for o in tally.opinions) for name in QUANTITIES]
            rows.append(f"| {family} | {' | '.join(f'{value:.2f}' for value in worst)} |")
    return rows


def _reasons(found: dict[str, Tally]) -> list[str]:
    reasons = sorted({reason for tally in found.values() for reason in tally.reasons})
    rows = ["Rejections by reason:", "", f"| family | {' | '.join(reasons)} |", "|---|" + "---|" * len(reasons)]
    return rows + [
        f"| {family} | {' | '.join(str(t.reasons[r] or '') for r in reasons)} |" for family, t in found.items() if t.reasons
    ]


def draw(found: dict[str, Tally], out: Path) -> None:
    """One row per family: how far the ego is ahead of its baseline, to its left, and how fast it drives."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {family: t.paths for family, t in found.items() if any(np.abs(path[:, :2]).max() > 0.01 for path in t.paths)}
    if not shown:
        return
    figure, axes = plt.subplots(len(shown), 3, figsize=(11, 1.6 * len(shown)), squeeze=False, layout="constrained")
    for row, (family, paths) in zip(axes, shown.items(), strict=True):
        for axis, column in zip(row, range(3), strict=True):
            for path in paths:
                axis.plot(np.arange(len(path)) / 12, path[:, column], linewidth=0.8)
            low, high = axis.get_ylim()
            axis.set_ylim(min(low, -0.5), max(high, 0.5))  # rounding errors are no manoeuvre
            axis.grid(alpha=0.3)
        row[0].set_ylabel(family, rotation=0, ha="right", fontsize=8)
    for axis, title in zip(axes[0], ("ahead of the baseline [m]", "to its left [m]", "speed [m/s]"), strict=True):
        axis.set_title(title, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("time in the clip [s]", fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=90)
    plt.close(figure)
