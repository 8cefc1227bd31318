"""The shipped detector on held-out key frames, scored by the official nuScenes evaluation through a submission file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dwm.scenes.nuscenes import read_scene
from dwm.scenes.types import DETECTION_CLASSES
from evaluators.detection import evaluate_detection
from evaluators.detector.inference import Detector
from evaluators.detector.samples import key_frames_of_scene
from evaluators.splits import scenes_of_split
from evaluators.submission import write_submission


def bench_detector(dataroot: Path, version: str, split: str, weights: Path) -> str:
    """Markdown table: mAP, NDS and every class."""
    detector = Detector.load(weights)
    found, placed = {}, {}
    for name in scenes_of_split(dataroot, version, split):
        frames = key_frames_of_scene(read_scene(dataroot, version, name), detector.model.config.image_hw)
        found |= detector.detect_key_frames(frames)
        placed |= dict(zip(frames.tokens, frames.ego_to_global, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        submission = write_submission(Path(folder) / "submission.json", found, placed)
        report = evaluate_detection(dataroot, version, split, submission, Path(folder))
    lines = [f"{report.samples} key frames of {split}, {report.config}", "", "| class | AP | boxes |", "|---|---|---|"]
    lines += [f"| {name} | {report.class_ap[name]:.3f} | {report.truth_counts[name]} |" for name in DETECTION_CLASSES]
    lines += [f"| **mAP** | {report.mean_ap:.3f} | |", f"| mAP over classes present | {report.mean_ap_with_truth:.3f} | |"]
    lines += [f"| **NDS** | {report.nds:.3f} | |"]
    lines += [f"| {name} | {value:.3f} | |" for name, value in report.tp_errors.items()]
    return "\n".join(lines)
