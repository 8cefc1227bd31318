"""The shell around a worker: one attempt at one shard, from an empty folder to a commit or a told failure.

It runs where the worker runs, so that a driver that dies after the commit loses nothing.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dwm.errors import InputError
from pipelines.atomic import DiskFullError, naming_full_disk
from pipelines.ledger import Ledger
from pipelines.plan import Shard
from pipelines.provenance import host_facts

_MAX_TRACEBACK = 20_000  # characters; enough for any stack, small enough to send


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """What a worker says about a finished shard; the files it wrote speak for themselves."""

    outcome: str = "generated"  # generated | rejected
    detail: str = ""  # why a scenario was rejected
    n_frames: int = 0  # frames of the clip
    timings_s: dict[str, float] = field(default_factory=dict)  # by stage, e.g. generate, evaluate, encode
    facts: dict[str, Any] = field(default_factory=dict)  # e.g. peak_memory_bytes, denoising_steps


class Worker(Protocol):
    """Holds the model and makes shards."""

    def run(self, shard: Shard, attempt_dir: Path) -> ShardResult:
        """Writes a shard's mp4 files and ``tables/<name>.parquet`` below ``attempt_dir``."""
        ...


WorkerFactory = Callable[[], Worker]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptReport:
    """How an attempt ended, in a few hundred bytes."""

    # committed | rejected | superseded (another attempt was first) | failed | bad_input | disk_full
    status: str
    cause: str = ""  # one line
    traceback: str = ""
    exception: str = ""
    needs_new_worker: bool = False


def run_attempt(worker: Worker, shard: Shard, attempt_id: str, ledger: Ledger) -> AttemptReport:
    """One attempt. Exceptions of the worker become a report; only exits and interrupts pass through."""
    if ledger.is_committed(shard.shard_id):
        return AttemptReport(status="superseded")
    try:
        return _attempt(worker, shard, attempt_id, ledger)
    except DiskFullError as error:
        return AttemptReport(status="disk_full", cause=str(error), exception="DiskFullError")
    except InputError as error:
        return _failed("bad_input", error)
    except Exception as error:
        return _failed("failed", error)


def _attempt(worker: Worker, shard: Shard, attempt_id: str, ledger: Ledger) -> AttemptReport:
    attempt = ledger.begin(shard.shard_id, attempt_id)
    started_s = time.perf_counter()
    try:
        with naming_full_disk(ledger.layout.root):
            result = worker.run(shard, attempt.folder)
        timings_s = {**result.timings_s, "wall": time.perf_counter() - started_s}
        won = ledger.commit(
            attempt, asdict(shard), outcome=result.outcome, detail=result.detail, n_frames=result.n_frames,
            timings_s=timings_s, facts={**host_facts(), **result.facts},
        )  # fmt: skip
    except BaseException:
        ledger.discard(attempt.shard_id, attempt.attempt_id)
        raise
    if not won:
        return AttemptReport(status="superseded")
    return AttemptReport(status="rejected" if result.outcome == "rejected" else "committed", cause=result.detail)


def _failed(status: str, error: Exception) -> AttemptReport:
    text = "".join(traceback.format_exception(error))[-_MAX_TRACEBACK:]
    cause = (str(error) or repr(error)).splitlines()[0][:500]
    # After a CUDA error the process cannot use its device any more.
    return AttemptReport(
        status=status, cause=cause, traceback=text, exception=type(error).__name__, needs_new_worker="CUDA" in text
    )
