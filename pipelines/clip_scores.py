"""Scores of one clip, measured on what users will decode: the mp4 files, not the frames in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dwm.conditioning.build import ScenarioConditioner, images_to_tensor, tensor_to_images
from dwm.rollout.world_model import WorldModel
from dwm.scenario.types import Scenario
from dwm.scenes.clips import read_video_frames
from dwm.scenes.proving_ground.counterfactual import open_counterfactual
from dwm.scenes.types import CAMERAS
from evaluators.boxes import Boxes, boxes_of_scenario
from evaluators.clip_detection import ClipMatchConfig, score_clip_detections, unlabelled_detections
from evaluators.counterfactual import psnr_db, score_counterfactual
from evaluators.cross_view import cross_view_agreement, cross_view_metrics
from evaluators.detection import DetectionReport, evaluate_boxes_in_memory
from evaluators.detector.inference import Detector
from evaluators.ego_motion.inference import EgoMotionReader
from evaluators.ego_motion.score import ReadingConfig, read_steps, score_ego_motion
from evaluators.flicker import score_appearance
from evaluators.novelty import score_novelty
from pipelines.config import EvaluateConfig
from pipelines.logged_clip import logged_clip
from pipelines.logged_looks import logged_looks
from pipelines.metric_table import Judges, MetricTable, add_appearance, add_counterfactual, add_detection, add_flat

Images = NDArray[np.uint8]
Array = NDArray[np.float64]
TrueFrames = Callable[[Sequence[int]], Images | None]  # frame numbers -> true video [K, V, H, W, 3]
# Rays of the layout cast that must meet a box first before a detector is asked to find it, of so many in a view: a larger image has more
# of them, but the detector sees the box at its own size.
_MIN_RAYS, _RAYS = 2, 64 * 112


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScores:
    """Metrics as table rows, what the gate reads, and detections and support for the boxes table."""

    rows: list[dict[str, Any]]
    for_gate: dict[str, float]
    scored_frames: tuple[int, ...]
    detections: dict[int, Boxes]  # scored frame -> boxes in its ego frame
    support: dict[int, dict[int, float]]  # scored frame -> agent -> best matching detection's score
    truth: Images | None = None  # true video at the scored frames [K, V, H, W, 3], where the world can render it


def score_clip(
    scenario: Scenario, conditioner: ScenarioConditioner, folder: Path, leading: Images, world: WorldModel, judges: Judges,
    config: EvaluateConfig,
) -> ClipScores:  # fmt: skip
    """Everything that can be measured on a finished clip; what cannot is absent and the gate says so.

    Of the ``leading`` frames [N, V, H, W, 3], which are the log's, only the last is judged with what was made, as one alone is.
    """
    total = len(scenario.timestamps_us)
    video = np.stack([read_video_frames(folder / f"{channel}.mp4", range(total)) for channel in CAMERAS], axis=1)
    return score_video(scenario, conditioner, video, leading, world, judges, config)


def score_video(
    scenario: Scenario, conditioner: ScenarioConditioner, video: Images, leading: Images, world: WorldModel, judges: Judges,
    config: EvaluateConfig, true_frames: TrueFrames | None = None,
) -> ClipScores:  # fmt: skip
    """The same of decoded frames [T, V, H, W, 3]; ``true_frames`` gives true video where it is at hand already."""
    total, logged, detector = len(scenario.timestamps_us), len(leading), judges.detector
    grid = range(0, total, max(1, round(config.every_s * scenario.fps)))
    frames = [f for f in grid if f >= logged - 1] or [total - 1]
    given = sum(f < logged for f in frames)
    film = true_frames or (lambda asked: _truth(scenario, asked, world.image_hw))
    truth = film(frames) if config.counterfactual else None
    table = MetricTable(scenario, judges, world.image_hw)
    gate = {"codec.reconstruction_psnr_db": _reconstruction_db(world, leading[0])}
    table.add("codec.reconstruction_psnr_db", gate["codec.reconstruction_psnr_db"], "dB")
    appearance = score_appearance(video, scenario.fps, logged, ego_speed_mps=_speed(scenario))
    gate |= appearance.metrics()
    add_appearance(table, appearance)
    for source, pictures in (("generated", video[frames]), ("truth", truth)):
        if pictures is not None:
            agreement = cross_view_metrics(cross_view_agreement(pictures, *rig(conditioner)))
            add_flat(table, agreement, source, len(frames))
            gate |= agreement if source == "generated" else {}
    looks, made = logged_looks(scenario.scene, world.image_hw), [f for f in frames if f >= logged]
    if looks is not None and made:
        add_flat(table, score_novelty(video[made], looks).metrics(), "generated", len(made))
    if judges.ego_motion is not None and total > logged:
        reading = ReadingConfig()
        moments = reading.moments(scenario.fps, logged - 1, total)
        motion = _ego_motion(judges.ego_motion, conditioner, scenario, video[moments], moments)
        gate |= motion
        add_flat(table, motion, "generated", 1)
        stretch = reading.first_stretch(moments)
        floor = film(stretch) if truth is not None else None
        if floor is not None:  # how far the reading itself is off
            add_flat(table, _ego_motion(judges.ego_motion, conditioner, scenario, floor, stretch), "truth", 1)
    if truth is not None and len(frames) > given:
        score = score_counterfactual(video[frames], truth, 1 / config.every_s, given)
        gate |= score.metrics()
        add_counterfactual(table, score.psnr_db[given:], score.ssim[given:], frames[given:])
    detections, support = {}, {}
    if detector is not None:
        labels = [visible_labels(scenario, conditioner, f) for f in frames]
        found = detect_frames(detector, conditioner, scenario, video[frames], frames)
        clip = score_clip_detections([boxes for _, boxes in labels], found, matching(detector))
        everyone = [boxes_of_scenario(scenario, f) for f in frames]
        gate |= clip.metrics()
        gate["detection.unlabelled"] = _add_unlabelled(table, found, everyone, detector, "generated")
        add_detection(table, clip, _official(labels, found), frames, "generated")
        detections = dict(zip(frames, found, strict=True))
        support = {
            f: dict(zip(agents.tolist(), s.tolist(), strict=True))
            for f, (agents, _), s in zip(frames, labels, clip.support, strict=True)
        }
        if truth is not None:
            seen = detect_frames(detector, conditioner, scenario, truth, frames)
            reference = score_clip_detections([boxes for _, boxes in labels], seen, matching(detector))
            gate["detection.reference_materialised"] = reference.materialised
            gate["detection.reference_unlabelled"] = _add_unlabelled(table, seen, everyone, detector, "truth")
            add_detection(table, reference, _official(labels, seen), frames, "truth")
        else:
            gate |= _add_logged_reference(table, detector, scenario, world)
    return ClipScores(
        rows=table.rows, for_gate=gate, scored_frames=tuple(frames), detections=detections, support=support, truth=truth
    )


def encode_loss_db(folder: Path, kept: Mapping[int, Images]) -> dict[str, float]:
    """PSNR of the decoded videos against kept frames {index: [V, H, W, 3]}, per channel."""
    indices = sorted(kept)
    out = {}
    for v, channel in enumerate(CAMERAS):
        decoded = read_video_frames(folder / f"{channel}.mp4", indices)
        out[channel] = float(psnr_db(decoded, np.stack([kept[i][v] for i in indices])).mean())
    return out


def rig(conditioner: ScenarioConditioner) -> tuple[Array, Array]:
    """Intrinsics [V, 3, 3] and camera-to-ego poses [V, 4, 4]."""
    cameras = conditioner.cameras
    return np.stack([c.intrinsics for c in cameras]), np.stack([c.camera_to_ego for c in cameras])


def _ego_motion(
    reader: EgoMotionReader, conditioner: ScenarioConditioner, scenario: Scenario, images: Images, frames: Sequence[int]
) -> dict[str, float]:
    """How far pictures [K, V, H, W, 3] of these frames stray from the commanded path."""
    if len(frames) < 2:
        return {}
    config = ReadingConfig()
    learnt, seen = read_steps(reader, images, *rig(conditioner), config.odometry)
    return score_ego_motion(learnt, seen, scenario.ego_to_global[list(frames)], config).metrics()


def _add_unlabelled(table: MetricTable, found: list[Boxes], everyone: list[Boxes], detector: Detector, source: str) -> float:
    value = float(unlabelled_detections(found, everyone, matching(detector)).mean())
    table.add("detection.unlabelled", value, "boxes", source=source, samples=len(found))
    return value


def _official(labels: list[tuple[NDArray[np.int64], Boxes]], found: list[Boxes]) -> DetectionReport:
    return evaluate_boxes_in_memory(
        {str(i): boxes for i, (_, boxes) in enumerate(labels)}, {str(i): boxes for i, boxes in enumerate(found)}
    )


def matching(detector: Detector) -> ClipMatchConfig:
    known = detector.operating_score
    return ClipMatchConfig() if known is None else ClipMatchConfig(min_score=known)


def detect_frames(
    detector: Detector, conditioner: ScenarioConditioner, scenario: Scenario, images: Images, frames: Sequence[int]
) -> list[Boxes]:
    return detector.detect_clip(images, *rig(conditioner), scenario.ego_to_global[list(frames)])


def visible_labels(scenario: Scenario, conditioner: ScenarioConditioner, frame: int) -> tuple[NDArray[np.int64], Boxes]:
    """Agents that enough rays of the layout meet first, with their boxes in the ego frame."""
    shown = np.flatnonzero(conditioner.seen_rays(frame) * _RAYS >= _MIN_RAYS * math.prod(conditioner.cast_hw))
    known = np.array([c is not None for c in scenario.agents.detection_classes], dtype=bool)
    rows = np.flatnonzero(scenario.agents.present[:, frame] & known)
    return shown, boxes_of_scenario(scenario, frame).select(np.flatnonzero(np.isin(rows, shown)))


def _truth(scenario: Scenario, frames: Sequence[int], image_hw: tuple[int, int]) -> Images | None:
    """True video [T, V, H, W, 3] of the commanded path, where the world can be rendered."""
    world = open_counterfactual(scenario.scene)
    return None if world is None else np.stack([world.views(scenario, f, image_hw).image for f in frames])


def _add_logged_reference(table: MetricTable, detector: Detector, scenario: Scenario, world: WorldModel) -> dict[str, float]:
    """Without true video: how many boxes the detector finds in the log's own images."""
    log = logged_clip(scenario, world.image_hw)
    if log is None:
        return {}
    conditioner = world.conditioner(log.scenario)
    boxes = [visible_labels(log.scenario, conditioner, f)[1] for f in log.frames]
    found = detect_frames(detector, conditioner, log.scenario, log.images, log.frames)
    score = score_clip_detections(boxes, found, matching(detector))
    metrics = {"detection.reference_materialised": score.materialised, "detection.logged_boxes": float(score.total.boxes)}
    for name, value in metrics.items():
        table.add(name, value, "", source="log", samples=len(log.frames))
    return metrics


@torch.inference_mode()
def _reconstruction_db(world: WorldModel, first: Images) -> float:
    images = images_to_tensor(first, world.device)
    return float(psnr_db(tensor_to_images(world.codec.decode(world.codec.encode(images))), first).mean())


def _speed(scenario: Scenario) -> Array:
    step = np.linalg.norm(np.diff(scenario.ego_to_global[:, :2, 3], axis=0), axis=1) * scenario.fps
    return np.concatenate([step[:1], step]) if len(step) else np.zeros(1)
