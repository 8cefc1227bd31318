"""Shards over Ray actors. The driver owns every restart: it sees each death, re-queues the shard and counts attempts.

Plain actors and ``ray.wait``: no actor pool (it drops the work of a dead actor) and no Ray-side restarts or retries (they
hide deaths and pin a shard to one actor). Work goes only to actors that have loaded their model, since a replacement may
wait for a machine for hours. Actors write and commit their own outputs and return a few hundred bytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Must be set before Ray is imported: no nested `uv run` in workers, no usage reports.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from dwm.errors import InputError
from pipelines.attempt import AttemptReport, Worker, WorkerFactory, run_attempt
from pipelines.config import ExecutionConfig
from pipelines.events import Event, OnEvent
from pipelines.executors.base import Drain, RunSummary, ShardQueue, drain_on_sigterm, worker_start_error
from pipelines.ledger import Ledger
from pipelines.plan import Shard

_DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, ActorUnavailableError)
_OBJECT_STORE_BYTES = 150_000_000  # only paths and numbers travel through it
_MAX_START_FAILURES = 3  # in a row
_WAIT_S = 1.0


class _Actor:
    """Holds the worker. Loading is a call of its own, so that the driver learns why it failed."""

    def __init__(self, factory: WorkerFactory, ledger: Ledger) -> None:
        self._factory, self._ledger = factory, ledger
        self._worker: Worker | None = None

    def load(self) -> str:
        """Builds the worker; returns the id of the node it lives on."""
        self._worker = self._factory()
        return ray.get_runtime_context().get_node_id()

    def run(self, shard: Shard, attempt_id: str) -> AttemptReport:
        assert self._worker is not None
        return run_attempt(self._worker, shard, attempt_id, self._ledger)


@dataclass(slots=True, kw_only=True)
class _Job:
    """A shard on its way."""

    shard: Shard
    attempt_id: str
    actor: Any
    started_s: float


def run_ray(
    shards: Sequence[Shard], worker_factory: WorkerFactory, ledger: Ledger, settings: ExecutionConfig, on_event: OnEvent
) -> RunSummary:
    """Runs the shards over ``settings.workers`` actors. InputError when a worker cannot be built."""
    queue = ShardQueue(shards, ledger, settings.attempts, on_event)
    if not len(queue):
        return queue.summary(interrupted=False)
    with _ray_session(settings), drain_on_sigterm() as drain:
        return _Loop(queue, worker_factory, ledger, settings, on_event).run(drain)


class _Loop:
    """The as-completed loop over starting, idle and busy actors."""

    def __init__(
        self, queue: ShardQueue, factory: WorkerFactory, ledger: Ledger, settings: ExecutionConfig, on_event: OnEvent
    ) -> None:
        self._queue, self._ledger, self._settings, self._on_event = queue, ledger, settings, on_event
        self._class = ray.remote(_Actor).options(**_actor_options(settings))
        # Stored once: the factory may carry a configuration, and every replacement needs it again.
        self._arguments = (ray.put(factory), ray.put(ledger))
        self._starting: dict[Any, Any] = {}  # load() reference -> actor
        self._busy: dict[Any, _Job] = {}  # run() reference -> job
        self._idle: list[Any] = []
        self._start_failures = 0

    def run(self, drain: Drain) -> RunSummary:
        drain_until_s: float | None = None
        try:
            while self._busy or (len(self._queue) and not drain.requested):
                if drain.requested:
                    drain_until_s = drain_until_s or time.monotonic() + 60 * self._settings.drain_minutes
                    if time.monotonic() > drain_until_s:
                        break
                else:
                    self._fill()
                self._collect()
                self._stop_overdue()
            return self._queue.summary(interrupted=drain.requested, running=len(self._busy))
        finally:
            for actor in (*self._starting.values(), *self._idle, *(job.actor for job in self._busy.values())):
                ray.kill(actor)

    def _fill(self) -> None:
        """Gives shards to idle actors, and starts as many actors as there is work for."""
        while self._idle and len(self._queue):
            actor = self._idle.pop()
            shard, attempt_id = self._queue.take()
            job = _Job(shard=shard, attempt_id=attempt_id, actor=actor, started_s=time.monotonic())
            self._busy[actor.run.remote(shard, attempt_id)] = job
        alive = len(self._busy) + len(self._starting) + len(self._idle)
        # More actors than shards would make an autoscaler buy machines for nothing.
        for _ in range(min(self._settings.workers, len(self._queue) + len(self._busy)) - alive):
            actor = self._class.remote(*self._arguments)
            self._starting[actor.load.remote()] = actor

    def _collect(self) -> None:
        waiting = [*self._busy, *self._starting]
        ready, _ = ray.wait(waiting, num_returns=1, timeout=_WAIT_S)
        for reference in ready:
            if reference in self._starting:
                self._started(reference, self._starting.pop(reference))
            else:
                self._finished(reference, self._busy.pop(reference))

    def _started(self, reference: Any, actor: Any) -> None:
        try:
            node = str(ray.get(reference))
        except RayError as error:
            ray.kill(actor)
            self._start_failed(error)
            return
        self._start_failures = 0
        self._idle.append(actor)
        self._on_event(Event(name="worker_started", node=node))

    def _start_failed(self, error: RayError) -> None:
        cause = getattr(error, "cause", None)
        if isinstance(cause, InputError):
            raise cause from error
        preempted = bool(getattr(error, "preempted", False))
        self._start_failures += not preempted
        self._on_event(Event(name="worker_start_failed", cause=_last_line(error), exception=type(error).__name__))
        if self._start_failures >= _MAX_START_FAILURES:
            raise worker_start_error(_last_line(error)) from error

    def _finished(self, reference: Any, job: _Job) -> None:
        try:
            report: AttemptReport = ray.get(reference)
        except _DEATHS as error:
            self._died(job, error)
            return
        except RayTaskError as error:
            # The shell reports failures as values; what arrives here could not be sent as one.
            report = AttemptReport(status="failed", cause=_last_line(error), traceback=str(error), exception="RayTaskError")
        if report.needs_new_worker:
            ray.kill(job.actor)
        else:
            self._idle.append(job.actor)
        self._queue.settle(job.shard, job.attempt_id, report)

    def _died(self, job: _Job, error: RayError) -> None:
        ray.kill(job.actor)
        cause = f"the worker died: {type(error).__name__}: {_last_line(error)}"
        self._on_event(Event(name="worker_died", shard_id=job.shard.shard_id, cause=cause, exception=type(error).__name__))
        self._queue.lost(job.shard, job.attempt_id, cause, preempted=bool(getattr(error, "preempted", False)))
        # An unreachable actor may still be writing: its folder is left to garbage collection.
        if not isinstance(error, ActorUnavailableError):
            self._ledger.discard(job.shard.shard_id, job.attempt_id)

    def _stop_overdue(self) -> None:
        limit_s = 60 * self._settings.deadline_minutes
        for reference, job in list(self._busy.items()):
            if time.monotonic() - job.started_s > limit_s:
                del self._busy[reference]
                ray.kill(job.actor)
                cause = f"the shard took longer than {self._settings.deadline_minutes} minutes (execution.deadline_minutes)"
                self._queue.lost(job.shard, job.attempt_id, cause)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:500] if lines else repr(error)


def _actor_options(settings: ExecutionConfig) -> dict[str, Any]:
    cores = _cores(settings)
    share = cores / settings.workers
    threads = str(max(1, int(share)))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    options: dict[str, Any] = {
        # Whole cores where there are enough; otherwise fractions, which Ray keeps to four decimals.
        "num_cpus": int(share) if share >= 1 else int(share * 10_000) / 10_000,
        "max_restarts": 0, "max_task_retries": 0, "runtime_env": {"env_vars": dict.fromkeys(names, threads)},
    }  # fmt: skip
    if settings.gpus_per_worker:
        options["num_gpus"] = settings.gpus_per_worker
    return options


def _cores(settings: ExecutionConfig) -> int:
    return settings.num_cpus or os.cpu_count() or 1


@contextmanager
def _ray_session(settings: ExecutionConfig) -> Iterator[None]:
    """Joins the configured cluster or starts a local one; shuts down what was started."""
    if ray.is_initialized():
        yield
        return
    # Environment variables of a runtime need no package builds; silence is for the terminal, events.jsonl has the story.
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    local = {"num_cpus": _cores(settings), "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        ray.init(address=settings.address or "local", **({} if settings.address else local), **quiet)
    except Exception as error:  # Ray has no common class for what can go wrong here
        fix = "free CPU and memory, check execution.address, or use execution.executor=serial"
        raise InputError("execution.executor", f"Ray did not start ({_last_line(error)})", fix) from error
    try:
        yield
    finally:
        ray.shutdown()
