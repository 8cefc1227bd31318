"""Scores of one clip, measured on what users will decode: the mp4 files, not the frames in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from evaluators.box_finder import BoxFinder
from evaluators.boxes import Boxes, boxes_of_scenario
from evaluators.clip_detection import ClipDetectionScore, score_clip_detections, unlabelled_detections
from evaluators.counterfactual import psnr_db, score_counterfactual
from evaluators.cross_view import cross_view_agreement, cross_view_metrics
from evaluators.detection import evaluate_boxes_in_memory
from evaluators.ego_motion.score import ReadingConfig, read_steps, score_ego_motion
from evaluators.flicker import score_appearance
from evaluators.novelty import score_novelty
from pipelines.clip_labels import detect_frames, matching, rig, visible_labels
from pipelines.config import EvaluateConfig
from pipelines.logged_clip import logged_clip
from pipelines.logged_looks import logged_looks
from pipelines.metric_table import Judges, MetricTable, add_appearance, add_counterfactual, add_detection, add_flat

Images = NDArray[np.uint8]
Array = NDArray[np.float64]
Film = Callable[[list[int]], Images | None]  # frame numbers -> images [K, V, H, W, 3]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScores:
    """Metrics as table rows, what the gate reads, and detections and support for the boxes table."""

    rows: list[dict[str, Any]]
    for_gate: dict[str, float]
    scored_frames: tuple[int, ...]
    detections: dict[int, Boxes]  # scored frame -> boxes in its ego frame
    support: dict[int, dict[int, float]]  # scored frame -> agent that the detector can find -> best matching detection's score
    truth: Images | None = None  # true video at the scored frames [K, V, H, W, 3], where the world can render it


def score_clip(
    scenario: Scenario, conditioner: ScenarioConditioner, folder: Path, leading: Images, world: WorldModel, judges: Judges,
    config: EvaluateConfig,
) -> ClipScores:  # fmt: skip
    """Everything that can be measured on a finished clip; what cannot is absent and the gate says so."""
    total = len(scenario.timestamps_us)
    video = np.stack([read_video_frames(folder / f"{channel}.mp4", range(total)) for channel in CAMERAS], axis=1)
    return ClipScorer(scenario, conditioner, leading, world, judges, config).score(video)


class ClipScorer:
    """Scores videos of one commanded clip; what it is to show, and how true video of it scores, is found out once.

    Of the ``leading`` frames [N, V, H, W, 3], which are the log's, only the last is judged with what was made, as one alone is.
    ``true_frames`` gives true video where it is at hand already.
    """

    def __init__(
        self, scenario: Scenario, conditioner: ScenarioConditioner, leading: Images, world: WorldModel, judges: Judges,
        config: EvaluateConfig, true_frames: Film | None = None,
    ) -> None:  # fmt: skip
        self._scenario, self._conditioner, self._judges, self._every_s = scenario, conditioner, judges, config.every_s
        self._given, self._hw = len(leading), world.image_hw
        total = len(scenario.timestamps_us)
        grid = range(0, total, max(1, round(config.every_s * scenario.fps)))
        self._frames = [f for f in grid if f >= self._given - 1] or [total - 1]
        self._reading = ReadingConfig().for_video(scenario.fps)
        self._moments = self._reading.moments(scenario.fps, self._given - 1, total)
        self._labels, self._everyone = [], []
        if judges.detector is not None:
            self._labels = [visible_labels(scenario, conditioner, f) for f in self._frames]
            self._everyone = [boxes_of_scenario(scenario, f) for f in self._frames]
        self._looks = logged_looks(scenario.scene, world.image_hw)
        self._known = MetricTable(scenario, judges, world.image_hw)  # before there is a video
        reconstruction_db = _reconstruction_db(world, leading[0])
        self._known.add("codec.reconstruction_psnr_db", reconstruction_db, "dB")
        self._for_gate = {"codec.reconstruction_psnr_db": reconstruction_db}
        film = true_frames or (lambda asked: _truth(scenario, asked, world.image_hw))
        self._truth = film(self._frames) if config.counterfactual else None
        if self._truth is not None:
            self._add_truth(self._truth, film)
        elif judges.detector is not None:
            self._for_gate |= _add_logged_reference(self._known, judges.detector, scenario, world)

    def score(self, video: Images) -> ClipScores:
        """Scores of a video [T, V, H, W, 3] of all frames of the clip."""
        scenario, frames, given = self._scenario, self._frames, self._given
        table, gate, pictures = MetricTable(scenario, self._judges, self._hw), dict(self._for_gate), video[frames]
        appearance = score_appearance(video, scenario.fps, given, ego_speed_mps=_speed(scenario))
        gate |= appearance.metrics()
        add_appearance(table, appearance)
        agreement = cross_view_metrics(cross_view_agreement(pictures, *rig(self._conditioner)))
        gate |= agreement
        add_flat(table, agreement, "generated", len(frames))
        made = [f for f in frames if f >= given]
        if self._looks is not None and made:
            add_flat(table, score_novelty(video[made], self._looks).metrics(), "generated", len(made))
        gate |= self._add_ego_motion(table, lambda moments: video[moments], self._moments, "generated")
        shown = sum(f < given for f in frames)
        if self._truth is not None and len(frames) > shown:
            score = score_counterfactual(pictures, self._truth, 1 / self._every_s, shown)
            gate |= score.metrics()
            add_counterfactual(table, score.psnr_db[shown:], score.ssim[shown:], frames[shown:])
        detections, support = {}, {}
        if self._judges.detector is not None:
            clip, found, gate["detection.unlabelled"] = self._add_detection(table, self._judges.detector, pictures, "generated")
            gate |= clip.metrics()
            detections = dict(zip(frames, found, strict=True))
            support = {
                f: dict(zip(agents[known].tolist(), s[known].tolist(), strict=True))
                for f, (agents, boxes), s in zip(frames, self._labels, clip.support, strict=True)
                for known in [clip.config.reaches(boxes)]
            }
        return ClipScores(
            rows=[*self._known.rows, *table.rows], for_gate=gate, scored_frames=tuple(frames), detections=detections,
            support=support, truth=self._truth,
        )  # fmt: skip

    def _add_truth(self, truth: Images, film: Film) -> None:
        """How true video scores: the floor of what reads it, and what the gate holds the detector against."""
        agreement = cross_view_metrics(cross_view_agreement(truth, *rig(self._conditioner)))
        add_flat(self._known, agreement, "truth", len(self._frames))
        self._add_ego_motion(self._known, film, self._reading.first_stretch(self._moments), "truth")
        if self._judges.detector is not None:
            clip, _, unlabelled = self._add_detection(self._known, self._judges.detector, truth, "truth")
            self._for_gate["detection.reference_materialised"] = clip.materialised
            self._for_gate["detection.reference_unlabelled"] = unlabelled

    def _add_ego_motion(self, table: MetricTable, film: Film, moments: list[int], source: str) -> dict[str, float]:
        """How far a video strays from the commanded path."""
        reader, config = self._judges.ego_motion, self._reading
        images = film(moments) if reader is not None and len(moments) > 1 else None
        if reader is None or images is None:
            return {}
        learnt, seen = read_steps(reader, images, *rig(self._conditioner), config.odometry)
        metrics = score_ego_motion(learnt, seen, self._scenario.ego_to_global[moments], config).metrics()
        add_flat(table, metrics, source, 1)
        return metrics

    def _add_detection(
        self, table: MetricTable, detector: BoxFinder, pictures: Images, source: str
    ) -> tuple[ClipDetectionScore, list[Boxes], float]:
        """What is found of the labels, all that is found, and how much of it a frame no label knows."""
        labels, rules = [boxes for _, boxes in self._labels], matching(detector)
        found = detect_frames(detector, self._conditioner, self._scenario, pictures, self._frames)
        clip = score_clip_detections(labels, found, rules)
        unlabelled = float(unlabelled_detections(found, self._everyone, rules).mean())
        table.add("detection.unlabelled", unlabelled, "boxes", source=source, samples=len(found))
        report = evaluate_boxes_in_memory(*({str(i): b for i, b in enumerate(boxes)} for boxes in (labels, found)))
        add_detection(table, clip, report, self._frames, source)
        return clip, found, unlabelled


def encode_loss_db(folder: Path, kept: Mapping[int, Images]) -> dict[str, float]:
    """PSNR of the decoded videos against kept frames {index: [V, H, W, 3]}, per channel."""
    indices = sorted(kept)
    out = {}
    for v, channel in enumerate(CAMERAS):
        decoded = read_video_frames(folder / f"{channel}.mp4", indices)
        out[channel] = float(psnr_db(decoded, np.stack([kept[i][v] for i in indices])).mean())
    return out


def _truth(scenario: Scenario, frames: list[int], image_hw: tuple[int, int]) -> Images | None:
    """True video [T, V, H, W, 3] of the commanded path, where the world can be rendered."""
    world = open_counterfactual(scenario.scene)
    return None if world is None else np.stack([world.views(scenario, f, image_hw).image for f in frames])


def _add_logged_reference(table: MetricTable, detector: BoxFinder, scenario: Scenario, world: WorldModel) -> dict[str, float]:
    """Without true video: how many boxes the detector finds in the log's own images."""
    log = logged_clip(scenario, world.image_hw)
    if log is None:
        return {}
    conditioner = world.conditioner(log.scenario)
    boxes = [visible_labels(log.scenario, conditioner, f)[1] for f in log.frames]
    found = detect_frames(detector, conditioner, log.scenario, log.images, log.frames)
    rules, everyone = matching(detector), [boxes_of_scenario(log.scenario, f) for f in log.frames]
    score, unlabelled = score_clip_detections(boxes, found, rules), unlabelled_detections(found, everyone, rules)
    metrics = {
        "detection.reference_materialised": score.materialised, "detection.reference_unlabelled": float(unlabelled.mean()),
        "detection.logged_boxes": float(score.total.boxes),
    }  # fmt: skip
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
