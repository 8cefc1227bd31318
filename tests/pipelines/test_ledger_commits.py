from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from dwm.errors import InputError
from pipelines import atomic
from pipelines.atomic import DiskFullError, create_if_absent
from pipelines.attempt import run_attempt
from pipelines.layout import RunLayout, inside
from pipelines.ledger import Ledger
from tests.pipelines.ledger_race import race
from tests.pipelines.pipeline_factories import TextWorker, tiny_shards

IDS = [f"{number:032x}" for number in range(20)]


def _commit(ledger: Ledger, shard_id: str, text: str = "x") -> bool:
    attempt = ledger.begin(shard_id)
    (attempt.folder / "out.txt").write_text(text)
    return ledger.commit(attempt, {"seed": 1}, n_frames=3)


def test_of_two_processes_racing_over_every_shard_exactly_one_wins_each(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    processes = [context.Process(target=race, args=(str(tmp_path), IDS, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    ledger = Ledger(RunLayout(tmp_path))
    records = ledger.committed()
    assert sorted(records) == IDS
    # Losers deleted their folders: one attempt folder per shard is left, the committed one.
    assert ledger.orphans() == []
    folders = sorted((tmp_path / "data").glob("*/*"))
    assert [(f.parent.name, f.name) for f in folders] == [(r.shard_id, r.attempt_id) for r in records.values()]
    for record in records.values():
        path = tmp_path / record.files[0].path
        assert atomic.sha256_file(path) == record.files[0].sha256


def test_create_if_absent_tells_the_first_writer_from_the_second(tmp_path: Path):
    assert create_if_absent(tmp_path / "a.json", b"first") is True
    assert create_if_absent(tmp_path / "a.json", b"second") is False
    assert (tmp_path / "a.json").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_commit_names_every_file_with_its_size_and_hash(tmp_path: Path):
    ledger = Ledger(RunLayout(tmp_path), run={"run_id": "r1"})
    assert _commit(ledger, IDS[0], "hello")
    record = ledger.record(IDS[0])
    (entry,) = record.files
    assert entry.path == f"data/{IDS[0]}/{record.attempt_id}/out.txt"
    assert (entry.bytes, entry.sha256[:8]) == (5, "2cf24dba")
    assert (record.n_frames, record.run) == (3, {"run_id": "r1"})
    assert record.file("out.txt") == entry
    assert record.file("other.txt") is None


def test_the_loser_of_a_shard_leaves_nothing(tmp_path: Path):
    ledger = Ledger(RunLayout(tmp_path))
    assert _commit(ledger, IDS[0], "winner")
    assert not _commit(ledger, IDS[0], "loser")
    assert [p.read_text() for p in (tmp_path / "data").rglob("out.txt")] == ["winner"]


def test_an_output_that_fails_inspection_is_never_committed(tmp_path: Path):
    ledger = Ledger(RunLayout(tmp_path))
    attempt = ledger.begin(IDS[0])
    (attempt.folder / "clips.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="unreadable Parquet"):
        ledger.commit(attempt, {})
    assert not ledger.is_committed(IDS[0])
    assert ledger.orphans() == []


def test_a_symlink_among_the_outputs_is_refused(tmp_path: Path):
    ledger = Ledger(RunLayout(tmp_path))
    attempt = ledger.begin(IDS[0])
    (attempt.folder / "out.txt").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="not a regular file"):
        ledger.commit(attempt, {})


@pytest.mark.parametrize("where", ["write", "link", "worker"])
def test_a_full_disk_leaves_nothing_visible_and_says_what_to_do(tmp_path: Path, monkeypatch, where: str):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    ledger = Ledger(RunLayout(tmp_path))
    (shard,) = tiny_shards(1, tmp_path)
    worker = TextWorker()
    if where == "worker":
        monkeypatch.setattr(worker, "run", full, raising=False)
    else:
        monkeypatch.setattr(atomic.os, {"write": "fsync", "link": "link"}[where], full)
    report = run_attempt(worker, shard, "e" * 32, ledger)
    assert report.status == "disk_full"
    assert f"{tmp_path}: no space left; free space or choose another out folder" in report.cause
    monkeypatch.undo()
    assert ledger.committed() == {}
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_disk_full_keeps_its_kind_when_it_is_sent_between_processes():
    error = pickle.loads(pickle.dumps(DiskFullError("/x", "no space left", "free space")))
    assert isinstance(error, DiskFullError)
    assert str(error) == "/x: no space left; free space"


def test_preemptions_are_remembered_but_not_counted(tmp_path: Path):
    ledger = Ledger(RunLayout(tmp_path))
    ledger.record_failure(IDS[0], IDS[1], "boom")
    ledger.record_failure(IDS[0], IDS[2], "node drained", counts=False)
    assert ledger.failures(IDS[0]) == 1
    assert ledger.failures(IDS[5]) == 0
    assert len(list((tmp_path / "attempts" / IDS[0]).iterdir())) == 2


def test_garbage_collection_spares_commits_and_young_attempts(tmp_path: Path):
    ledger = Ledger(RunLayout(tmp_path))
    _commit(ledger, IDS[0])
    old, young = ledger.begin(IDS[1]), ledger.begin(IDS[2])
    for path in (old.folder, *(tmp_path / "data" / IDS[0]).rglob("*")):
        os.utime(path, (time.time() - 10_000,) * 2)
    assert ledger.orphans() == [old.folder, young.folder]
    assert ledger.collect_garbage(older_than_s=5_000) == [old.folder]
    assert ledger.orphans() == [young.folder]
    assert len(list((tmp_path / "data" / IDS[0]).rglob("out.txt"))) == 1


@pytest.mark.parametrize("identity", ["", "../evil", "A" * 32, "0" * 31, "0" * 33, "/" + "0" * 31])
def test_ids_that_could_be_paths_are_refused(tmp_path: Path, identity: str):
    with pytest.raises(InputError, match="not an id"):
        Ledger(RunLayout(tmp_path)).begin(identity)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "data/../../secret", "", "a\\b", "link/secret"])
def test_a_commit_record_that_points_outside_the_run_is_refused(tmp_path: Path, path: str):
    root = tmp_path / "run"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="leaves"):
        inside(root, path, "x")
    ledger = Ledger(RunLayout(root))
    _commit(ledger, IDS[0])
    record = asdict(ledger.record(IDS[0]))
    record["files"][0]["path"] = path
    ledger.layout.commit(IDS[0]).write_text(json.dumps(record))
    with pytest.raises(InputError, match="leaves"):
        ledger.committed()


def test_a_damaged_commit_record_is_named(tmp_path: Path):
    ledger = Ledger(RunLayout(tmp_path))
    _commit(ledger, IDS[0])
    ledger.layout.commit(IDS[0]).write_text("{")
    with pytest.raises(InputError, match=f"{IDS[0]}.json: not valid JSON"):
        ledger.committed()
