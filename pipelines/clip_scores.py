"""Scores of one clip, measured on what users will decode: the mp4 files, not the frames in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dwm.conditioning.build import ScenarioConditioner, images_to_tensor, tensor_to_images
from dwm.rollout.world_model import WorldModel
from dwm.scenario.types import Scenario
from dwm.scenes.clips import named_resize, read_video_frames
from dwm.scenes.proving_ground.counterfactual import open_counterfactual
from dwm.scenes.types import CAMERAS
from evaluators.boxes import Boxes, boxes_of_scenario
from evaluators.buckets import BUCKET_S, bucket_means
from evaluators.clip_detection import ClipDetectionScore, ClipMatchConfig, score_clip_detections
from evaluators.counterfactual import psnr_db, score_counterfactual
from evaluators.detection import DetectionReport, evaluate_boxes_in_memory
from evaluators.detector.inference import Detector
from evaluators.flicker import AppearanceScore, score_appearance
from evaluators.protocol import ProtocolCard
from pipelines.config import EvaluateConfig
from pipelines.logged_clip import logged_clip

Images = NDArray[np.uint8]
Array = NDArray[np.float64]
_UNITS = {"image.min_spread": "grey levels", "sharpness.mean": "grey levels per pixel"}  # of those that have one
_PICTURES = {"generated": "decoded video", "truth": "rendered frames", "log": "logged images"}  # by source of a metric
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


def score_clip(
    scenario: Scenario, conditioner: ScenarioConditioner, folder: Path, leading: Images, world: WorldModel,
    detector: Detector | None, config: EvaluateConfig,
) -> ClipScores:  # fmt: skip
    """Everything that can be measured on a finished clip; what cannot is absent and the gate says so.

    Of the ``leading`` frames [N, V, H, W, 3], which are the log's, only the last is judged with what was made, as one alone is.
    """
    total, logged = len(scenario.timestamps_us), len(leading)
    grid = range(0, total, max(1, round(config.every_s * scenario.fps)))
    frames = [f for f in grid if f >= logged - 1] or [total - 1]
    given = sum(f < logged for f in frames)
    video = np.stack([read_video_frames(folder / f"{channel}.mp4", range(total)) for channel in CAMERAS], axis=1)
    truth = _truth(scenario, frames, world.image_hw) if config.counterfactual else None
    table = _Table(scenario, detector, world.image_hw)
    gate = {"codec.reconstruction_psnr_db": _reconstruction_db(world, leading[0])}
    table.add("codec.reconstruction_psnr_db", gate["codec.reconstruction_psnr_db"], "dB")
    appearance = score_appearance(video, scenario.fps, logged, ego_speed_mps=_speed(scenario))
    gate |= appearance.metrics()
    _add_appearance(table, appearance)
    if truth is not None and len(frames) > given:
        score = score_counterfactual(video[frames], truth, 1 / config.every_s, given)
        gate |= score.metrics()
        _add_counterfactual(table, score.psnr_db[given:], score.ssim[given:], frames[given:])
    detections, support = {}, {}
    if detector is not None:
        labels = [visible_labels(scenario, conditioner, f) for f in frames]
        found = detect_frames(detector, conditioner, scenario, video[frames], frames)
        clip = score_clip_detections([boxes for _, boxes in labels], found, matching(detector))
        gate |= clip.metrics()
        _add_detection(table, clip, _official(labels, found), frames, "generated")
        detections = dict(zip(frames, found, strict=True))
        support = {
            f: dict(zip(agents.tolist(), s.tolist(), strict=True))
            for f, (agents, _), s in zip(frames, labels, clip.support, strict=True)
        }
        if truth is not None:
            seen = detect_frames(detector, conditioner, scenario, truth, frames)
            reference = score_clip_detections([boxes for _, boxes in labels], seen, matching(detector))
            gate["detection.reference_materialised"] = reference.materialised
            _add_detection(table, reference, _official(labels, seen), frames, "truth")
        else:
            gate |= _add_logged_reference(table, detector, scenario, world)
    return ClipScores(rows=table.rows, for_gate=gate, scored_frames=tuple(frames), detections=detections, support=support)


def encode_loss_db(folder: Path, kept: Mapping[int, Images]) -> dict[str, float]:
    """PSNR of the decoded videos against kept frames {index: [V, H, W, 3]}, per channel."""
    indices = sorted(kept)
    out = {}
    for v, channel in enumerate(CAMERAS):
        decoded = read_video_frames(folder / f"{channel}.mp4", indices)
        out[channel] = float(psnr_db(decoded, np.stack([kept[i][v] for i in indices])).mean())
    return out


class _Table:
    """Rows of the ``metrics`` table with their protocol."""

    def __init__(self, scenario: Scenario, detector: Detector | None, image_hw: tuple[int, int]) -> None:
        self.rows: list[dict[str, Any]] = []
        self._image_hw, self._seen_hw = image_hw, detector.image_hw if detector else image_hw
        self._scenario, self._weights = scenario, detector.sha256 if detector else None

    def add(self, metric: str, value: float, unit: str, *, source: str = "generated", samples: int = 1, **columns: Any) -> None:
        by_detector = metric.startswith("detection")
        scored_hw = self._seen_hw if by_detector else self._image_hw
        card = ProtocolCard(
            metric=metric, samples=samples, unit="frame", frames=len(self._scenario.timestamps_us),
            frames_per_second=self._scenario.fps, cameras=CAMERAS, image_hw=scored_hw,
            resize=named_resize(self._image_hw, scored_hw), source=_PICTURES[source],
            weights_sha256=self._weights if by_detector else None, seed=self._scenario.seed,
        )  # fmt: skip
        self.rows.append({"metric": metric, "value": float(value), "unit": unit, "source": source, "card": card, **columns})

    def add_buckets(self, metric: str, values: Array, rate_hz: float, unit: str, source: str = "generated") -> None:
        end_s = len(self._scenario.timestamps_us) / self._scenario.fps
        for k, mean in enumerate(bucket_means(values, rate_hz)):
            until_s = min((k + 1) * BUCKET_S, end_s)
            self.add(metric, mean, unit, source=source, bucket_start_s=k * BUCKET_S, bucket_end_s=until_s)


def _add_appearance(table: _Table, score: AppearanceScore) -> None:
    for name, value in score.metrics().items():
        if not name.endswith("s"):  # the stretches follow as buckets
            table.add(name, value, _UNITS.get(name, ""))
    table.add_buckets("flicker", score.judged(1 - score.change.mean(1) / 255), score.fps, "")
    table.add_buckets("sharpness", score.judged(score.sharpness.mean(1)), score.fps, "grey levels per pixel")


def _add_counterfactual(table: _Table, psnr: Array, similarity: Array, frames: Sequence[int]) -> None:
    table.add("counterfactual.psnr_db", float(psnr.mean()), "dB", samples=psnr.size)
    table.add("counterfactual.ssim", float(similarity.mean()), "", samples=similarity.size)
    for channel, value in zip(CAMERAS, psnr.mean(0), strict=True):
        table.add("counterfactual.psnr_db", float(value), "dB", channel=channel, samples=len(psnr))
    rate = 1 / max((frames[1] - frames[0]) / table._scenario.fps, 1e-9) if len(frames) > 1 else 1.0
    table.add_buckets("counterfactual.psnr_db", psnr.mean(1), rate, "dB")


def _add_detection(
    table: _Table, clip: ClipDetectionScore, report: DetectionReport, frames: Sequence[int], source: str
) -> None:
    n = len(frames)
    for name, value in clip.metrics().items():
        if ".recall." not in name:
            table.add(name, value, "", source=source, samples=n)
    for name, score in clip.classes.items():
        if score.boxes:
            table.add("detection.recall", score.recall, "", source=source, samples=n, detection_class=name)
    table.add("detection.map", report.mean_ap, "", source=source, samples=n)
    table.add("detection.nds", report.nds, "", source=source, samples=n)
    table.add("detection.map_with_truth", report.mean_ap_with_truth, "", source=source, samples=n)
    for name, value in report.class_ap.items():
        if report.truth_counts[name]:
            table.add("detection.ap", value, "", source=source, samples=n, detection_class=name)
    rate = table._scenario.fps / (frames[1] - frames[0]) if n > 1 else 1.0
    by_time = np.pad(clip.recall_by_frame, (round(frames[0] / table._scenario.fps * rate), 0), constant_values=math.nan)
    table.add_buckets("detection.recall_by_time", by_time, rate, "", source)


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
    intrinsics = np.stack([c.intrinsics for c in conditioner.cameras])
    camera_to_ego = np.stack([c.camera_to_ego for c in conditioner.cameras])
    return detector.detect_clip(images, intrinsics, camera_to_ego, scenario.ego_to_global[list(frames)])


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


def _add_logged_reference(table: _Table, detector: Detector, scenario: Scenario, world: WorldModel) -> dict[str, float]:
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
