"""What all executors share: settings, the queue with its rules for failures, and draining on SIGTERM."""

from __future__ import annotations

import signal
import threading
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from dwm.errors import InputError
from pipelines.atomic import DiskFullError
from pipelines.attempt import AttemptReport, WorkerFactory
from pipelines.config import ExecutionConfig
from pipelines.events import Event, OnEvent
from pipelines.ledger import Ledger
from pipelines.plan import Shard

# A shard that is preempted this often is treated like any other failure.
_MAX_PREEMPTIONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """How a run ended."""

    committed: int  # by this call, rejected scenarios included
    rejected: int
    quarantined: int  # by this call
    remaining: int
    interrupted: bool  # SIGTERM arrived; the same command resumes


class Executor(Protocol):
    """Runs every shard that is neither committed nor quarantined."""

    def __call__(
        self,
        shards: Sequence[Shard],
        worker_factory: WorkerFactory,
        ledger: Ledger,
        settings: ExecutionConfig,
        on_event: OnEvent,
    ) -> RunSummary: ...


class ShardQueue:
    """The shards left, and what happens to one whose attempt ended."""

    def __init__(self, shards: Sequence[Shard], ledger: Ledger, attempts: int, on_event: OnEvent) -> None:
        done = ledger.committed_ids() | set(ledger.quarantined())
        self._todo = deque(shard for shard in shards if shard.shard_id not in done)
        self._ledger, self._attempts, self._on_event = ledger, attempts, on_event
        self._ended: Counter[str] = Counter()
        self._preemptions: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._todo)

    def take(self) -> tuple[Shard, str]:
        """The next shard and a fresh attempt id for it."""
        shard, attempt_id = self._todo.popleft(), uuid.uuid4().hex
        self._emit("attempt_started", shard, attempt_id, before="todo", after="running")
        return shard, attempt_id

    def give_back(self, shard: Shard, attempt_id: str) -> None:
        """Puts back a shard whose attempt never ran."""
        self._todo.appendleft(shard)
        self._emit("attempt_lost", shard, attempt_id, before="running", after="todo", cause="not started")

    def settle(self, shard: Shard, attempt_id: str, report: AttemptReport) -> None:
        """Books the end of an attempt. Raises DiskFullError, since no other shard could do better."""
        if report.status in ("committed", "rejected"):
            self._ended[report.status] += 1
            self._emit(report.status, shard, attempt_id, before="running", after="done", cause=report.cause)
        elif report.status == "superseded":
            self._emit("attempt_superseded", shard, attempt_id, before="running", after="done")
        elif report.status == "disk_full":
            fix = "free space or choose another out folder, then run the same command again"
            raise DiskFullError(self._ledger.layout.root, "no space left", fix)
        elif report.status == "bad_input":
            # The same input fails the same way: trying again would only cost time.
            failures = self._ledger.failures(shard.shard_id) + 1
            self._quarantine(shard, attempt_id, report.cause, f"{report.cause}\n{report.traceback}", failures)
        else:
            self._failed(shard, attempt_id, report)

    def lost(self, shard: Shard, attempt_id: str, cause: str, *, preempted: bool = False) -> None:
        """Books an attempt whose process died or was stopped; it may have committed before that."""
        if self._ledger.is_committed(shard.shard_id):
            outcome = self._ledger.record(shard.shard_id).outcome
            self.settle(shard, attempt_id, AttemptReport(status="rejected" if outcome == "rejected" else "committed"))
            return
        self._preemptions[shard.shard_id] += preempted
        counts = not preempted or self._preemptions[shard.shard_id] > _MAX_PREEMPTIONS
        self._failed(shard, attempt_id, AttemptReport(status="failed", cause=cause, traceback=cause), counts=counts, lost=True)

    def summary(self, *, interrupted: bool, running: int = 0) -> RunSummary:
        return RunSummary(
            committed=self._ended["committed"] + self._ended["rejected"], rejected=self._ended["rejected"],
            quarantined=self._ended["quarantined"], remaining=len(self._todo) + running, interrupted=interrupted,
        )  # fmt: skip

    def _failed(self, shard: Shard, attempt_id: str, report: AttemptReport, *, counts: bool = True, lost: bool = False) -> None:
        self._ledger.record_failure(shard.shard_id, attempt_id, report.traceback or report.cause, counts=counts)
        failures = self._ledger.failures(shard.shard_id)
        if failures >= self._attempts:
            self._quarantine(shard, attempt_id, report.cause, report.traceback or report.cause, failures)
            return
        self._todo.append(shard)
        name = "attempt_lost" if lost else "attempt_failed"
        self._emit(name, shard, attempt_id, before="running", after="todo", cause=report.cause, exception=report.exception)

    def _quarantine(self, shard: Shard, attempt_id: str, cause: str, traceback: str, failures: int) -> None:
        self._ledger.quarantine(shard.shard_id, traceback, failures, cause)
        self._ended["quarantined"] += 1
        self._emit("quarantined", shard, attempt_id, before="running", after="quarantined", cause=cause)

    def _emit(
        self, name: str, shard: Shard, attempt_id: str, *, before: str, after: str, cause: str = "", exception: str = ""
    ) -> None:
        self._on_event(
            Event(
                name=name,
                shard_id=shard.shard_id,
                attempt_id=attempt_id,
                before=before,
                after=after,
                cause=cause,
                exception=exception,
            )
        )


class Drain:
    """Set by SIGTERM: finish what runs, start nothing."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def drain_on_sigterm() -> Iterator[Drain]:
    """SIGTERM asks to drain; a second one interrupts. Outside the main thread signals are left alone."""
    drain = Drain()
    if threading.current_thread() is not threading.main_thread():
        yield drain
        return

    def handle(number: int, frame: object) -> None:
        if drain.requested:
            raise KeyboardInterrupt
        drain.requested = True

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield drain
    finally:
        signal.signal(signal.SIGTERM, previous)


def worker_start_error(error: str) -> InputError:
    """For workers that cannot even be built, after several tries."""
    return InputError("workers", f"no worker could start: {error}", "see events.jsonl in the run folder")
