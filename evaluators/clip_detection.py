"""Did the conditioned objects materialise? Detections in a generated clip against the boxes it was asked to show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from nuscenes.eval.detection.algo import accumulate, calc_ap

from dwm.scenes.types import DETECTION_CLASSES
from evaluators.boxes import CLASS_GROUPS, Boxes
from evaluators.detection import as_eval_boxes, official_config

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipMatchConfig:
    """How detections are matched to conditioned boxes."""

    match_m: float = 2.0  # centre distance in the plane
    min_score: float = 0.3  # a detection counts from this score on; a detector knows its own (evaluators.operating_point)
    max_range_m: float = 30.0  # boxes further from the ego are left out, conditioned and detected alike
    reach_m: tuple[float, float] = (math.inf, math.inf)  # and those beyond a detector's: ahead or behind, and aside

    def counts(self, boxes: Boxes) -> NDArray[np.bool_]:
        """Which boxes [N] of an ego frame take part."""
        return self.reaches(boxes) & (boxes.distances_m < self.max_range_m)

    def reaches(self, boxes: Boxes) -> NDArray[np.bool_]:
        """Which of them the detector can find."""
        return (np.abs(boxes.centers_m[:, :2]) < self.reach_m).all(axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """One class; recall and AP are NaN without conditioned boxes, precision without detections."""

    recall: float
    precision: float
    ap: float  # at match_m, as the devkit integrates it
    boxes: int
    detections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipDetectionScore:
    """Scores of a clip at its key frames."""

    total: ClassScore  # recall and precision over all boxes; AP is the mean over classes with boxes
    classes: dict[str, ClassScore]
    materialised: float  # share of boxes in range whose support reaches min_score, class confusions within a group forgiven
    recall_by_frame: Array  # [T] share of boxes in range that materialised; NaN for frames without boxes
    support: tuple[Array, ...]  # [T][N] best score matched to each box, 0 without a match; all boxes, in range or not
    config: ClipMatchConfig

    def metrics(self, prefix: str = "detection.") -> dict[str, float]:
        """A flat table; classes without boxes are left out."""
        flat = {
            "recall": self.total.recall,
            "precision": self.total.precision,
            "ap_near": self.total.ap,  # not the official AP: one distance, boxes in range only
            "materialised": self.materialised,
        }
        flat["boxes_in_range"] = float(self.total.boxes)
        flat |= {f"recall.{name}": s.recall for name, s in self.classes.items() if s.boxes}
        return {prefix + name: value for name, value in flat.items()}


def score_clip_detections(
    truth: Sequence[Boxes], predictions: Sequence[Boxes], config: ClipMatchConfig | None = None
) -> ClipDetectionScore:
    """Recall, precision and AP of a clip's key frames, boxes in each frame's ego frame, and the support of every box."""
    config = config or ClipMatchConfig()
    support = tuple(
        box_support(t, p, config.match_m, CLASS_GROUPS[t.labels], CLASS_GROUPS[p.labels])
        for t, p in zip(truth, predictions, strict=True)
    )
    near = [config.counts(boxes) for boxes in truth]
    shown = [s[n] >= config.min_score for s, n in zip(support, near, strict=True)]
    all_shown = np.concatenate(shown) if shown else np.zeros(0, dtype=bool)
    in_range = [boxes.select(n) for boxes, n in zip(truth, near, strict=True)]
    found = [boxes.select(config.counts(boxes)) for boxes in predictions]
    counts = _match_counts(in_range, found, config)
    aps = _average_precisions(in_range, found, config.match_m)
    classes = {name: _class_score(counts[i], aps[i]) for i, name in enumerate(DETECTION_CLASSES)}
    known = aps[np.isfinite(aps)]
    return ClipDetectionScore(
        total=_class_score(counts.sum(0), float(known.mean()) if len(known) else float("nan")), classes=classes,
        materialised=float(all_shown.mean()) if len(all_shown) else float("nan"),
        recall_by_frame=np.array([s.mean() if len(s) else np.nan for s in shown]), support=support, config=config,
    )  # fmt: skip


def box_support(
    truth: Boxes, found: Boxes, match_m: float, truth_kinds: NDArray[np.int64], found_kinds: NDArray[np.int64]
) -> Array:
    """Score [N] of the detection matched to each box, 0 without one.

    Greedy as in the devkit: by falling score, each detection takes the nearest free box of its kind within ``match_m``.
    """
    support = np.zeros(len(truth))
    free = np.ones(len(truth), dtype=bool)
    gaps = np.linalg.norm(found.centers_m[:, None, :2] - truth.centers_m[None, :, :2], axis=-1)
    for i in np.argsort(-found.scores, kind="stable"):
        distance = np.where(free & (truth_kinds == found_kinds[i]), gaps[i], np.inf)
        if len(distance) and distance.min() < match_m:
            nearest = int(distance.argmin())
            support[nearest], free[nearest] = found.scores[i], False
    return support


def unlabelled_detections(predictions: Sequence[Boxes], everyone: Sequence[Boxes], config: ClipMatchConfig) -> Array:
    """Detections [T] of each frame, sure and in range, with no label within ``match_m``, whatever its class or visibility.

    ``everyone`` are all labels, hidden ones too: what a detector finds of those is no invention.
    """
    counts = []
    for found, labels in zip(predictions, everyone, strict=True):
        sure = found.select((found.scores >= config.min_score) & config.counts(found))
        gaps = np.linalg.norm(sure.centers_m[:, None, :2] - labels.centers_m[None, :, :2], axis=-1)
        counts.append(float((gaps.min(axis=1, initial=np.inf) >= config.match_m).sum()))
    return np.array(counts)


def _match_counts(truth: list[Boxes], found: list[Boxes], config: ClipMatchConfig) -> NDArray[np.int64]:
    """[class, (matched, boxes, detections)] counting detections from ``min_score`` on, class by class."""
    counts = np.zeros((len(DETECTION_CLASSES), 3), np.int64)
    for t, f in zip(truth, found, strict=True):
        sure = f.select(f.scores >= config.min_score)
        matched = box_support(t, sure, config.match_m, t.labels, sure.labels) > 0
        for column, labels in enumerate((t.labels[matched], t.labels, sure.labels)):
            counts[:, column] += np.bincount(labels, minlength=len(DETECTION_CLASSES))
    return counts


def _average_precisions(truth: list[Boxes], found: list[Boxes], match_m: float) -> Array:
    official = official_config()
    gt, predicted = as_eval_boxes(dict(_numbered(truth)), is_truth=True), as_eval_boxes(dict(_numbered(found)), is_truth=False)
    present = {box.detection_name for box in gt.all}

    def average_precision(name: str) -> float:
        data = accumulate(gt, predicted, name, official.dist_fcn_callable, match_m)
        return calc_ap(data, official.min_recall, official.min_precision)

    return np.array([average_precision(name) if name in present else np.nan for name in DETECTION_CLASSES])


def _numbered(frames: list[Boxes]) -> list[tuple[str, Boxes]]:
    return [(str(i), boxes) for i, boxes in enumerate(frames)]


def _class_score(counts: NDArray[np.int64], ap: float) -> ClassScore:
    matched, boxes, detections = (int(c) for c in counts)
    return ClassScore(
        recall=matched / boxes if boxes else float("nan"), precision=matched / detections if detections else float("nan"),
        ap=float(ap), boxes=boxes, detections=detections,
    )  # fmt: skip
