"""Reproducible benchmarks: each prints a table whose figures stand in docs/results.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def run(name: str, arguments: argparse.Namespace) -> str:
    """The benchmark's table as text; imports only what it needs."""
    return BENCHES[name](arguments)


def _world_model(arguments: argparse.Namespace) -> str:
    from pipelines.bench.world_model import bench_world_model

    return bench_world_model(
        arguments.dataroot,
        arguments.version,
        arguments.codec,
        arguments.world_model,
        arguments.things,
        arguments.cases,
        arguments.steps,
    )


def _proving_ground(arguments: argparse.Namespace) -> str:
    from pipelines.bench.proving_ground import bench_proving_ground

    return bench_proving_ground(arguments.dataroot, arguments.version)


def _detector(arguments: argparse.Namespace) -> str:
    from pipelines.bench.detector import bench_detector

    return bench_detector(arguments.dataroot, arguments.version, arguments.split, arguments.detector)


def _duration_s(arguments: argparse.Namespace, default_s: float) -> float:
    return default_s if arguments.duration is None else arguments.duration


def _layout(arguments: argparse.Namespace) -> str:
    from pipelines.bench.layout import bench_layout

    return bench_layout(
        arguments.dataroot, arguments.version, arguments.codec, arguments.world_model, arguments.things, arguments.detector,
        arguments.cases, _duration_s(arguments, 60.0), arguments.contrast, arguments.steps,
    )  # fmt: skip


def _memory(arguments: argparse.Namespace) -> str:
    from pipelines.bench.memory import bench_memory

    return bench_memory(
        arguments.dataroot, arguments.version, arguments.codec, arguments.world_model, arguments.things, arguments.detector,
        arguments.cases, _duration_s(arguments, 10.0), arguments.steps,
    )  # fmt: skip


def _scenario_cost(arguments: argparse.Namespace) -> str:
    from pipelines.bench.scenario_cost import bench_scenario_cost

    return bench_scenario_cost(arguments.dataroot, arguments.version, arguments.cases, _duration_s(arguments, 60.0))


BENCHES: dict[str, Callable[[argparse.Namespace], str]] = {
    "proving_ground": _proving_ground, "world_model": _world_model, "detector": _detector,
    "layout": _layout, "memory": _memory, "scenario_cost": _scenario_cost,
def _labels(arguments: argparse.Namespace) -> str:
    from pipelines.bench.labels import bench_labels

    return bench_labels(arguments.dataroot, arguments.version, arguments.things)


BENCHES: dict[str, Callable[[argparse.Namespace], str]] = {
    "proving_ground": _proving_ground, "world_model": _world_model, "detector": _detector, "labels": _labels,
}  # fmt: skip
