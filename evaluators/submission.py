"""Predictions as a nuScenes detection submission (nuscenes-devkit, eval/detection/README.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.geometry import invert, quaternion_from_rotation, rotation_from_quaternion, rotation_from_yaw, yaw_from_rotation
from dwm.scenes.types import DETECTION_CLASSES
from evaluators.boxes import ATTRIBUTES, Boxes, attribute_index, boxes_from

Array = NDArray[np.float64]
MAX_BOXES_PER_SAMPLE = 500


def submission_boxes(boxes: Boxes, sample_token: str, ego_to_global: Array) -> list[dict[str, Any]]:
    """Ego-frame boxes as submission rows in the global frame, best 500 first, in plain Python types."""
    best = boxes.select(np.argsort(-boxes.scores, kind="stable")[:MAX_BOXES_PER_SAMPLE])
    moved = best.moved(ego_to_global)
    # The full rotation, so that boxes tilt with the ego as annotations on slopes do.
    rotations = quaternion_from_rotation(ego_to_global[:3, :3] @ rotation_from_yaw(best.yaws_rad))
    velocities = np.nan_to_num(moved.velocities_mps)
    return [
        {
            "sample_token": sample_token,
            "translation": moved.centers_m[i].tolist(),
            "size": moved.sizes_wlh_m[i].tolist(),
            "rotation": rotations[i].tolist(),
            "velocity": velocities[i].tolist(),
            "detection_name": DETECTION_CLASSES[moved.labels[i]],
            "detection_score": float(moved.scores[i]),
            "attribute_name": ATTRIBUTES[moved.attributes[i]] if moved.attributes[i] >= 0 else "",
        }
        for i in range(len(moved))
    ]


def write_submission(path: Path, predictions: Mapping[str, Boxes], ego_to_global: Mapping[str, Array]) -> Path:
    """Writes predictions by sample token (ego frame, with each sample's ego pose); samples without boxes stay listed.

    Raises:
        InputError: a prediction holds NaN, infinite or non-positive values that the devkit would refuse.
    """
    for token, boxes in predictions.items():
        finite = np.isfinite(np.column_stack([boxes.centers_m, boxes.sizes_wlh_m, boxes.yaws_rad, boxes.scores]))
        if not finite.all() or (boxes.sizes_wlh_m <= 0).any():
            raise InputError(
                path, f"predictions of sample {token} hold NaN, infinite or non-positive values", "check the weights"
            )
    meta = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": False}
    results = {token: submission_boxes(boxes, token, ego_to_global[token]) for token, boxes in predictions.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"meta": meta, "results": results}))
    return path


def read_submission(path: Path, ego_to_global: Mapping[str, Array]) -> dict[str, Boxes]:
    """The ego-frame boxes of the samples in ``ego_to_global``."""
    results = json.loads(path.read_text())["results"]
    return {token: _boxes(results[token]).moved(invert(pose)) for token, pose in ego_to_global.items()}


def _boxes(rows: list[dict[str, Any]]) -> Boxes:
    if not rows:
        return Boxes.empty()
    return boxes_from(
        np.array([DETECTION_CLASSES.index(r["detection_name"]) for r in rows]),
        np.array([r["translation"] for r in rows]),
        np.array([r["size"] for r in rows]),
        yaw_from_rotation(rotation_from_quaternion([r["rotation"] for r in rows])),
        np.array([r["velocity"] for r in rows]),
        np.array([attribute_index(r["attribute_name"]) for r in rows]),
        np.array([r["detection_score"] for r in rows]),
    )
