"""A tiny nuScenes dataroot: tables only, LIDAR_TOP and CAM_FRONT rows, enough for the official evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dwm.geometry import quaternion_from_rotation, rotation_from_yaw, transform
from dwm.scenes.types import DETECTION_CLASSES
from evaluators.boxes import ATTRIBUTES, Boxes

VERSION, SPLIT = "v1.0-tiny", "tiny_val"
CATEGORIES = {
    "car": "vehicle.car", "truck": "vehicle.truck", "bus": "vehicle.bus.rigid", "trailer": "vehicle.trailer",
    "construction_vehicle": "vehicle.construction", "pedestrian": "human.pedestrian.adult", "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle", "traffic_cone": "movable_object.trafficcone", "barrier": "movable_object.barrier",
}  # fmt: skip
STEP_US = 500_000


def write_dataroot(root: Path, frames: list[Boxes], yaw_rad: float = 0.7) -> dict[str, NDArray[np.float64]]:
    """Writes one scene whose samples show ``frames`` (ego frame); returns the ego pose of each sample token.

    Box n is the same instance in every sample, so the devkit derives its velocity from its path.
    """
    poses = [transform(np.array([600.0 + 2 * k, 300.0, 0.0]), rotation_from_yaw(yaw_rad)) for k in range(len(frames))]
    tables: dict[str, list[dict[str, Any]]] = {
        "category": [{"token": f"cat-{n}", "name": c, "description": ""} for n, c in CATEGORIES.items()],
        "attribute": [{"token": a, "name": a, "description": ""} for a in ATTRIBUTES],
        "visibility": [{"token": str(i), "level": f"v{i}", "description": ""} for i in range(1, 5)],
        "sensor": [{"token": c, "channel": c, "modality": m} for c, m in (("CAM_FRONT", "camera"), ("LIDAR_TOP", "lidar"))],
        "calibrated_sensor": [
            {"token": f"cal-{c}", "sensor_token": c, "translation": [0, 0, 1], "rotation": [1, 0, 0, 0], "camera_intrinsic": k}
            for c, k in (("CAM_FRONT", np.eye(3).tolist()), ("LIDAR_TOP", []))
        ],
        "log": [{"token": "log", "logfile": "", "vehicle": "", "date_captured": "2020-01-01", "location": "boston-seaport"}],
        "map": [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": "maps/map.png"}],
        "scene": [{"token": "scene", "name": "scene-0001", "description": "", "log_token": "log", "nbr_samples": len(frames),
                   "first_sample_token": "s0", "last_sample_token": f"s{len(frames) - 1}"}],
        "sample": [], "sample_data": [], "ego_pose": [], "instance": [], "sample_annotation": [],
    }  # fmt: skip
    for k, (boxes, pose) in enumerate(zip(frames, poses, strict=True)):
        _write_sample(tables, k, len(frames), boxes, pose)
    count = len(frames[0])
    for i in range(count):
        label = DETECTION_CLASSES[frames[0].labels[i]]
        tables["instance"].append({
            "token": f"i{i}", "category_token": f"cat-{label}", "nbr_annotations": len(frames),
            "first_annotation_token": f"a0-{i}", "last_annotation_token": f"a{len(frames) - 1}-{i}",
        })  # fmt: skip
    folder = root / VERSION
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "splits.json").write_text(json.dumps({SPLIT: ["scene-0001"]}))
    (root / "maps").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "maps" / "map.png")
    return {f"s{k}": pose for k, pose in enumerate(poses)}


def edit(root: Path, table: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Changes the rows of a table in place."""
    path = root / VERSION / f"{table}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def _write_sample(tables: dict[str, list[dict[str, Any]]], k: int, count: int, boxes: Boxes, pose: NDArray[np.float64]) -> None:
    def neighbours(prefix: str, suffix: str = "") -> dict[str, str]:
        return {
            "prev": f"{prefix}{k - 1}{suffix}" if k else "",
            "next": f"{prefix}{k + 1}{suffix}" if k + 1 < count else "",
        }

    time_us = 1_500_000_000_000_000 + k * STEP_US
    rotation = quaternion_from_rotation(pose[:3, :3]).tolist()
    tables["sample"].append({"token": f"s{k}", "timestamp": time_us, "scene_token": "scene", **neighbours("s")})
    tables["ego_pose"].append(
        {"token": f"e{k}", "translation": pose[:3, 3].tolist(), "rotation": rotation, "timestamp": time_us}
    )
    for channel in ("CAM_FRONT", "LIDAR_TOP"):
        tables["sample_data"].append({
            "token": f"{channel}{k}", "sample_token": f"s{k}", "ego_pose_token": f"e{k}", "fileformat": "jpg", "width": 1,
            "calibrated_sensor_token": f"cal-{channel}", "filename": f"samples/{channel}/{k}", "height": 1,
            "timestamp": time_us, "is_key_frame": True, **neighbours(channel),
        })  # fmt: skip
    moved = boxes.moved(pose)
    turns = quaternion_from_rotation(rotation_from_yaw(moved.yaws_rad))
    for i in range(len(boxes)):
        tables["sample_annotation"].append({
            "token": f"a{k}-{i}", "sample_token": f"s{k}", "instance_token": f"i{i}", "visibility_token": "4",
            "attribute_tokens": [ATTRIBUTES[boxes.attributes[i]]] if boxes.attributes[i] >= 0 else [],
            "translation": moved.centers_m[i].tolist(), "size": moved.sizes_wlh_m[i].tolist(), "rotation": turns[i].tolist(),
            "num_lidar_pts": int(boxes.num_pts[i]), "num_radar_pts": 0, **neighbours("a", f"-{i}"),
        })  # fmt: skip
