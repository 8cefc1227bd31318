"""What scenarios cost before any pixel: reading a scene and building four perturbed minutes of it, on two worker processes.

Both processes run at once, one thread each, so that they share memory bandwidth as in a real run. A rejected scenario counts
with what it cost to find out. Scaled to 700 scenes x 4 by the mean cost of a scene; opening the dataroot's tables, once
for a process, stands apart, because it grows with the dataset instead of with the scenes that are used.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dwm.errors import InputError
from dwm.scenario.build import ScenarioBuilder
from dwm.scenario.perturbations import FAMILIES, sample_perturbation
from dwm.scenario.types import Perturbation, Rejection
from dwm.scenes.nuscenes import list_scenes, read_scene
from evaluators.protocol import bootstrap_interval

Array = NDArray[np.float64]
PROCESSES, PER_SCENE, SCENES = 2, 4, 700
_SEVERITIES = (0.2, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneCost:
    """One scene in one process."""

    opening_s: float  # the dataroot's tables; next to nothing after a process's first scene
    reading_s: float
    building_s: tuple[float, ...]  # a perturbation each
    outcomes: tuple[str, ...]  # "accepted" or the reason why not
    cpu_s: float  # of reading and building: what other load on the machine does not change
    agents: int  # in the log

    @property
    def total_s(self) -> float:
        """What one more scene costs."""
        return self.reading_s + sum(self.building_s)


def bench_scenario_cost(dataroot: Path, version: str, scenes: int, duration_s: float = 60.0) -> str:
    """The table as Markdown; beyond the scenes that the dataroot has, they come again with other draws."""
    names = list_scenes(dataroot, version)
    if scenes < 1:
        raise InputError("--cases", f"{scenes} scenes", "give 1 or more")
    todo = list(islice(cycle(names), scenes))
    started = time.perf_counter()
    with _one_thread(), ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        work = pool.map(scene_cost, [dataroot] * scenes, [version] * scenes, todo, range(scenes), [duration_s] * scenes)
        costs = list(tqdm(work, total=scenes, desc="scenes", disable=None))
    return "\n".join(table(costs, len(set(todo)), duration_s, time.perf_counter() - started))


def scene_cost(dataroot: Path, version: str, name: str, draw: int, duration_s: float) -> SceneCost:
    """Seconds for one scene and its four perturbations, drawn from ``draw``."""
    marks = [time.perf_counter()]
    list_scenes(dataroot, version)
    marks.append(time.perf_counter())
    cpu_s = time.process_time()
    scene = read_scene(dataroot, version, name)
    marks.append(time.perf_counter())
    outcomes = []
    builder = ScenarioBuilder(scene, draw, duration_s=duration_s)
    for perturbation in draws(np.random.default_rng(draw)):
        found = builder.build(perturbation)
        outcomes.append(found.reason if isinstance(found, Rejection) else "accepted")
        marks.append(time.perf_counter())
    seconds = np.diff(marks)
    return SceneCost(
        opening_s=float(seconds[0]), reading_s=float(seconds[1]), building_s=tuple(float(s) for s in seconds[2:]),
        outcomes=tuple(outcomes), cpu_s=time.process_time() - cpu_s, agents=len(scene.agents),
    )  # fmt: skip


def draws(rng: np.random.Generator) -> list[Perturbation]:
    """Four perturbations; no family comes twice as long as there are others."""
    names = list(FAMILIES)
    order = [int(i) for _ in range(-(-PER_SCENE // len(names))) for i in rng.permutation(len(names))]
    return [sample_perturbation(names[i], float(rng.uniform(*_SEVERITIES)), rng) for i in order[:PER_SCENE]]


def table(costs: list[SceneCost], distinct: int, duration_s: float, wall_s: float) -> list[str]:
    """Markdown lines; minutes of 700 scenes with their interval over scenes."""
    total = np.array([c.total_s for c in costs])
    minutes = SCENES / PROCESSES / 60
    scaled = bootstrap_interval(total * minutes, np.random.default_rng(0))
    rows: list[tuple[str, Array]] = [
        ("opening the tables, once for a process [s]", np.sort([c.opening_s for c in costs])[-PROCESSES:]),
        ("reading a scene [s]", np.array([c.reading_s for c in costs])),
        ("a scenario [s]", np.array([s for c in costs for s in c.building_s])),
        (f"a scene with {PER_SCENE} scenarios [s]", total),
        (f"a scene with {PER_SCENE} scenarios [CPU s]", np.array([c.cpu_s for c in costs])),
    ]
    lines = [
        f"{len(costs)} scenes ({distinct} distinct, {np.mean([c.agents for c in costs]):.0f} logged agents each) x {PER_SCENE} "
        f"scenarios of {duration_s:g} s on {PROCESSES} processes of one thread: {wall_s:.1f} s with their start",
        "", "| figure | mean | median | standard deviation | largest | n |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, values in rows:
        spread = " | ".join(f"{f(values):.2f}" for f in (np.mean, np.median, np.std, np.max))
        lines.append(f"| {name} | {spread} | {len(values)} |")
    outcomes = Counter(outcome for c in costs for outcome in c.outcomes)
    lines += ["", f"Outcomes: {', '.join(f'{n} x {what}' for what, n in outcomes.most_common())}."]
    lines += [
        f"{SCENES} scenes x {PER_SCENE} on {PROCESSES} cores at that mean: **{scaled.value:.1f} minutes** "
        f"(95 % interval {scaled.low:.1f} to {scaled.high:.1f}, n = {len(costs)}), "
        f"opening the tables apart; by CPU time, as on a machine with nothing else to do, {np.mean([c.cpu_s for c in costs]) * minutes:.1f} minutes."
    ]
    return lines


@contextmanager
def _one_thread() -> Iterator[None]:
    """Child processes read the variable when they load their numerics, before any initializer could run."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
