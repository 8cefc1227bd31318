from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dwm.errors import InputError
from pipelines import publish as publishing
from pipelines.config import ExecutionConfig
from pipelines.dataset import Dataset
from pipelines.events import ignore_events
from pipelines.executors.serial import run_serial
from pipelines.layout import RunLayout
from pipelines.ledger import Ledger
from pipelines.publish import publish
from pipelines.schema import BOXES, SCHEMA_VERSION, TABLES, read_table, table_from_rows, write_arrow, write_table
from pipelines.validate import validate
from tests.pipelines.pipeline_factories import CHANNELS, N_FRAMES, ClipWorker, MapWorker, tiny_shards


def _generate(root: Path, n: int, worker: type[ClipWorker] = ClipWorker) -> None:
    run_serial(tiny_shards(n, root), worker, Ledger(RunLayout(root), run={"run_id": "r1"}), ExecutionConfig(), ignore_events)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("dataset") / "run"
    _generate(root, 2)
    publish(root)
    return root


@pytest.fixture
def dataset_root(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "run"))


def _version(root: Path) -> Path:
    return Dataset.open(root).folder


def test_a_published_dataset_is_sound_at_every_level(pristine: Path):
    assert [validate(pristine, level) for level in (0, 1, 2)] == [[], [], []]


def test_publishing_again_changes_nothing_and_a_new_shard_makes_a_new_version(dataset_root: Path):
    first = _version(dataset_root)
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    assert publish(dataset_root) == first
    assert {p: p.stat().st_mtime_ns for p in first.rglob("*")} == before
    _generate(dataset_root, 3)
    second = publish(dataset_root)
    assert second != first
    assert first.is_dir()
    assert Dataset.open(dataset_root).clips().num_rows == 3
    assert Dataset.open(first).clips().num_rows == 2
    assert sorted(p.name for p in (dataset_root / "versions").iterdir()) == sorted([first.name, second.name])


def test_a_publisher_that_died_before_the_seal_is_finished_by_the_next(dataset_root: Path):
    version = _version(dataset_root)
    (version / "_SUCCESS.json").unlink()
    (dataset_root / "LATEST").unlink()
    with pytest.raises(InputError, match="no published version"):
        Dataset.open(dataset_root)
    with pytest.raises(InputError, match="incomplete"):
        Dataset.open(version)
    assert publish(dataset_root) == version
    assert validate(dataset_root, 2) == []


def test_a_publisher_that_dies_while_building_leaves_no_version(tmp_path: Path, monkeypatch):
    _generate(tmp_path, 1)

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(publishing, "_write_manifest", die)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path)
    assert list((tmp_path / "versions").iterdir()) == []
    assert not (tmp_path / "LATEST").exists()


def test_nothing_committed_is_an_input_error(tmp_path: Path):
    with pytest.raises(InputError, match="no committed shards; run `roadreel generate` first"):
        publish(tmp_path)


def test_publication_fills_what_only_the_commit_knows(pristine: Path):
    dataset = Dataset.open(pristine)
    records = Ledger(RunLayout(pristine)).committed()
    for row in dataset.clips().to_pylist():
        assert row["clip_id"] == f"clip-{row['shard_id']}"
        assert row["run_id"] == "r1"
        assert row["baseline_clip_id"] == row["clip_id"]
    for row in dataset.table("videos").to_pylist():
        path = pristine / row["uri"]
        shard = records[row["clip_id"].removeprefix("clip-")]
        assert row["uri"] == f"data/{shard.shard_id}/{shard.attempt_id}/{row['channel']}.mp4"
        assert (row["bytes"], row["sha256"]) == (path.stat().st_size, shard.file(f"{row['channel']}.mp4").sha256)
    timings = [json.loads(row["timings_json"]) for row in dataset.table("shards").to_pylist()]
    assert all(t["generate"] == 0.1 and t["wall"] > 0 for t in timings)


def test_rejected_scenarios_and_clips_keep_their_rows(tmp_path: Path):
    _generate(tmp_path, 2)
    ledger = Ledger(RunLayout(tmp_path))
    shard = tiny_shards(3, tmp_path)[2]
    ledger.commit(ledger.begin(shard.shard_id), asdict(shard), outcome="rejected", detail="too sharp: 0.3 1/m")
    dataset = Dataset(publishing.RunLayout(tmp_path).version(publish(tmp_path).name))
    assert dataset.table("shards", pc.field("outcome") == "rejected").column("detail").to_pylist() == ["too sharp: 0.3 1/m"]
    assert (dataset.clips(keep=False).num_rows, dataset.clips(keep=True).num_rows, dataset.clips().num_rows) == (1, 1, 2)
    assert dataset.info["shards"] == {"committed": 3, "rejected": 1, "quarantined": 0}
    assert validate(tmp_path, 1) == []


