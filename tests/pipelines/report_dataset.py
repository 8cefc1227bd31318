"""A small published dataset version on disk, as the report reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np

from dwm.scenes.types import CAMERAS
from pipelines import schema

Row = dict[str, Any]
FPS = 12.0


def write_video(path: Path, n_frames: int, width: int = 64, height: int = 48) -> None:
    """An mp4 whose bright bar walks from left to right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=int(FPS), options={"g": "12", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(n_frames):
            image = np.full((height, width, 3), (60, 80, 100), dtype=np.uint8)
            image[:, (index * width // n_frames) :][:, :4] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_table(version_dir: Path, name: str, rows: list[Row]) -> None:
    schema.write_table(name, rows, version_dir / "tables" / name / "part-00000.parquet")


def clip(clip_id: str, n_frames: int, **changes: Any) -> Row:
    return {
        "clip_id": clip_id, "source_scene_token": "a" * 32, "n_frames": n_frames, "fps": FPS, "perturbation": "lateral_offset",
        "perturbation_params_json": '{"offset_m": 1.5}', "severity": 0.5, "seed": 7,
        "split": "pg_val", "shard_id": f"{clip_id:f<32}"[:32],
        "prompt": "A driving scene at night.", "description": "Night, light traffic", "weather": "night", "verdict_keep": True,
        "verdict_reasons_json": "[]", "log_end_index": n_frames // 2, "lidar_to_ego": np.eye(4).ravel().tolist(),
    } | changes  # fmt: skip


def poses(clip_id: str, path: str, n_frames: int, left_m: float) -> list[Row]:
    """A drive along global y at 10 m/s that moves ``left_m`` to its left over the first half."""
    t = np.arange(n_frames) / FPS
    shift = left_m * np.clip(np.arange(n_frames) / max(n_frames // 2, 1), 0, 1)
    half = np.sqrt(0.5)
    return [
        {"clip_id": clip_id, "path": path, "frame_index": i, "timestamp_us": int(t[i] * 1e6), "x": 100.0 - shift[i],
         "y": 50.0 + 10.0 * t[i], "z": 0.0, "qw": half, "qx": 0.0, "qy": 0.0, "qz": half}
        for i in range(n_frames)
    ]  # fmt: skip


def metric(clip_id: str | None, name: str, value: float, unit: str = "", source: str = "generated", **changes: Any) -> Row:
    return {
        "clip_id": clip_id, "channel": None, "metric": name, "value": value, "unit": unit, "source": source,
        "bucket_start_s": None, "bucket_end_s": None, "detection_class": None,
    } | changes  # fmt: skip


def write_dataset(
    root: Path,
    clips: list[Row],
    metrics: list[Row] | None = None,
    streams: tuple[str, ...] = ("rgb",),
    size: tuple[int, int] = (64, 48),
) -> Path:
    """A version folder holding the given clips, with videos, poses, boxes, a square of drivable map and one run."""
    version_dir = root / "versions" / "v-test"
    write_table(version_dir, "clips", clips)
    videos = [
        {"clip_id": c["clip_id"], "channel": camera, "stream": stream, "n_frames": c["n_frames"], "first_frame": 0, "frame_step": 1,
         "uri": f"data/{c['shard_id']}/{c['clip_id']}/{camera}.{stream}.mp4"}
        for c in clips for camera in CAMERAS for stream in streams
    ]  # fmt: skip
    for row in videos:
        write_video(root / row["uri"], row["n_frames"], *size)
    write_table(version_dir, "videos", videos)
    paths = [("commanded", 1.5), ("baseline", 0.0)]
    write_table(
        version_dir,
        "ego_poses",
        [p for c in clips for path, left in paths for p in poses(c["clip_id"], path, c["n_frames"], left)],
    )
    sources = ["log"] * 2 + ["interpolated"] * 3 + ["simulated"] * 5 + ["detected"] * 7
    write_table(version_dir, "boxes", [{"clip_id": c["clip_id"], "label_source": s} for c in clips for s in sources])
    square = [90.0, 40.0, 110.0, 40.0, 110.0, 400.0, 90.0, 400.0]
    write_table(version_dir, "map_elements", [
        {"clip_id": c["clip_id"], "element_id": "road", "kind": "drivable", "points_xy_m": square, "is_polygon": True}
        for c in clips
    ])  # fmt: skip
    write_table(version_dir, "metrics", metrics or [metric(clips[0]["clip_id"], "psnr_db", 24.5, "dB")])
    write_table(version_dir, "shards", [
        {"shard_id": c["shard_id"], "outcome": "clip", "scene_name": "scene-0001", "seed": 7} for c in clips
    ] + [{"shard_id": "0" * 32, "outcome": "infeasible", "scene_name": "scene-0002", "perturbation": "swerve", "seed": 3,
          "detail": "lateral acceleration 9.1 m/s2 exceeds 6.0 m/s2"}])  # fmt: skip
    run = {
        "run_id": "run-1", "git_commit": "c0ffee", "dirty": True, "weights_sha256_json": json.dumps({"world_model": "ab" * 32}),
        "config_yaml": json.dumps({"seed": 7}), "started_us": 1_700_000_000_000_000,
    }  # fmt: skip
    write_table(version_dir, "runs", [run])
    return version_dir
