"""All table schemas of the dataset, and the only two functions that write Parquet.

Times are int64 microseconds, lengths metres, angles radians, quaternions w,x,y,z, transforms ``<from>_to_<to>`` as 16
float64 in row-major order. Variable settings live in one ``*_json`` string: readers drop unknown struct fields silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dwm.errors import InputError

SCHEMA_VERSION = "1.2.0"
ROW_GROUP_ROWS = 20_000
_KIND = pa.dictionary(pa.int16(), pa.string())  # few different values

METADATA = {b"roadreel_schema_version": SCHEMA_VERSION.encode()}


def _table(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in columns.items()], metadata=METADATA)


CLIPS = _table(
    clip_id=pa.string(), source_dataset=pa.string(), source_scene_token=pa.string(), source_scene_name=pa.string(),
    source_sample_token_first=pa.string(), start_us=pa.int64(), n_frames=pa.int32(), fps=pa.float32(),
    log_end_index=pa.int32(),  # frames with this index or a later one lie beyond the log
    perturbation=_KIND, perturbation_params_json=pa.string(), severity=pa.float32(), seed=pa.uint64(), split=_KIND,
    shard_id=pa.string(), run_id=pa.string(),  # both filled at publication
    prompt=pa.string(), weather=pa.string(), description=pa.string(), location=pa.string(),
    lidar_to_ego=pa.list_(pa.float64(), 16),  # of the source log
    is_source=pa.bool_(),  # the unperturbed baseline
    baseline_clip_id=pa.string(),  # filled at publication: same scene, window and seed, no perturbation
    label_sources_json=pa.string(),  # box rows by label source
    verdict_keep=pa.bool_(), verdict_reasons_json=pa.string(), notes_json=pa.string(),
)  # fmt: skip
VIDEOS = _table(
    clip_id=pa.string(), channel=_KIND, stream=_KIND,  # stream: rgb, depth, semantic, condition_boxes, condition_map, truth
    first_frame=pa.int32(), frame_step=pa.int32(),  # the file's frame k shows the clip's frame first_frame + k * frame_step
    uri=pa.string(),  # in a shard: the file's name in the attempt folder; published: relative to the dataset root
    bytes=pa.int64(), sha256=pa.string(),  # both filled at publication
    n_frames=pa.int32(), width=pa.int32(), height=pa.int32(), fps=pa.float32(), codec=pa.string(), pix_fmt=pa.string(),
    gop=pa.int16(), crf=pa.float32(), encoder_args_json=pa.string(), encode_psnr_db=pa.float32(),
    depth_quant_json=pa.string(),
)  # fmt: skip
CAMERA_FRAMES = _table(
    clip_id=pa.string(), channel=_KIND, frame_index=pa.int32(),  # = index in the mp4
    timestamp_us=pa.int64(), sample_index=pa.int32(), is_key_frame=pa.bool_(),  # sample_index -1 between key frames
    source_sample_data_token=pa.string(), intrinsics=pa.list_(pa.float64(), 9), camera_to_ego=pa.list_(pa.float64(), 16),
    ego_to_global=pa.list_(pa.float64(), 16),
)  # fmt: skip
EGO_POSES = _table(
    clip_id=pa.string(), frame_index=pa.int32(), timestamp_us=pa.int64(), x=pa.float64(), y=pa.float64(), z=pa.float64(),
    qw=pa.float64(), qx=pa.float64(), qy=pa.float64(), qz=pa.float64(), vx=pa.float64(), vy=pa.float64(), vz=pa.float64(),
    yaw_rate=pa.float64(), steering_rad=pa.float32(),
    path=_KIND,  # commanded | baseline (the same clip without the perturbation) | measured (re-estimated from the video)
)  # fmt: skip
BOXES = _table(
    clip_id=pa.string(), frame_index=pa.int32(), sample_index=pa.int32(), timestamp_us=pa.int64(),
    instance_token=pa.string(), category=_KIND, detection_class=_KIND, attribute=pa.string(),
    center_x=pa.float64(), center_y=pa.float64(), center_z=pa.float64(), size_l=pa.float64(), size_w=pa.float64(),
    size_h=pa.float64(), yaw=pa.float64(), vx=pa.float64(), vy=pa.float64(), frame=_KIND,
    # The same once more, seen from the commanded path's pose at this frame; velocities are turned, not relative.
    center_ego_x=pa.float64(), center_ego_y=pa.float64(), center_ego_z=pa.float64(), yaw_ego=pa.float64(),
    vx_ego=pa.float64(), vy_ego=pa.float64(),
    num_lidar_pts=pa.int32(), num_lidar_pts_source=_KIND,  # log | simulated
    visibility=pa.int8(), occlusion=pa.float32(), truncation=pa.float32(), label_source=_KIND,  # log | interpolated | transformed | simulated | detected
    score=pa.float32(),  # of a detection; null for labels
    support=pa.float32(),  # how strongly the detector sees this label in the video, 0 to 1; null where not scored
    is_valid=pa.bool_(),
)  # fmt: skip
MAP_ELEMENTS = _table(
    clip_id=pa.string(), element_id=pa.string(), kind=_KIND,  # drivable | divider | ped_crossing | boundary | centerline
    points_xy_m=pa.list_(pa.float64()),  # x0, y0, x1, y1, ... in the global frame
    is_polygon=pa.bool_(), label_source=_KIND,
)  # fmt: skip
METRICS = _table(
    clip_id=pa.string(), channel=_KIND, metric=_KIND, value=pa.float64(), unit=pa.string(), detection_class=_KIND,
    bucket_start_s=pa.float32(), bucket_end_s=pa.float32(),  # null: the whole clip
    source=_KIND,  # generated | truth | log
    evaluator_version=pa.string(), protocol_json=pa.string(), computed_at=pa.timestamp("us", tz="UTC"),
)  # fmt: skip
SHARDS = _table(
    shard_id=pa.string(), attempt_id=pa.string(), outcome=_KIND, detail=pa.string(), scene_name=pa.string(),
    perturbation=_KIND, seed=pa.uint64(), n_frames=pa.int64(), bytes=pa.int64(), failed_attempts=pa.int32(),
    wall_s=pa.float64(), timings_json=pa.string(), facts_json=pa.string(), host=pa.string(), committed_us=pa.int64(),
    run_id=pa.string(), git_commit=pa.string(), config_sha256=pa.string(),
)  # fmt: skip
RUNS = _table(
    run_id=pa.string(), started_us=pa.int64(), ended_us=pa.int64(), git_commit=pa.string(), dirty=pa.bool_(),
    config_yaml=pa.string(), config_sha256=pa.string(), weights_sha256_json=pa.string(), generator_version=pa.string(),
    package_versions_json=pa.string(), seed_policy=pa.string(),
)  # fmt: skip
MANIFEST = _table(
    path=pa.string(), kind=_KIND, bytes=pa.int64(), sha256=pa.string(), n_rows=pa.int64(), n_frames=pa.int64(),
    shard_id=pa.string(),
)  # fmt: skip

TABLES: dict[str, pa.Schema] = {
    "clips": CLIPS, "videos": VIDEOS, "camera_frames": CAMERA_FRAMES, "ego_poses": EGO_POSES, "boxes": BOXES,
    "map_elements": MAP_ELEMENTS, "metrics": METRICS, "shards": SHARDS, "runs": RUNS,
}  # fmt: skip
# Written by workers, one part per shard; the others are made at publication.
PART_TABLES = ("clips", "videos", "camera_frames", "ego_poses", "boxes", "map_elements", "metrics")
# Row order inside a published file. A clip's rows are neighbours, so that reading one clip touches one row group.
SORT_KEYS: dict[str, tuple[str, ...]] = {
    "clips": ("clip_id",), "videos": ("clip_id", "channel", "stream"),
    "camera_frames": ("clip_id", "channel", "frame_index"), "ego_poses": ("clip_id", "path", "frame_index"),
    "boxes": ("clip_id", "frame_index", "label_source", "instance_token"), "map_elements": ("clip_id", "kind", "element_id"),
    "metrics": ("clip_id", "metric", "source", "channel", "detection_class", "bucket_start_s"), "shards": ("shard_id",),
    "runs": ("run_id",), "manifest": ("path",),
}  # fmt: skip


def table_from_rows(name: str, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows as a table of schema ``name``; missing keys become null. Unknown keys are refused with KeyError."""
    schema = _schema(name)
    known = set(schema.names)
    for row in rows:
        if unknown := set(row) - known:
            raise KeyError(f"table {name} has no column {sorted(unknown)}; it has {schema.names}")
    return pa.Table.from_pylist(list(rows), schema=schema)


