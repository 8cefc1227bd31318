"""What a person sees of a run: a bar on a terminal, and ``progress.json`` in the run folder for dashboards."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from tqdm import tqdm

from pipelines.atomic import readable_json, write_atomic
from pipelines.events import Event, read_progress
from pipelines.layout import RunLayout

_COUNTED = ("committed", "rejected", "quarantined")
_ENDED = ("committed", "rejected", "quarantined", "attempt_failed", "attempt_lost", "attempt_superseded")


class RunProgress:
    """Counts events and polls running attempts. Use as a context manager; ``__call__`` takes events."""

    def __init__(self, layout: RunLayout, shards_total: int, shards_done: int, poll_s: float = 1.0) -> None:
        self._layout, self._poll_s = layout, poll_s
        self._total, self._done_before = shards_total, shards_done
        self._counts: dict[str, int] = dict.fromkeys(_COUNTED, 0)
        self._running: dict[str, str] = {}  # attempt -> shard
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._poll, name="progress", daemon=True)
        self._started_s = time.time()
        # None asks tqdm to stay silent unless stderr is a terminal.
        self._bar = tqdm(total=shards_total, initial=shards_done, unit="shard", disable=None, file=sys.stderr, smoothing=0)

    def __enter__(self) -> RunProgress:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._show()
        self._bar.close()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if event.name == "attempt_started":
                self._running[event.attempt_id] = event.shard_id
            elif event.name in _ENDED:
                self._running.pop(event.attempt_id, None)
            if event.name in _COUNTED:
                self._counts[event.name] += 1
                self._bar.update()

    def _poll(self) -> None:
        while not self._stop.wait(self._poll_s):
            self._show()

    def _show(self) -> None:
        with self._lock:
            running, counts = dict(self._running), dict(self._counts)
        frames = [read_progress(self._layout.attempt_folder(shard, attempt)) for attempt, shard in running.items()]
        done, total = sum(f[0] for f in frames), sum(f[1] for f in frames)
        if running:
            self._bar.set_postfix_str(f"{len(running)} running, frame {done}/{total}", refresh=True)
        state = {
            "shards_total": self._total, "shards_done": self._done_before + sum(counts.values()), **counts,
            "running": sorted(running.values()), "frames_running_done": done, "frames_running_total": total,
            "elapsed_s": round(time.time() - self._started_s, 1), "updated_us": time.time_ns() // 1000,
        }  # fmt: skip
        try:
            write_atomic(self._layout.progress, readable_json(state))
        except OSError:
            # A dashboard file must never end a run; a full disk is reported by the attempt that meets it.
            return
