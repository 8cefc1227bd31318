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


def _traffic(arguments: argparse.Namespace) -> str:
    from pipelines.bench.traffic import bench_traffic

    return bench_traffic(arguments.dataroot, arguments.version, arguments.seeds, arguments.out)


BENCHES: dict[str, Callable[[argparse.Namespace], str]] = {
    "proving_ground": _proving_ground, "world_model": _world_model, "detector": _detector, "traffic": _traffic,
}  # fmt: skip
