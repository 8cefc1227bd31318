"""VAD's detection scores: the devkit's matching and averages inside a rectangle around the ego (hustvl/VAD, its evaluation config
``vad_nusc_detection_cvpr_2019``).

**Not comparable with nuScenes mAP and NDS.** The range is 30 x 15 m for all classes instead of a radius of 30 to 50 m, and
detections below a score of 0.2 do not take part. The rectangle is also applied twice, to different boxes:
- detections are kept inside it in the ego frame, 30 m ahead and behind, 15 m to either side;
- then detections and truth are kept inside the same numbers along the global x and y axes, without turning.
Where the ego does not head along global x, truth beside the first rectangle and inside the second can only be missed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from nuscenes import NuScenes
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import (
    add_center_dist,
    filter_eval_boxes,
    load_gt_of_sample_tokens,
    load_prediction_of_sample_tokens,
)
from nuscenes.eval.detection.data_classes import DetectionBox

from dwm.errors import InputError
from dwm.geometry import rotation_from_quaternion
from dwm.scenes.dataroot import open_dataroot
from dwm.scenes.types import DETECTION_CLASSES
from evaluators.boxes import Boxes
from evaluators.detection import DetectionReport, as_eval_boxes, official_config, score_eval_boxes
from evaluators.splits import samples_of_split

CONFIG = "vad_nusc_detection_cvpr_2019"
RANGE_X_M, RANGE_Y_M = 30.0, 15.0
MIN_SCORE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class VadDetectionReport:
    """Scores under VAD's rules; see the module for why they compare with nothing else."""

    scores: DetectionReport
    truths_out_of_reach: int  # that take part although no detection there may
    detections_below_score: int  # left out


def evaluate_vad_detection(dataroot: Path, version: str, split: str, submission_path: Path) -> VadDetectionReport:
    """VAD's scores of a detection submission on a split, one of the devkit's or of the version's own splits.json.

    Raises:
        InputError: missing submission, samples of the split missing in it, or content that the devkit refuses.
    """
    if not submission_path.is_file():
        raise InputError(submission_path, "no such submission", "write one with write_submission")
    tokens, nusc, config = samples_of_split(dataroot, version, split), open_dataroot(dataroot, version), official_config()
    try:
        found, _ = load_prediction_of_sample_tokens(str(submission_path), config.max_boxes_per_sample, DetectionBox, tokens)
        truth = load_gt_of_sample_tokens(nusc, tokens, DetectionBox)
    except (AssertionError, KeyError) as error:
        problem = f"the devkit refuses it for split '{split}' ({type(error).__name__}: {error})"
        fix = "list every sample of the split, at most 500 boxes each, in float types"
        raise InputError(submission_path, problem, fix) from error
    turns = {token: _ego_rotation(nusc, token) for token in tokens}
    below = sum(box.detection_score < MIN_SCORE for box in found.all)
    for boxes in (found, truth):
        add_center_dist(nusc, boxes)
    _keep(found, lambda box: box.detection_score >= MIN_SCORE and _inside_ego_rectangle(box, turns))
    for boxes in (found, truth):
        _keep(boxes, _inside_global_rectangle)
        # What is left of the devkit's own filter: boxes without points, and cycles in racks. It fails on no boxes at all.
        if boxes.all:
            filter_eval_boxes(nusc, boxes, dict.fromkeys(DETECTION_CLASSES, np.inf))
    return VadDetectionReport(
        scores=replace(score_eval_boxes(truth, found, config), config=CONFIG),
        truths_out_of_reach=sum(not _inside_ego_rectangle(box, turns) for box in truth.all),
        detections_below_score=int(below),
    )


def evaluate_vad_boxes(
    truth: Mapping[str, Boxes], predictions: Mapping[str, Boxes], ego_to_global: Mapping[str, NDArray[np.float64]]
) -> VadDetectionReport:
    """The same scores of ego-frame boxes by frame, without a dataroot; ``truth`` decides which frames count.

    Bicycle racks are not filtered.
    """
    seen, found, beyond, below = {}, {}, 0, 0
    for token, boxes in truth.items():
        turn = ego_to_global[token][:3, :3]
        kept = boxes.select(_inside(boxes.centers_m @ turn.T, strict=True) & (boxes.num_pts != 0))
        seen[token], beyond = kept, beyond + int((~_inside(kept.centers_m)).sum())
        own = predictions.get(token, Boxes.empty())
        sure = own.scores >= MIN_SCORE
        found[token] = own.select(sure & _inside(own.centers_m) & _inside(own.centers_m @ turn.T, strict=True))
        below += int((~sure).sum())
    scores = score_eval_boxes(as_eval_boxes(seen, is_truth=True), as_eval_boxes(found, is_truth=False), official_config())
    return VadDetectionReport(scores=replace(scores, config=CONFIG), truths_out_of_reach=beyond, detections_below_score=below)


def _inside(places_N3: NDArray[np.float64], strict: bool = False) -> NDArray[np.bool_]:
    x, y = np.abs(places_N3[:, 0]), np.abs(places_N3[:, 1])
    return (x < RANGE_X_M) & (y < RANGE_Y_M) if strict else (x <= RANGE_X_M) & (y <= RANGE_Y_M)


def _ego_rotation(nusc: NuScenes, sample_token: str) -> NDArray[np.float64]:
    """Ego to global [3, 3] at the time of the LiDAR."""
    lidar = nusc.get("sample_data", nusc.get("sample", sample_token)["data"]["LIDAR_TOP"])
    return rotation_from_quaternion(nusc.get("ego_pose", lidar["ego_pose_token"])["rotation"])


def _inside_ego_rectangle(box: DetectionBox, turns: dict[str, NDArray[np.float64]]) -> bool:
    x, y, _ = np.asarray(box.ego_translation) @ turns[box.sample_token]
    return abs(x) <= RANGE_X_M and abs(y) <= RANGE_Y_M


def _inside_global_rectangle(box: DetectionBox) -> bool:
    # ``ego_translation`` is relative to the ego, but along the global axes.
    x, y, _ = box.ego_translation
    return abs(x) < RANGE_X_M and abs(y) < RANGE_Y_M


def _keep(boxes: EvalBoxes, wanted: Callable[[DetectionBox], bool]) -> None:
    for token in boxes.sample_tokens:
        boxes.boxes[token] = [box for box in boxes[token] if wanted(box)]
