from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dwm.errors import InputError
from pipelines.atomic import DiskFullError
from pipelines.attempt import AttemptReport, ShardResult
from pipelines.config import ExecutionConfig
from pipelines.events import Event, EventLog
from pipelines.executors import get_executor
from pipelines.executors.base import ShardQueue
from pipelines.executors.serial import run_serial
from pipelines.layout import RunLayout
from pipelines.ledger import Ledger
from tests.pipelines.pipeline_factories import TextWorker, tiny_shards


class FailingWorker(TextWorker):
    """Raises for seed 1, ``times`` times."""

    def __init__(self, error: Exception, times: int = 99) -> None:
        self.error, self.left = error, times

    def run(self, shard, attempt_dir: Path) -> ShardResult:
        result = super().run(shard, attempt_dir)
        if shard.seed == 1 and self.left:
            self.left -= 1
            raise self.error
        return result


def _run(tmp_path: Path, worker, n: int = 3):
    ledger, events = Ledger(RunLayout(tmp_path)), []
    summary = run_serial(tiny_shards(n, tmp_path), lambda: worker, ledger, ExecutionConfig(), events.append)
    return summary, ledger, events


def test_a_shard_that_always_fails_is_quarantined_after_three_attempts_and_the_others_are_done(tmp_path: Path):
    summary, ledger, events = _run(tmp_path, FailingWorker(RuntimeError("no such lane")))
    assert (summary.committed, summary.quarantined, summary.remaining) == (2, 1, 0)
    ((shard_id, record),) = ledger.quarantined().items()
    assert record["attempts"] == 3
    assert "RuntimeError: no such lane" in record["traceback"]
    assert "in run" in record["traceback"]
    assert [e.name for e in events if e.shard_id == shard_id] == [
        "attempt_started", "attempt_failed", "attempt_started", "attempt_failed", "attempt_started", "quarantined",
    ]  # fmt: skip
    assert events[-1].cause == "no such lane"
    assert ledger.orphans() == []


def test_a_shard_that_fails_twice_is_committed_by_the_third_attempt(tmp_path: Path):
    summary, ledger, _ = _run(tmp_path, FailingWorker(RuntimeError("flaky"), times=2))
    assert (summary.committed, summary.quarantined) == (3, 0)
    assert sorted(r.failed_attempts for r in ledger.committed().values()) == [0, 0, 2]


def test_bad_input_is_quarantined_at_once_with_its_message(tmp_path: Path):
    summary, ledger, _ = _run(tmp_path, FailingWorker(InputError("a.jpg", "truncated", "copy it again")))
    assert (summary.committed, summary.quarantined) == (2, 1)
    (record,) = ledger.quarantined().values()
    assert record["attempts"] == 1
    assert record["traceback"].startswith("a.jpg: truncated; copy it again\n")


def test_a_second_run_does_only_what_is_left(tmp_path: Path):
    _run(tmp_path, FailingWorker(InputError("a.jpg", "truncated", "copy it again")))
    summary, ledger, events = _run(tmp_path, TextWorker(), n=4)
    assert summary.committed == 1
    assert len(ledger.committed()) == 3
    assert [e.name for e in events] == ["worker_started", "attempt_started", "committed"]


def test_a_finished_run_does_not_even_build_a_worker(tmp_path: Path):
    _run(tmp_path, TextWorker())
    summary = run_serial(tiny_shards(3, tmp_path), pytest.fail, Ledger(RunLayout(tmp_path)), ExecutionConfig(), print)
    assert (summary.committed, summary.remaining) == (0, 0)


def test_a_full_disk_stops_the_run_and_quarantines_nothing(tmp_path: Path):
    with pytest.raises(DiskFullError, match="no space left"):
        _run(tmp_path, FailingWorker(OSError(28, "No space left on device")))
    ledger = Ledger(RunLayout(tmp_path))
    assert len(ledger.committed()) == 1
    assert ledger.quarantined() == {}


def test_sigterm_finishes_the_running_shard_and_starts_no_other(tmp_path: Path):
    class Terminated(TextWorker):
        def run(self, shard, attempt_dir):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().run(shard, attempt_dir)

    before = signal.getsignal(signal.SIGTERM)
    summary, ledger, _ = _run(tmp_path, Terminated())
    assert (summary.committed, summary.remaining, summary.interrupted) == (1, 2, True)
    assert len(ledger.committed()) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_rejected_scenario_is_a_committed_shard_with_its_reason(tmp_path: Path):
    class Rejecting:
        def run(self, shard, attempt_dir):
            return ShardResult(outcome="rejected", detail="off_road: 1.2 m beyond the kerb")

    summary, ledger, _ = _run(tmp_path, Rejecting(), n=1)
    assert (summary.committed, summary.rejected) == (1, 1)
    (record,) = ledger.committed().values()
    assert (record.outcome, record.detail, record.files) == ("rejected", "off_road: 1.2 m beyond the kerb", ())


def test_the_lost_attempt_of_a_shard_that_was_committed_before_the_death_counts_as_done(tmp_path: Path):
    ledger, events = Ledger(RunLayout(tmp_path)), []
    queue = ShardQueue(tiny_shards(2, tmp_path), ledger, 3, events.append)
    shard, attempt_id = queue.take()
    assert ledger.commit(ledger.begin(shard.shard_id, attempt_id), {})
    queue.lost(shard, attempt_id, "died")
    assert (events[-1].name, queue.summary(interrupted=False).committed) == ("committed", 1)


def test_preemptions_cost_no_attempt_and_other_deaths_do(tmp_path: Path):
    ledger = Ledger(RunLayout(tmp_path))
    queue = ShardQueue(tiny_shards(1, tmp_path), ledger, 3, print)
    for preempted in [True] * 5 + [False] * 3:
        assert len(queue) == 1
        shard, attempt_id = queue.take()
        queue.lost(shard, attempt_id, "node lost", preempted=preempted)
    assert len(queue) == 0
    assert ledger.quarantined()[shard.shard_id]["attempts"] == 3


def test_a_cuda_error_gets_a_new_worker(tmp_path: Path):
    workers = [FailingWorker(RuntimeError("CUDA error: device-side assert"), times=1), TextWorker()]
    built = []

    def factory():
        built.append(workers[len(built)])
        return built[-1]

    summary = run_serial(tiny_shards(3, tmp_path), factory, Ledger(RunLayout(tmp_path)), ExecutionConfig(), lambda e: None)
    assert (summary.committed, len(built)) == (3, 2)


def test_events_are_one_json_line_each_with_only_what_is_known(tmp_path: Path):
    import json

    log = EventLog(tmp_path / "run" / "events.jsonl")
    log(Event(name="worker_started"))
    log(Event(name="committed", shard_id="a", before="running", after="done", cause='line\n"quoted"'))
    first, second = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert set(first) == {"time_us", "host", "pid", "name"}
    assert second["cause"] == 'line\n"quoted"'
    assert second["time_us"] >= first["time_us"]


def test_an_unknown_executor_names_the_choice():
    with pytest.raises(InputError, match="unknown executor 'slurm'; use serial or ray"):
        get_executor("slurm")


def test_reports_are_small_enough_to_send(tmp_path: Path):
    from pipelines.attempt import run_attempt

    worker = FailingWorker(RuntimeError("x" * 1_000_000))
    report = run_attempt(worker, tiny_shards(2, tmp_path)[1], "e" * 32, Ledger(RunLayout(tmp_path)))
    assert isinstance(report, AttemptReport)
    assert (len(report.cause), len(report.traceback)) == (500, 20_000)
