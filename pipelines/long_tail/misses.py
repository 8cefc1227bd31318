"""What the evaluator misses, from the labels of a published version and the support it gave them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from dwm.scenario.rarity import Support
from dwm.scenes.types import DETECTION_CLASSES
from evaluators.clip_detection import ClipMatchConfig
from pipelines.config import EvaluateConfig, MixConfig
from pipelines.dataset import Dataset

# Labels of the log itself: what the simulation put beyond it says nothing about the log.
_OF_THE_LOG = ("log", "interpolated", "transformed")
_POSE = ("clip_id", "frame_index")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredLabels:
    """L labels of a scene that the evaluator was shown, over all clips made from it."""

    timestamps_us: NDArray[np.int64]  # [L] the log's clock
    classes: NDArray[np.str_]  # [L]
    missed: NDArray[np.bool_]  # [L]

    def support(self, start_us: float, end_us: float) -> dict[str, Support]:
        """By class, within a stretch of time; classes without labels are left out."""
        inside = (self.timestamps_us >= start_us) & (self.timestamps_us <= end_us)
        return support_by_class(self.classes[inside], self.missed[inside])


def support_by_class(classes: NDArray[np.str_], missed: NDArray[np.bool_]) -> dict[str, Support]:
    """How many labels of each class there are and how many of them were missed."""
    own = {name: classes == name for name in DETECTION_CLASSES}
    return {name: Support(labels=int(is_.sum()), missed=int(missed[is_].sum())) for name, is_ in own.items() if is_.any()}


def missed_below(mix: MixConfig, evaluate: EvaluateConfig) -> float:
    """The support from which a label counts as seen: given, or the detector's operating score, or the gate's default."""
    if mix.missed_below is not None:
        return mix.missed_below
    if evaluate.detector is not None:
        from evaluators.detector.weights import load_detector

        known = load_detector(Path(evaluate.detector))[1].get("operating_score")
        if known is not None:
            return float(known)
    return ClipMatchConfig().min_score


def read_misses(path: Path, below: float) -> dict[str, ScoredLabels]:
    """By scene token: labels with a support, within the range that clips are scored in.

    A miss may be the evaluator's fault or the world model's, which did not draw the thing: both ask for more clips.
    Raises InputError when there is no complete version at ``path``.
    """
    dataset = Dataset.open(path)
    scored = (
        ~pc.field("support").is_null() & pc.field("label_source").isin(_OF_THE_LOG) & ~pc.field("detection_class").is_null()
    )
    columns = [*_POSE, "timestamp_us", "detection_class", "center_x", "center_y", "support"]
    boxes = dataset.table("boxes", scored, columns).to_pydict()
    driven = dataset.table("ego_poses", pc.field("path") == "commanded", [*_POSE, "x", "y"]).to_pydict()
    places = zip(driven["x"], driven["y"], strict=True)
    ego = dict(zip(zip(driven["clip_id"], driven["frame_index"], strict=True), places, strict=True))
    scenes = dict(zip(*dataset.table("clips", columns=["clip_id", "source_scene_token"]).to_pydict().values(), strict=True))
    centres = np.column_stack([boxes["center_x"], boxes["center_y"]]).reshape(-1, 2)
    at = np.reshape([ego[key] for key in zip(boxes["clip_id"], boxes["frame_index"], strict=True)], (-1, 2))
    near = np.linalg.norm(centres - at, axis=1) < ClipMatchConfig().max_range_m
    token = np.array([scenes[clip] for clip in boxes["clip_id"]], dtype=str)
    times, classes = np.array(boxes["timestamp_us"], np.int64), np.array(boxes["detection_class"], dtype=str)
    missed = np.array(boxes["support"], np.float64) < below
    return {
        str(name): ScoredLabels(timestamps_us=times[own], classes=classes[own], missed=missed[own])
        for name in np.unique(token[near])
        for own in [near & (token == name)]
    }
