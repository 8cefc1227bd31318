"""Publishes what is committed as an immutable dataset version.

Reads commit records only. The version is named after the set of commits, so publishing again with nothing new changes
nothing. A version is built aside, moved into place as a whole, and counts from the moment ``_SUCCESS.json`` exists.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from dwm.errors import InputError
from dwm.scenes.types import CAMERAS, DETECTION_CLASSES
from pipelines.atomic import (
    canonical_json,
    create_if_absent,
    fsync_file,
    fsync_folder,
    naming_full_disk,
    read_json,
    readable_json,
    sha256_file,
    write_atomic,
)
from pipelines.layout import RunLayout, VersionLayout, inside
from pipelines.ledger import CommitRecord, Ledger
from pipelines.schema import PART_TABLES, SCHEMA_VERSION, TABLES, read_table, table_from_rows, write_arrow, write_table

CONVENTIONS = {
    "frames": "global, ego (x forward, y left, z up), camera (x right, y down, z forward), as nuScenes",
    "transforms": "<from>_to_<to>, 4x4 row major, applied to column vectors", "quaternions": "w,x,y,z",
    "units": "metres, seconds, radians; times in microseconds",
}  # fmt: skip


# From the merged tables of a version to `metrics` rows of the dataset as a whole (their clip_id is null).
DatasetMetrics = Callable[[dict[str, pa.Table]], list[dict[str, Any]]]


def publish(run_root: Path, version_name: str | None = None, dataset_metrics: DatasetMetrics | None = None) -> Path:
    """Makes a version of all committed shards and points LATEST at it; returns the version's folder.

    ``dataset_metrics`` is asked only when a version is built: what it says must follow from the committed shards.
    Raises InputError when nothing is committed, or when ``version_name`` is taken by other commits.
    """
    layout = RunLayout(run_root)
    records = list(Ledger(layout).committed().values())
    if not records:
        raise InputError(run_root, "no committed shards", "run `roadreel generate` first")
    digest = _commits_sha256(records)
    version = layout.version(version_name or f"v-{digest[:8]}")
    with naming_full_disk(run_root):
        if not version.dataset_json.exists():
            _build(layout, version, records, digest, dataset_metrics)
        if read_json(version.dataset_json)["commits_sha256"] != digest:
            raise InputError(version.folder, "this version holds other shards", "choose another version name")
        _seal(version)
        if not layout.latest.exists() or layout.latest.read_text().strip() != version.folder.name:
            write_atomic(layout.latest, f"{version.folder.name}\n".encode())
    return version.folder


def _commits_sha256(records: Iterable[CommitRecord]) -> str:
    winners = [[record.shard_id, record.attempt_id] for record in records]
    return hashlib.sha256(canonical_json([SCHEMA_VERSION, winners])).hexdigest()


def _build(
    layout: RunLayout, version: VersionLayout, records: list[CommitRecord], digest: str, dataset_metrics: DatasetMetrics | None
) -> None:
    layout.versions.mkdir(parents=True, exist_ok=True)
    building = VersionLayout(layout.versions / f".building-{uuid.uuid4().hex}")
    try:
        counts = _write_tables(layout, building, records, dataset_metrics)
        _write_manifest(building, version, records, counts)
        building.dataset_json.write_bytes(readable_json(_dataset_facts(layout, version, records, digest, counts)))
        for path in (building.manifest, building.dataset_json):
            fsync_file(path)
        fsync_folder(building.folder)
        _move_into_place(building.folder, version)
        fsync_folder(layout.versions)
    finally:
        shutil.rmtree(building.folder, ignore_errors=True)


def _move_into_place(built: Path, version: VersionLayout) -> None:
    try:
        built.rename(version.folder)
    except OSError:
        # A publisher of the same commits was first: its content is as good.
        if not version.dataset_json.exists():
            raise


def _seal(version: VersionLayout) -> None:
    hashes = {"dataset.json": sha256_file(version.dataset_json), "manifest.parquet": sha256_file(version.manifest)}
    if not create_if_absent(version.success, readable_json(hashes)):
        fix = "delete the version's folder and publish again"
        raise InputError(version.success, "the version was changed after publication", fix)


def _write_tables(
    layout: RunLayout, building: VersionLayout, records: list[CommitRecord], dataset_metrics: DatasetMetrics | None
) -> dict[str, int]:
    tables = {name: _merged(layout, name, records) for name in PART_TABLES}
    tables["clips"] = _with_baselines(tables["clips"])
    if dataset_metrics is not None:
        tables["metrics"] = pa.concat_tables([tables["metrics"], table_from_rows("metrics", dataset_metrics(tables))])
    counts = {name: write_arrow(name, table, building.table(name)) for name, table in tables.items()}
    counts["shards"] = write_table("shards", [_shard_row(record) for record in records], building.table("shards"))
    counts["runs"] = write_table("runs", [_run_row(layout)], building.table("runs"))
    for name in TABLES:
        fsync_file(building.table(name))
        fsync_folder(building.table(name).parent)
    return counts


def _merged(layout: RunLayout, name: str, records: list[CommitRecord]) -> pa.Table:
    parts = []
    for record in records:
        entry = record.file(f"tables/{name}.parquet")
        if entry is not None:
            path = inside(layout.root, entry.path, layout.commit(record.shard_id))
            parts.append(_completed(name, _conforming(name, read_table(path), path), record))
    return pa.concat_tables(parts) if parts else TABLES[name].empty_table()


def _conforming(name: str, part: pa.Table, path: Path) -> pa.Table:
    if part.schema.names != TABLES[name].names:
        raise InputError(path, f"the columns are not those of table {name} {SCHEMA_VERSION}", "generate the shard again")
    return part.cast(TABLES[name])


def _completed(name: str, part: pa.Table, record: CommitRecord) -> pa.Table:
    """Fills the columns that only the commit knows."""
    if name == "clips":
        part = _set(part, "shard_id", [record.shard_id] * part.num_rows)
        return _set(part, "run_id", [record.run.get("run_id")] * part.num_rows)
    if name != "videos":
        return part
    files = [_video_file(record, uri) for uri in part.column("uri").to_pylist()]
    part = _set(part, "uri", [entry.path for entry in files])
    part = _set(part, "bytes", [entry.bytes for entry in files])
    return _set(part, "sha256", [entry.sha256 for entry in files])


def _video_file(record: CommitRecord, uri: str) -> Any:
    entry = record.file(uri)
    if entry is None:
        problem = f"its videos table names '{uri}', which it did not write"
        raise InputError(f"shard {record.shard_id}", problem, "delete its commit record and generate again")
    return entry


def _set(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    index = table.schema.get_field_index(column)
    field = table.schema.field(index)
    return table.set_column(index, field, pa.array(values, type=field.type))


def _with_baselines(clips: pa.Table) -> pa.Table:
    """Points each clip at the unperturbed clip of the same scene, window and seed, where there is one."""
    rows = clips.select(["clip_id", "source_scene_token", "start_us", "n_frames", "seed", "is_source"]).to_pylist()
    keys = [(row["source_scene_token"], row["start_us"], row["n_frames"], row["seed"]) for row in rows]
    baselines = {key: row["clip_id"] for key, row in zip(keys, rows, strict=True) if row["is_source"]}
    return _set(clips, "baseline_clip_id", [baselines.get(key) for key in keys])


def _shard_row(record: CommitRecord) -> dict[str, Any]:
    perturbation = record.shard.get("perturbation") or {}
    return {
        "shard_id": record.shard_id, "attempt_id": record.attempt_id, "outcome": record.outcome, "detail": record.detail,
        "scene_name": record.shard.get("scene_name"), "perturbation": perturbation.get("name"),
        "seed": record.shard.get("seed"),
        "n_frames": record.n_frames, "bytes": sum(entry.bytes for entry in record.files),
        "failed_attempts": record.failed_attempts, "wall_s": record.timings_s.get("wall"),
        "timings_json": json.dumps(record.timings_s, sort_keys=True), "facts_json": json.dumps(record.facts, sort_keys=True),
        "host": record.host, "committed_us": record.committed_us, "run_id": record.run.get("run_id"),
        "git_commit": record.run.get("git_commit"), "config_sha256": record.run.get("config_sha256"),
    }  # fmt: skip


def _run_row(layout: RunLayout) -> dict[str, Any]:
    run: Mapping[str, Any] = read_json(layout.run_json) if layout.run_json.exists() else {}
    return {
        "run_id": run.get("run_id"), "started_us": run.get("started_us"), "ended_us": time.time_ns() // 1000,
        "git_commit": run.get("git_commit"), "dirty": run.get("dirty"), "config_yaml": run.get("config_yaml"),
        "config_sha256": run.get("config_sha256"),
        "weights_sha256_json": json.dumps(run.get("weights_sha256", {}), sort_keys=True),
        "generator_version": run.get("generator_version"), "seed_policy": run.get("seed_policy"),
        "package_versions_json": json.dumps(run.get("packages", {}), sort_keys=True),
    }  # fmt: skip


def _write_manifest(
    building: VersionLayout, version: VersionLayout, records: list[CommitRecord], counts: dict[str, int]
) -> None:
    """One row per file, paths relative to the dataset root."""
    rows: list[dict[str, Any]] = [
        {**asdict(entry), "kind": _kind(entry.path), "shard_id": record.shard_id}
        for record in records
        for entry in record.files
    ]
    for name, n_rows in counts.items():
        path, final = building.table(name), version.table(name).relative_to(version.root).as_posix()
        size, sha = path.stat().st_size, sha256_file(path)
        rows.append({"path": final, "kind": "table", "bytes": size, "sha256": sha, "n_rows": n_rows})
    write_arrow("manifest", table_from_rows("manifest", rows), building.manifest)


def _kind(path: str) -> str:
    return {"mp4": "video", "parquet": "part"}.get(path.rsplit(".", 1)[-1], "other")


def _dataset_facts(
    layout: RunLayout, version: VersionLayout, records: list[CommitRecord], digest: str, counts: dict[str, int]
) -> dict[str, Any]:
    return {
        "name": layout.root.resolve().name, "version": version.folder.name, "schema_version": SCHEMA_VERSION,
        "created_us": time.time_ns() // 1000, "commits_sha256": digest, "rows": counts,
        "shards": {
            "committed": len(records), "rejected": sum(record.outcome == "rejected" for record in records),
            "quarantined": len(Ledger(layout).quarantined()),
        },
        "paths": {"tables": f"versions/{version.folder.name}/tables/<table>/part-00000.parquet", "videos": "videos.uri"},
        "conventions": CONVENTIONS, "cameras": list(CAMERAS), "detection_classes": list(DETECTION_CLASSES),
    }  # fmt: skip
