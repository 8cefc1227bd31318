"""Where everything lies in a run folder. The run folder is also the root of the published dataset."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dwm.errors import InputError

PROGRESS_NAME = "progress.json"
_SHARD_ID = re.compile(r"[0-9a-f]{32}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_id(identity: str, where: str | Path = "ledger") -> str:
    """A shard or attempt id: 32 lower-case hex digits, so that it can never be a path."""
    if not _SHARD_ID.fullmatch(identity):
        raise InputError(where, f"'{identity}' is not an id of 32 hex digits", "use the ids listed by `roadreel plan`")
    return identity


def inside(root: Path, relative: str, where: str | Path) -> Path:
    """``root / relative`` for a POSIX path that stays below ``root``; InputError for any other."""
    pure = PurePosixPath(relative)
    bad = not relative or pure.is_absolute() or ".." in pure.parts or "\\" in relative or "\0" in relative
    path = root / pure
    if bad or not path.resolve().is_relative_to(root.resolve()):
        raise InputError(where, f"path '{relative}' leaves {root}", "the record is damaged: delete it and run again")
    return path


@dataclass(frozen=True, slots=True)
class VersionLayout:
    """One published version; immutable once ``_SUCCESS.json`` exists."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder.parent.parent

    @property
    def dataset_json(self) -> Path:
        return self.folder / "dataset.json"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.parquet"

    @property
    def success(self) -> Path:
        return self.folder / "_SUCCESS.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def table(self, name: str) -> Path:
        return self.folder / "tables" / name / "part-00000.parquet"


@dataclass(frozen=True, slots=True)
class RunLayout:
    """One run: its plan, ledger, data and versions."""

    root: Path

    @property
    def run_json(self) -> Path:
        return self.root / "run.json"

    @property
    def plan_json(self) -> Path:
        return self.root / "plan.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def progress(self) -> Path:
        return self.root / PROGRESS_NAME

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def commits(self) -> Path:
        return self.root / "commits"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    @property
    def versions(self) -> Path:
        return self.root / "versions"

    @property
    def latest(self) -> Path:
        return self.root / "LATEST"

    def attempt_folder(self, shard_id: str, attempt_id: str) -> Path:
        return self.data / check_id(shard_id) / check_id(attempt_id)

    def commit(self, shard_id: str) -> Path:
        return self.commits / f"{check_id(shard_id)}.json"

    def quarantined(self, shard_id: str) -> Path:
        return self.quarantine / f"{check_id(shard_id)}.json"

    def failure(self, shard_id: str, attempt_id: str) -> Path:
        return self.attempts / check_id(shard_id) / f"{check_id(attempt_id)}.json"

    def version(self, name: str) -> VersionLayout:
        if not _VERSION.fullmatch(name):
            raise InputError(self.versions, f"'{name}' is not a version name", "use letters, digits, '.', '_' and '-'")
        return VersionLayout(self.versions / name)
