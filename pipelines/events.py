"""One JSON line per state change, and the small progress files that workers leave for the driver."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.atomic import naming_full_disk
from pipelines.layout import PROGRESS_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A shard, a worker or the run went from one state to another."""

    name: str  # e.g. attempt_started, committed, attempt_failed, attempt_lost, quarantined, worker_started, worker_died
    shard_id: str = ""
    attempt_id: str = ""
    before: str = ""
    after: str = ""
    cause: str = ""
    exception: str = ""
    node: str = ""


OnEvent = Callable[[Event], None]


def ignore_events(event: Event) -> None:
    """An ``OnEvent`` for callers that do not watch."""


class EventLog:
    """Appends to ``events.jsonl``. Each line is one write, so that several drivers may share a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._host = socket.gethostname()

    def __call__(self, event: Event) -> None:
        fields = {key: value for key, value in asdict(event).items() if value}
        line = json.dumps({"time_us": time.time_ns() // 1000, "host": self._host, "pid": os.getpid(), **fields}, sort_keys=True)
        with naming_full_disk(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, (line + "\n").encode())
            finally:
                os.close(descriptor)


def report_progress(attempt_folder: Path, frames_done: int, frames_total: int) -> None:
    """Called by a worker: leaves the number of finished frames where the driver looks for it."""
    temporary = attempt_folder / f".{PROGRESS_NAME}.tmp"
    temporary.write_text(json.dumps({"frames_done": frames_done, "frames_total": frames_total}))
    os.replace(temporary, attempt_folder / PROGRESS_NAME)


def read_progress(attempt_folder: Path) -> tuple[int, int]:
    """Frames done and in all of one attempt; zeros before its first report."""
    try:
        stored = json.loads((attempt_folder / PROGRESS_NAME).read_text())
        return int(stored["frames_done"]), int(stored["frames_total"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0
