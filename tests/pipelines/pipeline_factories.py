"""Small workers and configurations for pipeline tests. Importable, so that other processes can unpickle them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from dwm.geometry import transform_from_xy_yaw
from dwm.scenario.types import Perturbation
from dwm.scenes.dataroot import TABLES
from pipelines.attempt import ShardResult
from pipelines.config import ModelConfig, PerturbationConfig, RunConfig, ScenarioConfig, ScenesConfig
from pipelines.events import report_progress
from pipelines.plan import Shard, make_plan
from pipelines.scene_list import SceneRef
from pipelines.schema import write_table
from pipelines.video import VideoWriter, video_row

N_FRAMES, FPS = 4, 12.0
CHANNELS = ("CAM_FRONT", "CAM_BACK")


def tiny_config(tmp_path: Path, n_seeds: int = 2, **fields) -> RunConfig:
    """A run over one scene: baseline and one sampled perturbation for each seed. Weights are two small files without weights."""
    tables = tmp_path / "world" / "v1.0-mini"
    tables.mkdir(parents=True, exist_ok=True)
    for table in TABLES:
        (tables / f"{table}.json").write_text("[]")
    (tables / "scene.json").write_text(json.dumps([{"name": "scene-0001", "token": "a" * 32, "description": "day"}]))
    (tmp_path / "codec.safetensors").write_bytes(b"codec")
    save_file({}, tmp_path / "world_model.safetensors", metadata={"kind": "multi_view_dit", "config": "{}"})
    return RunConfig(
        scenes=ScenesConfig(dataroot=str(tmp_path / "world"), names=["scene-0001"]),
        scenario=ScenarioConfig(
            duration_s=N_FRAMES / FPS,
            perturbations=[PerturbationConfig(), PerturbationConfig(name="shift", params={"offset_m": 1.5})],
            seeds=list(range(n_seeds)),
        ),
        model=ModelConfig(codec=str(tmp_path / "codec.safetensors"), world_model=str(tmp_path / "world_model.safetensors")),
        out=str(tmp_path / "run"),
        **fields,
    )


def sample_shift(name: str, severity: float, rng: np.random.Generator) -> Perturbation:
    return Perturbation(name=name, params={"offset_m": float(rng.uniform(0.5, 2.0)), "onset_s": 1.0}, severity=severity)


def tiny_shards(n: int, tmp_path: Path) -> list[Shard]:
    """``n`` shards with different ids."""
    config = RunConfig(scenario=ScenarioConfig(duration_s=N_FRAMES / FPS, seeds=list(range(n))), out=str(tmp_path / "run"))
    return make_plan(config, [SceneRef(name="scene-0001", token="a" * 32)], {"codec": "0" * 64, "world_model": "1" * 64})


class TextWorker:
    """Writes one small text file per shard."""

    def run(self, shard: Shard, attempt_dir: Path) -> ShardResult:
        (attempt_dir / "out.txt").write_text(f"{shard.scene_name} {shard.seed}")
        return ShardResult(n_frames=shard.n_frames, timings_s={"generate": 0.5})


class ClipWorker:
    """Writes what the real worker writes, with flat images: mp4 files and table parts."""

    def run(self, shard: Shard, attempt_dir: Path) -> ShardResult:
        clip_id = f"clip-{shard.shard_id}"
        times = 1_000_000 + np.arange(shard.n_frames) * 83_333
        videos, frames = [], []
        for number, channel in enumerate(CHANNELS):
            with VideoWriter(attempt_dir / f"{channel}.mp4", 32, 32, FPS, preset="ultrafast") as writer:
                for index in range(shard.n_frames):
                    writer.write(np.full((32, 32, 3), 40 * number + 10 * index, np.uint8))
                    report_progress(attempt_dir, index + 1, shard.n_frames)
            videos.append(video_row(writer, clip_id, channel))
            frames += [_camera_frame(clip_id, channel, index, int(times[index])) for index in range(shard.n_frames)]
        tables = attempt_dir / "tables"
        write_table("clips", [_clip(shard, clip_id)], tables / "clips.parquet")
        write_table("videos", videos, tables / "videos.parquet")
        write_table("camera_frames", frames, tables / "camera_frames.parquet")
        write_table("boxes", [_box(clip_id, int(times[0]))], tables / "boxes.parquet")
        poses = [
            {"clip_id": clip_id, "frame_index": i, "timestamp_us": int(t), "path": "commanded", "x": float(i), "y": 0.0, "z": 0.0,
             "qw": 1.0, "qx": 0.0, "qy": 0.0, "qz": 0.0}
            for i, t in enumerate(times)
        ]  # fmt: skip
        write_table("ego_poses", poses, tables / "ego_poses.parquet")
        metric = {"clip_id": clip_id, "metric": "psnr", "value": 30.0 + shard.seed, "unit": "dB", "source": "generated"}
        write_table("metrics", [metric], tables / "metrics.parquet")
        return ShardResult(n_frames=shard.n_frames, timings_s={"generate": 0.1}, facts={"denoising_steps": 3})


class MapWorker(ClipWorker):
    """Adds a divider, a crossing and a drivable area to the clip."""

    def run(self, shard: Shard, attempt_dir: Path) -> ShardResult:
        result = super().run(shard, attempt_dir)
        elements = [
            ("divider", [-100.0, 2.0, 100.0, 2.0], False), ("ped_crossing", [10.0, -4.0, 14.0, -4.0, 14.0, 4.0, 10.0, 4.0], True),
            ("drivable", [-100.0, -9.0, 100.0, -9.0, 100.0, 9.0], True),
        ]  # fmt: skip
        write_table("map_elements", [
            {"clip_id": f"clip-{shard.shard_id}", "element_id": kind, "kind": kind, "points_xy_m": points, "is_polygon": closed}
            for kind, points, closed in elements
        ], attempt_dir / "tables" / "map_elements.parquet")  # fmt: skip
        return result


def _clip(shard: Shard, clip_id: str) -> dict:
    return {
        "clip_id": clip_id, "source_scene_token": shard.scene_token, "start_us": 1_000_000, "n_frames": shard.n_frames,
        "fps": FPS, "perturbation": shard.perturbation.name, "seed": shard.seed, "verdict_keep": shard.seed == 0,
        "is_source": shard.perturbation.name == "baseline", "severity": shard.perturbation.severity,
        "lidar_to_ego": np.eye(4).ravel().tolist(),
    }  # fmt: skip


def _camera_frame(clip_id: str, channel: str, index: int, timestamp_us: int) -> dict:
    pose = transform_from_xy_yaw(float(index), 0.0, 0.1 * index)
    return {
        "clip_id": clip_id, "channel": channel, "frame_index": index, "timestamp_us": timestamp_us, "sample_index": -1,
        "is_key_frame": False, "intrinsics": [30.0, 0, 16, 0, 30.0, 16, 0, 0, 1], "camera_to_ego": list(np.eye(4).ravel()),
        "ego_to_global": list(pose.ravel()),
    }  # fmt: skip


def _box(clip_id: str, timestamp_us: int) -> dict:
    return {
        "clip_id": clip_id, "frame_index": 0, "sample_index": 0, "timestamp_us": timestamp_us, "instance_token": "car",
        "category": "vehicle.car", "detection_class": "car", "center_x": 5.0, "center_y": 0.0, "center_z": 1.0, "size_l": 4.0,
        "size_w": 2.0, "size_h": 1.5, "yaw": 0.0, "frame": "global", "label_source": "log", "is_valid": True,
    }  # fmt: skip
