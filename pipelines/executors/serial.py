"""Shards one after another in this process: tests and laptops."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.attempt import WorkerFactory, run_attempt
from pipelines.config import ExecutionConfig
from pipelines.events import Event, OnEvent
from pipelines.executors.base import RunSummary, ShardQueue, drain_on_sigterm
from pipelines.ledger import Ledger
from pipelines.plan import Shard


def run_serial(
    shards: Sequence[Shard], worker_factory: WorkerFactory, ledger: Ledger, settings: ExecutionConfig, on_event: OnEvent
) -> RunSummary:
    """Runs the shards in order; a shard that fails goes to the back. Errors of the factory pass through.

    There is no deadline here: one process cannot stop its own shard.
    """
    queue = ShardQueue(shards, ledger, settings.attempts, on_event)
    if not len(queue):
        return queue.summary(interrupted=False)
    worker = worker_factory()
    on_event(Event(name="worker_started"))
    with drain_on_sigterm() as drain:
        while len(queue) and not drain.requested:
            shard, attempt_id = queue.take()
            report = run_attempt(worker, shard, attempt_id, ledger)
            queue.settle(shard, attempt_id, report)
            if report.needs_new_worker and len(queue):
                worker = worker_factory()
        return queue.summary(interrupted=drain.requested)
