"""Table rows of one clip: what ``pipelines.schema`` asks for, from a scenario, its scores and its verdict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import apply, invert, quaternion_from_rotation, rotation_from_yaw, yaw_from_rotation
from dwm.scenario.conditions import conditions_of
from dwm.scenario.labels import ClipLabels, label_clip, near_agents
from dwm.scenario.types import LabelSource, Scenario
from dwm.scenes.nuscenes import source_notes
from dwm.scenes.prompts import clip_weather
from dwm.scenes.types import DETECTION_CLASSES, Camera, Scene
from evaluators.boxes import ATTRIBUTES
from evaluators.gate import Verdict
from pipelines.clip_scores import ClipScores
from pipelines.config import RunConfig
from pipelines.logged_frames import leading_indices
from pipelines.map_rows import map_rows
from pipelines.plan import Shard
from pipelines.schema import write_table

Row = dict[str, Any]
Array = NDArray[np.float64]
EVALUATOR_VERSION = "1"
LABEL_RANGE_M = 80.0  # boxes further from the ego are not labels of the clip
_WHEELBASE_M = 2.84


def write_clip(
    folder: Path, shard: Shard, scenario: Scenario, config: RunConfig, *, verdict: Verdict, videos: list[Row], scores: ClipScores,
    cameras: Sequence[Camera], notes: Sequence[str],
) -> None:  # fmt: skip
    """All part tables of one generated clip, filmed by ``cameras``."""
    clip_id = shard.shard_id
    labels = label_clip(scenario, config.scenario.labels_hz)
    boxes = box_rows(clip_id, scenario, scores, labels)
    sources = Counter(row["label_source"] for row in boxes if row["label_source"] != "detected")
    clip = _clip(shard, scenario.scene, config) | {
        "source_sample_token_first": _sample_at(scenario.scene, int(scenario.timestamps_us[0])),
        "start_us": int(scenario.timestamps_us[0]), "n_frames": len(scenario.timestamps_us), "log_end_index": scenario.log_end_index,
        "prompt": scenario.prompt, "label_sources_json": json.dumps(sources, sort_keys=True), "verdict_keep": verdict.keep,
        "verdict_reasons_json": json.dumps([asdict(reason) for reason in verdict.reasons]), "notes_json": json.dumps([*notes, *labels.notes]),
    }  # fmt: skip
    tables = {
        "clips": [clip], "videos": videos, "boxes": boxes,
        "camera_frames": camera_rows(clip_id, scenario, cameras, config.rollout.logged_frames),
        "ego_poses": [*pose_rows(clip_id, scenario, scenario.ego_to_global, "commanded"),
                      *pose_rows(clip_id, scenario, scenario.baseline_ego_to_global, "baseline")],
        "map_elements": map_rows(clip_id, scenario), "metrics": metric_rows(clip_id, scores),
    }  # fmt: skip
    for name, rows in tables.items():
        write_table(name, rows, folder / "tables" / f"{name}.parquet")


def rejected_clip(shard: Shard, scene: Scene, config: RunConfig, detail: str) -> Row:
    """The row of a scenario that was not feasible: no video, but a reason."""
    reason, _, sentence = detail.partition(": ")
    return _clip(shard, scene, config) | {
        "n_frames": 0, "verdict_keep": False, "label_sources_json": "{}", "notes_json": json.dumps(source_notes(scene)),
        "verdict_reasons_json": json.dumps([{"metric": f"scenario.{reason}", "sentence": sentence}]),
    }  # fmt: skip


def _clip(shard: Shard, scene: Scene, config: RunConfig) -> Row:
    perturbation = shard.perturbation
    return {
        "clip_id": shard.shard_id, "source_dataset": scene.version, "source_scene_token": scene.token, "source_scene_name": scene.name,
        "fps": shard.fps, "perturbation": perturbation.name, "perturbation_params_json": json.dumps(perturbation.params, sort_keys=True),
        "severity": perturbation.severity, "seed": shard.seed, "split": config.scenes.split or "all",
        "weather": clip_weather(scene, [c.name for c in conditions_of(perturbation)]), "description": scene.description, "location": scene.location,
        "lidar_to_ego": scene.lidar_to_ego.ravel().tolist(),
        "is_source": perturbation.name == "baseline",
    }  # fmt: skip


def box_rows(clip_id: str, scenario: Scenario, scores: ClipScores, labels: ClipLabels) -> list[Row]:
    """Labels at labelled frames, of agents that some sensor meets in some key frame, and detections at scored frames."""
    return [*_label_rows(clip_id, scenario, scores, labels), *_detection_rows(clip_id, scenario, scores)]


def _label_rows(clip_id: str, scenario: Scenario, scores: ClipScores, labels: ClipLabels) -> Iterator[Row]:
    agents, sample = scenario.agents, _sample_index(scenario)
    for f, frame in enumerate(labels.frames.tolist()):
        near = near_agents(scenario, frame, LABEL_RANGE_M)
        support = scores.support.get(frame)
        for a in near[labels.seen[near]].tolist():
            counted = "log" if labels.counted_in_log[a, f] else "simulated"
            yield {
                **_box(clip_id, frame, sample[frame], scenario, agents.centers_m[a, frame], agents.sizes_wlh_m[a],
                       float(agents.yaws_rad[a, frame]), labels.velocities_mps[a, f]),
                "instance_token": agents.instance_tokens[a], "category": agents.categories[a],
                "detection_class": agents.detection_classes[a], "attribute": agents.attributes[a][frame],
                "num_lidar_pts": int(labels.num_lidar_pts[a, f]), "num_lidar_pts_source": counted,
                "visibility": int(labels.visibility[a, f]), "occlusion": _finite(labels.occlusion[a, f]),
                "truncation": _finite(labels.truncation[a, f]),
                "label_source": LabelSource(int(agents.label_sources[a, frame])).name.lower(),
                "support": None if support is None else support.get(a),
            }  # fmt: skip


def _detection_rows(clip_id: str, scenario: Scenario, scores: ClipScores) -> Iterator[Row]:
    sample = _sample_index(scenario)
    for frame, found in scores.detections.items():
        placed = found.moved(scenario.ego_to_global[frame])
        for i in range(len(placed)):
            attribute = int(placed.attributes[i])
            yield {
                **_box(clip_id, frame, sample[frame], scenario, placed.centers_m[i], placed.sizes_wlh_m[i],
                       float(placed.yaws_rad[i]), placed.velocities_mps[i]),
                "instance_token": f"detection-{frame}-{i}", "detection_class": DETECTION_CLASSES[placed.labels[i]],
                "attribute": ATTRIBUTES[attribute] if attribute >= 0 else "", "label_source": "detected", "score": float(placed.scores[i]),
            }  # fmt: skip


def _box(
    clip_id: str, frame: int, sample: int, scenario: Scenario, center: Array, size_wlh: Array, yaw: float, velocity: Array
) -> Row:
    """Columns that labels and detections share: place, size and velocity in the global frame and in the ego's."""
    to_ego = invert(scenario.ego_to_global[frame])
    center_ego, velocity_ego = apply(to_ego, center[None])[0], to_ego[:2, :2] @ velocity
    return {
        "clip_id": clip_id, "frame_index": frame, "sample_index": sample, "timestamp_us": int(scenario.timestamps_us[frame]),
        **dict(zip(("center_x", "center_y", "center_z"), center.tolist(), strict=True)),
        "size_w": float(size_wlh[0]), "size_l": float(size_wlh[1]), "size_h": float(size_wlh[2]), "yaw": yaw,
        "vx": _finite(velocity[0]), "vy": _finite(velocity[1]), "frame": "global",
        **dict(zip(("center_ego_x", "center_ego_y", "center_ego_z"), center_ego.tolist(), strict=True)),
        "yaw_ego": float(yaw_from_rotation(to_ego[:3, :3] @ rotation_from_yaw(yaw))),
        "vx_ego": _finite(velocity_ego[0]), "vy_ego": _finite(velocity_ego[1]), "is_valid": True,
    }  # fmt: skip


