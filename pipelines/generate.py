"""``roadreel generate``: plan, execute, publish, report. The same command starts a run and resumes it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dwm.config import to_yaml
from pipelines.attempt import Worker
from pipelines.config import RunConfig, check_config
from pipelines.events import Event, EventLog
from pipelines.executors import get_executor
from pipelines.executors.base import RunSummary
from pipelines.layout import RunLayout
from pipelines.ledger import Ledger
from pipelines.plan import (
    SceneRef,
    Settle,
    Shard,
    in_order,
    make_plan,
    mixed_shard,
    open_run,
    stored_plan,
    untried,
    weights_sha256,
)
from pipelines.progress import RunProgress
from pipelines.publish import DatasetMetrics, publish
from pipelines.scene_list import list_scene_refs

if TYPE_CHECKING:
    from pipelines.long_tail.corpus import Corpus
    from pipelines.long_tail.mix import Mix

log = logging.getLogger(__name__)

DONE, QUARANTINED, INTERRUPTED = 0, 3, 75  # exit codes; 75 is EX_TEMPFAIL: run the same command again
_GARBAGE_AGE_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResult:
    """How a run ended and where its outputs lie."""

    exit_code: int
    summary: RunSummary
    planned: int
    quarantined: dict[str, str] = field(default_factory=dict)  # planned shard -> cause in one line
    version: Path | None = None
    report: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a configuration asks for, and what it was drawn from."""

    shards: list[Shard]
    weights: dict[str, str]  # model part -> SHA-256
    scenes: list[SceneRef]
    corpus: Corpus | None = None  # with a mix
    mix: Mix | None = None


def plan_run(config: RunConfig) -> RunPlan:
    """The shards of a configuration, listed and drawn, and the SHA-256 of its weights; writes nothing."""
    check_config(config)
    scenes = list_scene_refs(config.scenes)
    weights = weights_sha256(config)
    settle = _settle(config, weights)
    listed = make_plan(config, scenes, weights, settle=settle)
    if config.scenario.mix is None:
        return RunPlan(shards=listed, weights=weights, scenes=scenes)
    from pipelines.long_tail.corpus import read_corpus
    from pipelines.long_tail.mix import draw_mix
    from pipelines.long_tail.settle import settled

    corpus = read_corpus(config, scenes)
    by_token = {scene.token: scene for scene in scenes}
    mix, mixed = settled(
        config.scenario.mix, corpus, draw_mix(config.scenario.mix, corpus, config.seed), config.seed,
        lambda clip: mixed_shard(config, by_token[clip.window.scene_token], clip, weights, settle=settle),
    )  # fmt: skip
    return RunPlan(shards=in_order([*listed, *mixed]), weights=weights, scenes=scenes, corpus=corpus, mix=mix)


def _settle(config: RunConfig, weights: dict[str, str]) -> Settle:
    if config.scenario.draws == 0:
        return untried
    from pipelines.trial import Trial, as_planned

    stored = stored_plan(RunLayout(Path(config.out).absolute()), config, weights)
    return Trial(config).settle if stored is None else as_planned(stored, config.scenario.draws)


def generate(
    config: RunConfig,
    *,
    make_worker: Callable[[str], Worker] | None = None,
    write_report: Callable[[Path], Path] | None = None,
    dataset_metrics: DatasetMetrics | None = None,
) -> GenerateResult:
    """Runs what is left of a run, publishes what is committed and writes the report.

    ``make_worker`` builds a worker from the resolved configuration as YAML, on the machine that holds the model.
    """
    plan = plan_run(config)
    for note in plan.mix.notes if plan.mix else ():
        log.warning("target not met: %s", note)
    shards, weights = plan.shards, plan.weights
    layout = RunLayout(Path(config.out).absolute())
    run = open_run(layout, config, shards, weights)
    ledger = Ledger(layout, run={key: run[key] for key in ("run_id", "git_commit", "config_sha256")})
    ledger.collect_garbage(_GARBAGE_AGE_S)
    summary = _execute(config, shards, ledger, partial(make_worker or _default_worker, to_yaml(config)))
    records = ledger.quarantined()
    causes = {s.shard_id: str(records[s.shard_id].get("cause", "")) for s in shards if s.shard_id in records}
    exit_code = _exit_code(summary, quarantined=len(causes))
    version = report = None
    if not summary.interrupted and ledger.committed_ids():
        version = publish(layout.root, dataset_metrics=dataset_metrics)
        report = (write_report or _default_report)(version)
    return GenerateResult(
        exit_code=exit_code, summary=summary, planned=len(shards), quarantined=causes, version=version, report=report
    )


def _execute(config: RunConfig, shards: list[Shard], ledger: Ledger, factory: Callable[[], Worker]) -> RunSummary:
    events = EventLog(ledger.layout.events)
    done = len({shard.shard_id for shard in shards} & (ledger.committed_ids() | set(ledger.quarantined())))
    events(Event(name="run_started", cause=f"{len(shards)} shards, {done} done before"))
    with RunProgress(ledger.layout, len(shards), done) as progress:

        def on_event(event: Event) -> None:
            events(event)
            progress(event)
            log.info("%s %s %s", event.name, event.shard_id, event.cause)

        summary = get_executor(config.execution.executor)(shards, factory, ledger, config.execution, on_event)
    events(Event(name="run_interrupted" if summary.interrupted else "run_finished", cause=repr(summary)))
    return summary


def _exit_code(summary: RunSummary, quarantined: int) -> int:
    if summary.interrupted and summary.remaining:
        return INTERRUPTED
    return QUARANTINED if quarantined else DONE


def _default_worker(config_yaml: str) -> Worker:
    from pipelines.worker import ShardWorker

    return ShardWorker(config_yaml)


def _default_report(version: Path) -> Path:
    from pipelines.report.build import write_report

    return write_report(version)