def test_metrics_of_the_whole_dataset_are_computed_from_the_merged_tables(tmp_path: Path):
    _generate(tmp_path, 2)

    def mean(tables):
        return [{"metric": "psnr_mean", "value": pc.mean(tables["metrics"].column("value")).as_py(), "unit": "dB"}]

    publish(tmp_path, dataset_metrics=mean)
    (row,) = Dataset.open(tmp_path).table("metrics", pc.field("metric") == "psnr_mean").to_pylist()
    assert (row["clip_id"], row["value"]) == (None, 30.5)
    assert validate(tmp_path, 1) == []


def test_the_reader_gives_the_pixels_that_were_written(pristine: Path):
    dataset = Dataset.open(pristine)
    clip = dataset.clips().column("clip_id")[0].as_py()
    frames = dataset.frames(clip, "CAM_BACK", [3, 0])
    assert frames.shape == (2, 32, 32, 3)
    assert np.abs(frames.astype(int) - np.array([70, 40])[:, None, None, None]).max() <= 4
    rows = dataset.rows("camera_frames", clip, channel="CAM_BACK")
    assert [row["frame_index"] for row in rows] == list(range(N_FRAMES))
    assert rows[2]["ego_to_global"][3] == 2.0


def test_the_reader_gives_map_lines_in_the_ego_frame_of_a_frame(tmp_path: Path):
    _generate(tmp_path / "run", 1, MapWorker)
    publish(tmp_path / "run")
    dataset = Dataset.open(tmp_path / "run")
    clip_id = dataset.clips()["clip_id"][0].as_py()
    seen = dataset.map_labels(clip_id, 3)  # the ego stands at x = 3
    assert sorted(seen) == ["divider", "ped_crossing"]
    assert np.allclose(seen["divider"], [[[-30, 2], [30, 2]]])
    (ring,) = seen["ped_crossing"]
    assert ring.tolist() == [[7, -4], [11, -4], [11, 4], [7, 4], [7, -4]]
    assert dataset.map_labels(clip_id, 3, range_m=(10.0, 30.0), points=20)["divider"][0].shape == (20, 2)
    assert dataset.map_labels(clip_id, 3, range_m=(10.0, 30.0))["ped_crossing"] == []
    with pytest.raises(InputError, match="no frame 99 in clip"):
        dataset.map_labels(clip_id, 99)


def test_reader_errors_name_what_there_is(dataset_root: Path):
    dataset = Dataset.open(dataset_root)
    clip = dataset.clips().column("clip_id")[0].as_py()
    with pytest.raises(InputError, match="use one of: CAM_BACK/rgb, CAM_FRONT/rgb"):
        dataset.video_path(clip, "CAM_TOP")
    with pytest.raises(InputError, match="use a clip_id"):
        dataset.video_path("nope", "CAM_FRONT")
    with pytest.raises(InputError, match="no table 'box'"):
        dataset.table("box")
    with pytest.raises(InputError, match="no such folder"):
        Dataset.open(dataset_root / "nowhere")
    dataset.video_path(clip, "CAM_FRONT").unlink()
    with pytest.raises(InputError, match="the video is missing"):
        dataset.frames(clip, "CAM_FRONT", [0])


def test_a_dataset_of_another_major_schema_is_refused(dataset_root: Path):
    version = _version(dataset_root)
    info = json.loads((version / "dataset.json").read_text())
    (version / "dataset.json").write_text(json.dumps({**info, "schema_version": "2.0.0"}))
    with pytest.raises(InputError, match="changed after publication"):
        Dataset.open(dataset_root)
    (version / "_SUCCESS.json").write_text(json.dumps({"dataset.json": publishing.sha256_file(version / "dataset.json")}))
    with pytest.raises(InputError, match=f"schema 2.0.0 is not readable by this version \\({SCHEMA_VERSION}\\)"):
        Dataset.open(dataset_root)


def test_duckdb_reads_the_tables_and_their_schema_version(pristine: Path):
    tables = _version(pristine) / "tables"
    source = f"'{tables}/clips/*.parquet' c join '{tables}/videos/*.parquet' v using (clip_id)"
    joined = duckdb.sql(f"select c.seed, v.channel from {source} order by all").fetchall()
    assert joined == [(seed, channel) for seed in (0, 1) for channel in sorted(CHANNELS)]
    stored = duckdb.sql(
        f"select value from parquet_kv_metadata('{tables}/boxes/part-00000.parquet') where key = 'roadreel_schema_version'"
    )
    assert stored.fetchall() == [(SCHEMA_VERSION.encode(),)]


def test_rows_are_stored_sorted_with_statistics_that_say_so(tmp_path: Path):
    matrices = {"intrinsics": [1.0] * 9, "camera_to_ego": [1.0] * 16, "ego_to_global": [1.0] * 16}
    rows = [
        {"clip_id": c, "channel": ch, "frame_index": i, "timestamp_us": i, **matrices}
        for i in (1, 0) for ch in ("CAM_FRONT", "CAM_BACK") for c in ("b", "a")
    ]  # fmt: skip
    assert write_table("camera_frames", rows, tmp_path / "t.parquet") == 8
    table = read_table(tmp_path / "t.parquet")
    keys = list(zip(*(table.column(k).to_pylist() for k in ("clip_id", "channel", "frame_index")), strict=True))
    assert keys == sorted(keys)
    group = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0)
    assert [c.column_index for c in group.sorting_columns] == [0, 1, 2]
    assert group.column(0).compression == "ZSTD"
    assert group.column(0).has_offset_index


