"""The ledger: plain files that say which shards are done. Execution is at least once, visibility exactly once.

An attempt writes below ``data/<shard>/<attempt>/``; nobody reads it until ``commits/<shard>.json`` names its files. That
record is created only if absent, so of several attempts at one shard exactly one becomes visible, whoever dies when.
"""

from __future__ import annotations

import errno
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dwm.errors import InputError
from pipelines.atomic import (
    create_if_absent,
    fsync_file,
    fsync_folder,
    naming_full_disk,
    read_json,
    readable_json,
    sha256_file,
    write_atomic,
)
from pipelines.inspection import FileFacts, inspect_file
from pipelines.layout import PROGRESS_NAME, RunLayout, check_id, inside


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at one shard, with a folder of its own."""

    shard_id: str
    attempt_id: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedFile:
    """One file of a committed shard."""

    path: str  # POSIX, relative to the run folder
    bytes: int
    sha256: str
    n_rows: int | None = None
    n_frames: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """Everything readers may rely on about one shard."""

    shard_id: str
    attempt_id: str
    outcome: str  # generated | rejected (the scenario could not be made; `detail` says why)
    detail: str = ""
    shard: dict[str, Any]  # the planned shard
    files: tuple[CommittedFile, ...]
    n_frames: int
    timings_s: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failed_attempts: int = 0
    host: str
    committed_us: int
    run: dict[str, Any] = field(default_factory=dict)  # run_id, git_commit, config_sha256

    def file(self, name: str) -> CommittedFile | None:
        """The file of this shard with the given path below the attempt folder."""
        wanted = f"data/{self.shard_id}/{self.attempt_id}/{name}"
        return next((entry for entry in self.files if entry.path == wanted), None)


class Ledger:
    """Reads and writes the ledger of one run folder. Picklable; holds no open files."""

    def __init__(
        self, layout: RunLayout, run: Mapping[str, Any] | None = None, inspect: Callable[[Path], FileFacts] = inspect_file
    ) -> None:
        self.layout, self._run, self._inspect = layout, dict(run or {}), inspect

    def begin(self, shard_id: str, attempt_id: str | None = None) -> Attempt:
        """Makes an empty folder for a new attempt."""
        identity = attempt_id or uuid.uuid4().hex
        folder = self.layout.attempt_folder(shard_id, identity)
        with naming_full_disk(self.layout.root):
            folder.mkdir(parents=True)
        return Attempt(shard_id=shard_id, attempt_id=identity, folder=folder)

    def commit(
        self, attempt: Attempt, shard: Mapping[str, Any], *, outcome: str = "generated", detail: str = "", n_frames: int = 0,
        timings_s: Mapping[str, float] | None = None, facts: Mapping[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """Verifies the attempt's files and makes them visible. False when another attempt was first: this one is deleted.

        Raises InputError for an unreadable output and DiskFullError for a full disk; nothing is visible then.
        """
        try:
            with naming_full_disk(self.layout.root):
                record = CommitRecord(
                    shard_id=attempt.shard_id, attempt_id=attempt.attempt_id, outcome=outcome, detail=detail, shard=dict(shard),
                    files=self._sealed_files(attempt.folder), n_frames=n_frames, timings_s=dict(timings_s or {}),
                    facts=dict(facts or {}), failed_attempts=self.failures(attempt.shard_id), host=socket.gethostname(),
                    committed_us=_now_us(), run=self._run,
                )  # fmt: skip
                won = create_if_absent(self.layout.commit(attempt.shard_id), readable_json(asdict(record)))
        except BaseException:
            self.discard(attempt.shard_id, attempt.attempt_id)
            raise
        if not won:
            self.discard(attempt.shard_id, attempt.attempt_id)
        return won

    def is_committed(self, shard_id: str) -> bool:
        return self.layout.commit(shard_id).exists()

    def record(self, shard_id: str) -> CommitRecord:
        """The commit record of one shard."""
        return self._read(self.layout.commit(shard_id))

    def committed(self) -> dict[str, CommitRecord]:
        """All commit records by shard id, sorted."""
        return {path.stem: self._read(path) for path in sorted(self.layout.commits.glob("*.json")) if path.name[0] != "."}

    def committed_ids(self) -> set[str]:
        """Ids of committed shards, without opening their records."""
        return {path.stem for path in self.layout.commits.glob("*.json") if path.name[0] != "."}

    def record_failure(self, shard_id: str, attempt_id: str, cause: str, *, counts: bool = True) -> None:
        """Remembers why an attempt failed. Preemptions do not count towards quarantine."""
        entry = {"shard_id": shard_id, "attempt_id": attempt_id, "cause": cause, "counts": counts, "at_us": _now_us()}
        with naming_full_disk(self.layout.root):
            write_atomic(self.layout.failure(shard_id, attempt_id), readable_json(entry))

    def failures(self, shard_id: str) -> int:
        """Failed attempts that count."""
        folder = self.layout.attempts / check_id(shard_id)
        return sum(bool(read_json(path).get("counts", True)) for path in folder.glob("*.json") if path.name[0] != ".")

    def quarantine(self, shard_id: str, traceback: str, attempts: int, cause: str = "") -> None:
        """Takes a shard out of the run. Deleting the file, and its folder in ``attempts/``, puts it back."""
        entry = {"shard_id": shard_id, "cause": cause, "traceback": traceback, "attempts": attempts, "at_us": _now_us()}
        with naming_full_disk(self.layout.root):
            write_atomic(self.layout.quarantined(shard_id), readable_json(entry))

    def quarantined(self) -> dict[str, dict[str, Any]]:
        """Quarantine records by shard id."""
        return {path.stem: read_json(path) for path in sorted(self.layout.quarantine.glob("*.json")) if path.name[0] != "."}

    def discard(self, shard_id: str, attempt_id: str) -> None:
        """Deletes an attempt's folder, unless it is the committed one."""
        if not self._is_winner(shard_id, attempt_id):
            folder = self.layout.attempt_folder(shard_id, attempt_id)
            shutil.rmtree(folder, ignore_errors=True)
            _remove_if_empty(folder.parent)

    def orphans(self) -> list[Path]:
        """Attempt folders that no commit names: running, or left by a death."""
        found = [path for path in sorted(self.layout.data.glob("*/*")) if path.is_dir() and not path.is_symlink()]
        return [path for path in found if not self._is_winner(path.parent.name, path.name)]

    def collect_garbage(self, older_than_s: float = 86_400.0) -> list[Path]:
        """Deletes orphans whose newest file is older than the given age and returns them."""
        horizon = time.time() - older_than_s
        old = [path for path in self.orphans() if _newest_s(path) <= horizon]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
            _remove_if_empty(path.parent)
        return old

    def _is_winner(self, shard_id: str, attempt_id: str) -> bool:
        path = self.layout.commit(shard_id)
        # Content, not existence: network file systems cache directory attributes.
        return path.exists() and read_json(path).get("attempt_id") == attempt_id

    def _sealed_files(self, folder: Path) -> tuple[CommittedFile, ...]:
        """Flushes, re-opens, inspects and hashes every file of an attempt."""
        for leftover in (folder / PROGRESS_NAME, folder / f".{PROGRESS_NAME}.tmp"):
            leftover.unlink(missing_ok=True)
        paths = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
        for path in paths:
            if path.is_symlink() or not path.is_file():
                raise InputError(path, "an output is not a regular file", "write plain files only")
            fsync_file(path)
        for directory in {path.parent for path in paths} | {folder, folder.parent}:
            fsync_folder(directory)
        return tuple(self._sealed_file(path) for path in paths)

    def _sealed_file(self, path: Path) -> CommittedFile:
        facts = self._inspect(path)
        return CommittedFile(
            path=path.relative_to(self.layout.root).as_posix(), bytes=path.stat().st_size, sha256=sha256_file(path),
            n_rows=facts.n_rows, n_frames=facts.n_frames,
        )  # fmt: skip

    def _read(self, path: Path) -> CommitRecord:
        try:
            stored = read_json(path)
            files = tuple(CommittedFile(**entry) for entry in stored.pop("files"))
            record = CommitRecord(**stored, files=files)
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(path, f"not a commit record ({error})", "delete it and run again") from error
        if check_id(record.shard_id, path) != path.stem:
            raise InputError(path, f"the record is for shard {record.shard_id}", "delete it and run again")
        check_id(record.attempt_id, path)
        for entry in record.files:
            inside(self.layout.root, entry.path, path)
        return record


def _now_us() -> int:
    return time.time_ns() // 1000


def _newest_s(folder: Path) -> float:
    times = []
    for path in (folder, *folder.rglob("*")):
        try:
            times.append(path.lstat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times, default=time.time())


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST):
            raise
