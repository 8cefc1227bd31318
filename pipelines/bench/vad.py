"""VAD on the images of held-out scenes: its published families of scores, and its detections beside those of the first detector.

Annotations, map expansion and CAN bus are the scenes' own. Both detectors are scored by VAD's rules (``evaluators.vad_detection``): 30 m
ahead and behind, 15 m aside, scores of at least 0.2, and again counting every score, as the ranking of a small network may be better than its scores.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dwm.scenes.nuscenes import read_scene
from dwm.scenes.types import DETECTION_CLASSES, Scene
from evaluators.clip_detection import ClipMatchConfig, score_clip_detections, unlabelled_detections
from evaluators.detection import DetectionReport
from evaluators.detector.inference import Detector
from evaluators.detector.samples import key_frames_of_scene
from evaluators.operating_point import operating_score
from evaluators.splits import scenes_of_split
from evaluators.vad.detector import VadDetector
from evaluators.vad.logged import logged_stretch
from evaluators.vad.score import JudgedFrame, judge_stretch, score_frames
from evaluators.vad_detection import MIN_SCORE
from pipelines.scoring import Judged, load_vad, vad_tables


def bench_vad(dataroot: Path, version: str, split: str, vad: Path, size: str, detector: Path) -> str:
    """The tables as Markdown, over the key frames of a split; ``size`` is the network of a public checkpoint."""
    model, first = load_vad(vad, size), Detector.load(detector)
    judged: Judged = []
    others: Judged = []
    for name in tqdm(scenes_of_split(dataroot, version, split), desc="scenes", disable=None):
        scene = read_scene(dataroot, version, name)
        judged.append(judge_stretch(model, logged_stretch(scene)))
        others.append(_found_by(first, scene, judged[-1]))
    frames = sum(map(len, judged))
    head = f"{frames} key frames of {len(judged)} scenes of {split}, the log's own images; intervals over scenes"
    rows = {"VAD": judged}
    both = {"VAD": judged, "detector": others}
    return "\n\n".join([head, *vad_tables(rows), _detections(both), _as_judges(both, VadDetector(model).reach_m)])


def _found_by(detector: Detector, scene: Scene, frames: list[JudgedFrame]) -> list[JudgedFrame]:
    """The same key frames with another detector's boxes."""
    keys = key_frames_of_scene(scene, detector.image_hw)
    found = detector.detect_key_frames(keys)
    return [replace(frame, found=found[token]) for frame, token in zip(frames, keys.tokens, strict=True)]


def _detections(rows: dict[str, Judged]) -> str:
    """AP of each class, with VAD's least score and without it."""
    reports: dict[str, DetectionReport] = {}
    for name, judged in rows.items():
        reports[f"{name}, from {MIN_SCORE:g}"] = score_frames(judged).detection.scores
        reports[f"{name}, all scores"] = score_frames([[_counted(frame) for frame in clip] for clip in judged]).detection.scores
    counts = next(iter(reports.values())).truth_counts
    lines = ["| class | boxes | " + " | ".join(reports) + " |", "|---" * (2 + len(reports)) + "|"]
    for name in DETECTION_CLASSES:
        lines.append(f"| {name} | {counts[name]} | " + " | ".join(f"{r.class_ap[name]:.3f}" for r in reports.values()) + " |")
    for title, name in (("mAP", "mean_ap"), ("NDS", "nds")):
        lines.append(f"| **{title}** | | " + " | ".join(f"{getattr(r, name):.3f}" for r in reports.values()) + " |")
    return "\n".join(lines)


def _as_judges(rows: dict[str, Judged], reach_m: tuple[float, float]) -> str:
    """What the gate would see of both within the same reach, each from the score on that is best for it on these very frames."""
    lines = [
        "| within reach of both | score | labels | found | of what it finds, right | F1 | no label, a frame |",
        "|---" * 7 + "|",
    ]
    for name, judged in rows.items():
        frames = [frame for clip in judged for frame in clip]
        truth, found = [frame.truth for frame in frames], [frame.found for frame in frames]
        config = ClipMatchConfig(reach_m=reach_m)
        config = replace(config, min_score=operating_score(truth, found, config))
        score = score_clip_detections(truth, found, config)
        shown = sum(int((config.counts(boxes) & (boxes.scores >= config.min_score)).sum()) for boxes in found)
        hits = score.materialised * score.total.boxes
        figures = (score.materialised, hits / max(shown, 1), 2 * hits / max(shown + score.total.boxes, 1))
        invented = float(unlabelled_detections(found, truth, config).mean())
        cells = [f"{config.min_score:.3f}", str(score.total.boxes), *(f"{value:.2f}" for value in figures), f"{invented:.2f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _counted(frame: JudgedFrame) -> JudgedFrame:
    """With scores moved above the least one, in their order."""
    scores = MIN_SCORE + (1 - MIN_SCORE) * np.asarray(frame.found.scores)
    return replace(frame, found=replace(frame.found, scores=scores))