def _sample_index(scenario: Scenario) -> list[int]:
    """Key frames counted from 0, -1 between them."""
    return np.where(scenario.is_key_frame, np.cumsum(scenario.is_key_frame) - 1, -1).tolist()


def camera_rows(clip_id: str, scenario: Scenario, cameras: Sequence[Camera], logged: int = 1) -> list[Row]:
    """Geometry and time of every image, and which ones the first ``logged`` are; the six images of a frame are simultaneous."""
    sample, rows = _sample_index(scenario), []
    for camera in cameras:
        intrinsics, mounted = camera.intrinsics.ravel().tolist(), camera.camera_to_ego.ravel().tolist()
        shown = [scenario.scene.frames[camera.channel][i] for i in leading_indices(scenario, camera.channel, logged)]
        for t, timestamp in enumerate(scenario.timestamps_us.tolist()):
            rows.append({
                "clip_id": clip_id, "channel": camera.channel, "frame_index": t, "timestamp_us": timestamp,
                "sample_index": sample[t], "is_key_frame": bool(scenario.is_key_frame[t]), "intrinsics": intrinsics,
                "camera_to_ego": mounted, "ego_to_global": scenario.ego_to_global[t].ravel().tolist(),
                "source_sample_data_token": shown[t].sample_data_token if t < logged else None,
            })  # fmt: skip
    return rows


def pose_rows(clip_id: str, scenario: Scenario, poses: Array, path: str) -> list[Row]:
    """A path, frame by frame, with velocities from central differences."""
    times = scenario.timestamps_us * 1e-6
    many = len(times) > 1
    velocity = np.gradient(poses[:, :3, 3], times, axis=0) if many else np.zeros((1, 3))
    rate = np.gradient(np.unwrap(yaw_from_rotation(poses)), times) if many else np.zeros(1)
    speed = np.linalg.norm(velocity[:, :2], axis=1)
    steering = np.where(speed > 0.5, np.arctan2(_WHEELBASE_M * rate, np.maximum(speed, 0.5)), np.nan)
    quaternions = quaternion_from_rotation(poses[:, :3, :3])
    return [
        {
            "clip_id": clip_id, "frame_index": t, "timestamp_us": int(scenario.timestamps_us[t]), "path": path,
            **dict(zip("xyz", poses[t, :3, 3].tolist(), strict=True)),
            **dict(zip(("qw", "qx", "qy", "qz"), quaternions[t].tolist(), strict=True)),
            **dict(zip(("vx", "vy", "vz"), velocity[t].tolist(), strict=True)),
            "yaw_rate": float(rate[t]), "steering_rad": _finite(steering[t]),
        }
        for t in range(len(times))
    ]  # fmt: skip


def metric_rows(clip_id: str, scores: ClipScores) -> list[Row]:
    """Metrics with their protocol cards."""
    now = datetime.now(UTC)
    rows = []
    for row in scores.rows:
        plain = {k: v for k, v in row.items() if k != "card"}
        card = json.dumps(row["card"].as_record(), sort_keys=True)
        rows.append(
            {**plain, "clip_id": clip_id, "protocol_json": card, "evaluator_version": EVALUATOR_VERSION, "computed_at": now}
        )
    return rows


def _sample_at(scene: Scene, timestamp_us: int) -> str:
    index = int(np.argmin(np.abs(scene.key_timestamps_us - timestamp_us)))
    return scene.sample_tokens[index] if scene.sample_tokens else ""


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