def write_table(name: str, rows: Sequence[dict[str, Any]], path: Path) -> int:
    """Writes rows as one Parquet file of schema ``name`` and returns their number."""
    return write_arrow(name, table_from_rows(name, rows), path)


def write_arrow(name: str, table: pa.Table, path: Path) -> int:
    """Writes a table sorted, compressed and with page checksums; returns its rows.

    Raises ValueError for a missing matrix: Parquet readers cannot tell a null fixed-size list from an empty one.
    """
    schema = _schema(name)
    for field in schema:
        if pa.types.is_fixed_size_list(field.type) and table.column(field.name).null_count:
            raise ValueError(f"column {field.name} of table {name} must be given in every row")
    table = _sorted(name, table.cast(schema))
    path.parent.mkdir(parents=True, exist_ok=True)
    ordering = [(key, "ascending") for key in SORT_KEYS[name]]
    dictionary = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    dictionary += [key for key in ("clip_id", "shard_id", "run_id") if key in schema.names]
    pq.write_table(
        table, path, compression="zstd", row_group_size=ROW_GROUP_ROWS,
        use_dictionary=dictionary,  # pyright: ignore[reportArgumentType]
        write_page_index=True, write_page_checksum=True,
        sorting_columns=pq.SortingColumn.from_ordering(schema, ordering),
    )  # fmt: skip
    return table.num_rows


def read_table(path: Path, **options: Any) -> pa.Table:
    """Reads one Parquet file with page checksums verified; InputError when it is damaged."""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True).read(**options)
    except (OSError, pa.ArrowException) as error:
        raise InputError(path, f"unreadable Parquet file ({error})", "run `roadreel validate` on the dataset") from error


def _schema(name: str) -> pa.Schema:
    return MANIFEST if name == "manifest" else TABLES[name]


def _sorted(name: str, table: pa.Table) -> pa.Table:
    # Arrow cannot sort dictionary columns: sort their plain values.
    plain = [field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field for field in table.schema]
    ordered = table.cast(pa.schema(plain)).sort_by([(key, "ascending") for key in SORT_KEYS[name]])
    return ordered.cast(_schema(name))
