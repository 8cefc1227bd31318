"""One run over a real local Ray: a worker is killed, then the driver, and the same command finishes the work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.layout import RunLayout
from pipelines.ledger import Ledger
from tests.pipelines.pipeline_factories import tiny_shards

REPOSITORY = Path(__file__).parents[2]
# Seed 1 kills its process at the first try and hangs at the second, so that the test can kill the driver meanwhile.
DRIVER = """
import os, signal, sys, time
from pathlib import Path
from pipelines.attempt import ShardResult
from pipelines.config import ExecutionConfig
from pipelines.events import EventLog
from pipelines.executors import get_executor
from pipelines.layout import RunLayout
from pipelines.ledger import Ledger
from tests.pipelines.pipeline_factories import tiny_shards

root = Path(sys.argv[1])

class Worker:
    def run(self, shard, attempt_dir):
        (attempt_dir / "out.txt").write_text(f"seed {shard.seed} threads {os.environ['OMP_NUM_THREADS']}")
        if shard.seed == 1 and not (root / "killed").exists():
            (root / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if shard.seed == 2:
            raise RuntimeError("poison")
        while shard.seed == 1 and not (root / "go").exists():
            time.sleep(0.02)
        return ShardResult(n_frames=4)

layout = RunLayout(root / "run")
settings = ExecutionConfig(executor="ray", workers=2, num_cpus=2, attempts=2)
summary = get_executor("ray")(tiny_shards(4, root), Worker, Ledger(layout), settings, EventLog(layout.events))
print(summary.committed, summary.quarantined, summary.remaining)
"""


def _start(root: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER, str(root)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=pipe, stderr=pipe, text=True)


def _events(root: Path) -> list[dict]:
    path = root / "run" / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _wait_until(ready, driver: subprocess.Popen, timeout_s: float = 240.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not ready():
        assert driver.poll() is None, driver.stderr.read()
        assert time.monotonic() < end_s, "the driver did not get there in time"
        time.sleep(0.05)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen]]:
    """Starts drivers that do not outlive the test."""
    drivers: list[subprocess.Popen] = []

    def start_driver() -> subprocess.Popen:
        drivers.append(_start(tmp_path))
        return drivers[-1]

    yield start_driver
    for driver in drivers:
        driver.kill()
        driver.communicate()


@pytest.mark.timeout(600)
def test_work_survives_the_death_of_a_worker_and_of_the_driver(tmp_path: Path, start: Callable[[], subprocess.Popen]):
    ledger = Ledger(RunLayout(tmp_path / "run"))
    ids = {shard.seed: shard.shard_id for shard in tiny_shards(4, tmp_path)}

    first = start()
    _wait_until(lambda: {ids[0], ids[3]} == ledger.committed_ids() and set(ledger.quarantined()) == {ids[2]}, first)
    _wait_until(lambda: list((tmp_path / "run" / "data" / ids[1]).glob("*/out.txt")), first)  # its second try runs
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    events = _events(tmp_path)
    assert [event["shard_id"] for event in events if event["name"] == "worker_died"] == [ids[1]]
    assert ledger.failures(ids[1]) == 1
    assert ledger.quarantined()[ids[2]]["attempts"] == 2
    assert "RuntimeError: poison" in ledger.quarantined()[ids[2]]["traceback"]

    (tmp_path / "go").touch()
    second = start()
    output, errors = second.communicate(timeout=240)
    assert second.returncode == 0, errors
    # The orphaned worker may have committed in its last moment; then there was nothing left to do.
    assert output in ("1 0 0\n", "0 0 0\n")
    assert sorted(ledger.committed()) == sorted(ids[seed] for seed in (0, 1, 3))
    for record in ledger.committed().values():
        assert (ledger.layout.root / record.files[0].path).read_text() == f"seed {record.shard['seed']} threads 1"
    assert ledger.record(ids[1]).failed_attempts == 1
