"""From which score on a detector's boxes are to be believed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluators.boxes import CLASS_GROUPS, Boxes
from evaluators.clip_detection import ClipMatchConfig, box_support


def operating_score(truth: Sequence[Boxes], found: Sequence[Boxes], config: ClipMatchConfig | None = None) -> float:
    """The score that maximises F1 over the boxes in range, matched as ``score_clip_detections`` matches what materialised.

    ``truth`` and ``found`` are key frames that the detector was not trained on. NaN when it finds nothing.
    """
    config = config or ClipMatchConfig()
    supports, scores, boxes = [], [], 0
    for t, f in zip(truth, found, strict=True):
        near, sure = t.select(config.counts(t)), f.select(config.counts(f))
        supports.append(box_support(near, sure, config.match_m, CLASS_GROUPS[near.labels], CLASS_GROUPS[sure.labels]))
        scores.append(sure.scores)
        boxes += len(near)
    support, detected = np.sort(np.concatenate(supports)), np.sort(np.concatenate(scores))
    candidates = np.unique(support[support > 0])
    if not len(candidates):
        return float("nan")
    hits = len(support) - np.searchsorted(support, candidates)
    shown = len(detected) - np.searchsorted(detected, candidates)
    return float(candidates[np.argmax(2 * hits / (boxes + shown))])
