"""Reproducible benchmarks: each prints a table whose figures stand in docs/results.md."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib import import_module

_WORLD = ("dataroot", "version", "codec", "world_model", "things")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """``bench_<name>`` of the module of that name, with these of the command's arguments in order."""

    arguments: tuple[str, ...]
    duration_s: float = 60.0  # clip length where none is asked for


BENCHES: dict[str, Bench] = {
    "proving_ground": Bench(arguments=("dataroot", "version")),
    "detector": Bench(arguments=("dataroot", "version", "split", "detector")),
    "vad": Bench(arguments=("dataroot", "version", "split", "vad", "size", "detector")),
    "world_model": Bench(arguments=(*_WORLD, "cases", "steps")),
    "layout": Bench(arguments=(*_WORLD, "detector", "cases", "duration", "contrast", "steps")),
    "memory": Bench(arguments=(*_WORLD, "detector", "cases", "duration", "steps"), duration_s=10.0),
    "systems": Bench(arguments=(*_WORLD, "detector", "cases", "duration", "systems", "out", "processes")),
    "ego_motion": Bench(arguments=(*_WORLD, "ego_motion", "cases", "duration", "steps"), duration_s=6.0),
    "gate": Bench(arguments=(*_WORLD, "detector", "ego_motion", "cases", "duration"), duration_s=6.0),
    "scoring_cost": Bench(arguments=(*_WORLD, "detector", "cases", "duration"), duration_s=10.0),
    "conditions": Bench(arguments=(*_WORLD, "cases", "steps")),
    "labels": Bench(arguments=("dataroot", "version", "things")),
    "scenarios": Bench(arguments=("dataroot", "version", "cases", "duration", "out")),
    "degenerate": Bench(arguments=("dataroot", "version", "duration")),
    "traffic": Bench(arguments=("dataroot", "version", "seeds", "out")),
    "scenario_cost": Bench(arguments=("dataroot", "version", "cases", "duration")),
}


def run(name: str, arguments: argparse.Namespace) -> str:
    """The benchmark's table as text; imports only what it needs."""
    bench = BENCHES[name]
    if arguments.duration is None:
        arguments.duration = bench.duration_s
    measure = getattr(import_module(f"pipelines.bench.{name}"), f"bench_{name}")
    return measure(*(getattr(arguments, each) for each in bench.arguments))