def test_a_flipped_byte_in_a_table_is_noticed_on_reading(tmp_path: Path):
    path = tmp_path / "metrics.parquet"
    write_table("metrics", [{"clip_id": f"c{i}", "value": float(i)} for i in range(100)], path)
    data = bytearray(path.read_bytes())
    data[60] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(InputError, match="unreadable Parquet file"):
        read_table(path)


def test_a_missing_matrix_is_refused_before_it_makes_a_file_nobody_can_read(tmp_path: Path):
    with pytest.raises(ValueError, match="column intrinsics of table camera_frames must be given"):
        write_table("camera_frames", [{"clip_id": "a"}], tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()


def test_rows_with_unknown_columns_are_refused_and_missing_ones_are_null():
    with pytest.raises(KeyError, match="no column \\['suport'\\]"):
        table_from_rows("boxes", [{"suport": 1.0}])
    table = table_from_rows("boxes", [{"clip_id": "a"}])
    assert table.schema.equals(BOXES, check_metadata=True)
    assert table.column("support").to_pylist() == [None]


def test_every_table_is_published_even_when_empty(pristine: Path):
    version = RunLayout(pristine).version(_version(pristine).name)
    for name, schema in TABLES.items():
        assert read_table(version.table(name)).schema.equals(schema)
    assert read_table(version.table("map_elements")).num_rows == 0


def _edit(root: Path, name: str, column: str, index: int, value) -> None:
    """Changes one cell of a published table, leaving the manifest as it was."""
    path = RunLayout(root).version(_version(root).name).table(name)
    table = read_table(path)
    values = table.column(column).to_pylist()
    values[index] = value
    position = table.schema.get_field_index(column)
    field = table.schema.field(position)
    write_arrow(name, table.set_column(position, field, pa.array(values, type=field.type)), path)


@pytest.mark.parametrize(
    ("name", "column", "value", "check"),
    [
        ("clips", "n_frames", 9, "n_frames"), ("clips", "shard_id", "f" * 32, "foreign_key"),
        ("videos", "clip_id", "stranger", "foreign_key"), ("videos", "channel", "CAM_TOP", "channel"),
        ("videos", "n_frames", 1, "n_frames"), ("videos", "first_frame", 1, "n_frames"), ("videos", "first_frame", None, "n_frames"),
        ("videos", "frame_step", 2, "n_frames"), ("videos", "frame_step", 0, "n_frames"),
        ("camera_frames", "frame_index", 1, "duplicate_key"), ("camera_frames", "timestamp_us", 9_999_999, "time_order"),
        ("camera_frames", "ego_to_global", [2.0, *[0.0] * 14, 1.0], "transform"),
        ("camera_frames", "intrinsics", [-1.0, 0, 0, 0, 1, 0, 0, 0, 1], "intrinsics"),
        ("boxes", "size_w", 0.0, "box_size"), ("boxes", "yaw", float("nan"), "box_finite"),
        ("boxes", "label_source", "guess", "label_source"), ("boxes", "detection_class", "tank", "detection_class"),
        ("ego_poses", "frame_index", None, "null_key"),
    ],
)  # fmt: skip
def test_each_planted_fault_in_a_table_is_found(dataset_root: Path, name: str, column: str, value, check: str):
    _edit(dataset_root, name, column, 0, value)
    assert check in {finding.check for finding in validate(dataset_root, 1)}


def test_tampered_missing_and_truncated_videos_are_found_at_their_level(dataset_root: Path):
    tampered, truncated, missing = sorted((dataset_root / "data").rglob("*.mp4"))[:3]
    data = bytearray(tampered.read_bytes())
    data[-200] ^= 1
    tampered.write_bytes(data)
    truncated.write_bytes(truncated.read_bytes()[:-10])
    missing.unlink()
    at_0 = {(f.check, f.where) for f in validate(dataset_root, 0)}
    relative = [path.relative_to(dataset_root).as_posix() for path in (tampered, truncated, missing)]
    assert at_0 == {("bytes", relative[1]), ("missing", relative[2])}
    at_2 = {(f.check, f.where) for f in validate(dataset_root, 2)}
    assert at_2 == at_0 | {("sha256", relative[0]), ("sha256", relative[1])}


def test_a_manifest_that_was_replaced_is_found(dataset_root: Path):
    version = RunLayout(dataset_root).version(_version(dataset_root).name)
    rows = read_table(version.manifest).to_pylist()
    rows[0]["path"] = "../outside"
    write_arrow("manifest", table_from_rows("manifest", rows), version.manifest)
    assert {f.check for f in validate(dataset_root, 0)} == {"sha256", "path"}


def test_levels_beyond_this_version_are_refused(pristine: Path):
    with pytest.raises(InputError, match="use 0, 1 or 2"):
        validate(pristine, 3)
