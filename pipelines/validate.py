"""Checks a published dataset. Level 0: files are there; 1: tables are sound; 2: every byte and sample frames.

Findings are data: a damaged dataset gives a list, never an exception, unless it cannot be opened at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from dwm.errors import InputError
from dwm.scenes.types import CAMERAS, DETECTION_CLASSES
from pipelines.atomic import read_json, sha256_file
from pipelines.dataset import resolve_version
from pipelines.layout import VersionLayout, inside
from pipelines.schema import MANIFEST, TABLES, read_table

LABEL_SOURCES = ("log", "interpolated", "transformed", "simulated", "detected")
_KEYS: dict[str, tuple[str, ...]] = {
    "clips": ("clip_id",), "videos": ("clip_id", "channel", "stream"), "camera_frames": ("clip_id", "channel", "frame_index"),
    "ego_poses": ("clip_id", "path", "frame_index"), "shards": ("shard_id",),
}  # fmt: skip
_OF_CLIPS = ("videos", "camera_frames", "ego_poses", "boxes", "map_elements", "metrics")
Tables = dict[str, pa.Table]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    level: int
    check: str  # a short slug
    where: str
    problem: str

    def __str__(self) -> str:
        return f"L{self.level} {self.check}: {self.where}: {self.problem}"


def validate(path: Path, level: int = 1) -> list[Finding]:
    """Findings of all levels up to ``level`` (0 to 2); empty for a sound dataset. InputError when there is no version."""
    if level not in (0, 1, 2):
        raise InputError("--level", f"{level} is not a level of this version", "use 0, 1 or 2")
    version = resolve_version(path)
    findings = list(_seal(version))
    if any(finding.check == "missing" for finding in findings):
        return findings
    manifest, problems = _manifest(version)
    findings += problems + list(_files(version, manifest))
    if level >= 1:
        tables, problems = _load_tables(version)
        findings += problems
        if len(tables) == len(TABLES):
            for check in _TABLE_CHECKS:
                findings += check(tables)
    if level >= 2:
        findings += _bytes_and_frames(version, manifest)
    return findings


def _seal(version: VersionLayout) -> Iterator[Finding]:
    for path in (version.success, version.dataset_json, version.manifest):
        if not path.is_file():
            yield Finding(level=0, check="missing", where=str(path), problem="no such file")
    if not version.success.is_file():
        return
    for name, sha in read_json(version.success).items():
        path = version.folder / name
        if path.is_file() and sha256_file(path) != sha:
            yield Finding(level=0, check="sha256", where=str(path), problem="changed after publication")


def _manifest(version: VersionLayout) -> tuple[list[dict], list[Finding]]:
    try:
        table = read_table(version.manifest)
    except InputError as error:
        return [], [Finding(level=0, check="unreadable", where=str(version.manifest), problem=error.problem)]
    if table.schema.names != MANIFEST.names:
        return [], [Finding(level=0, check="schema", where=str(version.manifest), problem="columns differ from the schema")]
    return table.to_pylist(), []


def _files(version: VersionLayout, manifest: list[dict]) -> Iterator[Finding]:
    for entry in manifest:
        try:
            path = inside(version.root, entry["path"], version.manifest)
        except InputError as error:
            yield Finding(level=0, check="path", where=entry["path"], problem=error.problem)
            continue
        if not path.is_file():
            yield Finding(level=0, check="missing", where=entry["path"], problem="no such file")
        elif path.stat().st_size != entry["bytes"]:
            problem = f"{path.stat().st_size} bytes, manifest says {entry['bytes']}"
            yield Finding(level=0, check="bytes", where=entry["path"], problem=problem)


def _load_tables(version: VersionLayout) -> tuple[Tables, list[Finding]]:
    tables: Tables = {}
    findings = []
    for name, schema in TABLES.items():
        try:
            table = read_table(version.table(name))
        except InputError as error:
            findings.append(Finding(level=1, check="unreadable", where=name, problem=error.problem))
            continue
        if not table.schema.equals(schema):
            findings.append(Finding(level=1, check="schema", where=name, problem="columns or types differ from the schema"))
        else:
            tables[name] = table
    return tables, findings


def _unique_keys(tables: Tables) -> Iterator[Finding]:
    for name, keys in _KEYS.items():
        table = tables[name].select(list(keys))
        nulls = [key for key in keys if table.column(key).null_count]
        if nulls:
            yield Finding(level=1, check="null_key", where=name, problem=f"null in {', '.join(nulls)}")
        distinct = table.group_by(list(keys)).aggregate([]).num_rows
        if distinct != table.num_rows:
            yield Finding(level=1, check="duplicate_key", where=name, problem=f"{table.num_rows - distinct} rows repeat {keys}")


def _foreign_keys(tables: Tables) -> Iterator[Finding]:
    clips, shards = set(tables["clips"].column("clip_id").to_pylist()), set(tables["shards"].column("shard_id").to_pylist())
    checks = [(name, tables[name].column("clip_id"), clips) for name in _OF_CLIPS]
    checks.append(("clips.shard_id", tables["clips"].column("shard_id"), shards))
    checks.append(("clips.baseline_clip_id", tables["clips"].column("baseline_clip_id"), clips | {None}))
    for where, column, targets in checks:
        # Metrics of the whole dataset belong to no clip.
        allowed = targets | {None} if where == "metrics" else targets
        unknown = [value for value in column.unique().to_pylist() if value not in allowed]
        if unknown:
            problem = f"{unknown[0]!r} names no row of the table it points to ({len(unknown)} such)"
            yield Finding(level=1, check="foreign_key", where=where, problem=problem)


def _frame_counts(tables: Tables) -> Iterator[Finding]:
    expected = {row["clip_id"]: row["n_frames"] for row in tables["clips"].select(["clip_id", "n_frames"]).to_pylist()}
    columns = ["clip_id", "channel", "stream", "n_frames", "first_frame", "frame_step"]
    for row in tables["videos"].select(columns).to_pylist():
        if row["clip_id"] not in expected:
            continue  # told as a foreign key
        first, step, total = row["first_frame"], row["frame_step"], expected[row["clip_id"]]
        if first is None or not step or first < 0 or step < 0 or row["n_frames"] != len(range(first, total, step)):
            problem = f"{row['n_frames']} frames, from frame {first} on every {step} of the clip's {total}"
            yield Finding(
                level=1, check="n_frames", where=f"videos {row['clip_id']} {row['channel']} {row['stream']}", problem=problem
            )
    frames = tables["camera_frames"].group_by(["clip_id", "channel"])
    counts = frames.aggregate([("frame_index", "count"), ("frame_index", "max")])
    for row in counts.to_pylist():
        wanted = expected.get(row["clip_id"], row["frame_index_count"])
        if row["frame_index_count"] != wanted or row["frame_index_max"] != wanted - 1:
            problem = f"{row['frame_index_count']} rows up to index {row['frame_index_max']}, the clip has {wanted} frames"
            yield Finding(level=1, check="n_frames", where=f"camera_frames {row['clip_id']} {row['channel']}", problem=problem)


def _times_increase(tables: Tables) -> Iterator[Finding]:
    for name, group in (("camera_frames", "channel"), ("ego_poses", "path")):
        table = tables[name]
        keys = _labels(table, "", "clip_id", group)
        times = table.column("timestamp_us").to_numpy()
        same = np.array([a == b for a, b in itertools.pairwise(keys)], dtype=bool)
        # Published rows are sorted by frame index inside a clip and channel.
        for index in np.flatnonzero(same & (np.diff(times) <= 0))[:5]:
            problem = f"{times[index + 1]} follows {times[index]}"
            yield Finding(level=1, check="time_order", where=f"{name} {keys[index]}", problem=problem)


def _geometry(tables: Tables) -> Iterator[Finding]:
    frames = tables["camera_frames"]
    where = _labels(frames, "camera_frames ", "clip_id", "channel")
    for column in ("camera_to_ego", "ego_to_global"):
        matrices = _matrices(frames.column(column), 4)
        rotation = matrices[:, :3, :3]
        orthonormal = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0.0) < 1e-6
        right = orthonormal & (np.abs(np.linalg.det(rotation) - 1) < 1e-6) & np.isfinite(matrices).all(axis=(1, 2))
        right &= (matrices[:, 3] == [0, 0, 0, 1]).all(axis=1)
        yield from _first_bad(right, where, "transform", f"{column} is not rigid")
    k = _matrices(frames.column("intrinsics"), 3)
    yield from _first_bad((k[:, 0, 0] > 0) & (k[:, 1, 1] > 0) & (k[:, 2, 2] == 1), where, "intrinsics", "no pinhole camera")


def _matrices(column: pa.ChunkedArray, size: int) -> np.ndarray:
    if column.null_count:
        return np.full((len(column), size, size), np.nan)
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, size, size)


def _boxes(tables: Tables) -> Iterator[Finding]:
    boxes = tables["boxes"]
    where = _labels(boxes, "boxes ", "clip_id", "frame_index")
    columns = ("size_l", "size_w", "size_h", "center_x", "center_y", "center_z", "yaw")
    numbers = np.array([boxes.column(name).to_numpy() for name in columns], dtype=np.float64)
    yield from _first_bad((numbers[:3] > 0).all(axis=0), where, "box_size", "a size is not positive")
    finite = np.isfinite(numbers).all(axis=0)
    yield from _first_bad(finite, where, "box_finite", "a coordinate is not finite")
    for column, allowed in (("label_source", LABEL_SOURCES), ("detection_class", (*DETECTION_CLASSES, None))):
        values = boxes.column(column).to_pylist()
        yield from _first_bad(np.array([v in allowed for v in values], dtype=bool), where, column, f"not one of {allowed}")
    channels = tables["videos"].column("channel").cast(pa.string()).unique().to_pylist()
    for channel in set(channels) - set(CAMERAS):
        yield Finding(level=1, check="channel", where="videos", problem=f"{channel} is not a camera of the rig")


def _labels(table: pa.Table, prefix: str, first: str, second: str) -> list[str]:
    pairs = zip(table.column(first).to_pylist(), table.column(second).to_pylist(), strict=True)
    return [f"{prefix}{a}/{b}" for a, b in pairs]


def _first_bad(good: np.ndarray, where: list[str], check: str, problem: str) -> Iterator[Finding]:
    bad = np.flatnonzero(~good)
    if len(bad):
        yield Finding(level=1, check=check, where=where[bad[0]], problem=f"{problem} ({len(bad)} rows)")


_TABLE_CHECKS: tuple[Callable[[Tables], Iterator[Finding]], ...] = (
    _unique_keys, _foreign_keys, _frame_counts, _times_increase, _geometry, _boxes,
)  # fmt: skip


def _bytes_and_frames(version: VersionLayout, manifest: list[dict]) -> list[Finding]:
    findings = []
    for entry in tqdm(manifest, desc="validate", unit="file", disable=None, leave=False):
        try:
            path = inside(version.root, entry["path"], version.manifest)
            if path.is_file():
                findings += _content(path, entry)
        except InputError as error:
            findings.append(Finding(level=2, check="unreadable", where=entry["path"], problem=error.problem))
    return findings


def _content(path: Path, entry: dict) -> list[Finding]:
    from pipelines.video import check_video

    if sha256_file(path) != entry["sha256"]:
        return [Finding(level=2, check="sha256", where=entry["path"], problem="content differs from the manifest")]
    if entry["kind"] == "video" and (frames := check_video(path, middle=True)) != entry["n_frames"]:
        problem = f"{frames} frames decode, manifest says {entry['n_frames']}"
        return [Finding(level=2, check="n_frames", where=entry["path"], problem=problem)]
    return []
