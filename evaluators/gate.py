"""The gate: metrics of a clip in, keep or reject out, with a reason in words for every rejection."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """Limits. A limit of null switches its criterion off, and its metric need not be measured."""

    min_relative_recall: float | None = 0.5  # materialised boxes within 30 m, relative to the same detector on true video
    min_reference_recall: float = 0.1  # below this, on true video or the log's images, the detector cannot judge the scene
    min_reference_boxes: float = 10  # with so many boxes there; a few can be missed by chance
    min_flicker: float | None = 0.80  # 1 is a standing picture; below: noise. max_frozen_fraction bounds it above
    max_frozen_fraction: float | None = 0.2  # of adjacent frames that are equal while the ego moves
    min_sharpness_ratio: float | None = 0.45  # worst 10 s stretch against the condition frames
    max_sharpness_ratio: float | None = 2.5  # last stretch against the condition frames; above: noise or ringing
    min_image_spread: float | None = 2.0  # grey levels; below: a constant image
    min_reconstruction_db: float | None = 22.0  # PSNR of the codec on the condition frames
    min_counterfactual_psnr_db: float | None = None  # only where the true video can be rendered
    max_path_error_m: float | None = None  # mean distance of the commanded path from the nearer of the two read off the video
    min_cross_view: float | None = None  # correlation of the two neighbouring cameras that agree least where both look
    max_unlabelled: float | None = None  # detections a frame within 30 m that no label explains, beyond those on true video


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One violated criterion."""

    metric: str
    value: float  # NaN when not measured
    limit: float
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Keep a clip, or every reason not to."""

    keep: bool
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Criterion:
    metric: str
    limit: Callable[[GateConfig], float | None]
    at_least: bool
    sentence: str  # with {value} and {limit}


# Metrics that make up the ratio of the detection criterion.
RECALL, REFERENCE_RECALL = "detection.materialised", "detection.reference_materialised"
UNLABELLED, REFERENCE_UNLABELLED = "detection.unlabelled", "detection.reference_unlabelled"
# Boxes within 30 m in the log's own images; only there where no true video exists and these images are the reference.
LOGGED_BOXES, BOXES_IN_RANGE = "detection.logged_boxes", "detection.boxes_in_range"

_CRITERIA = (
    _Criterion(
        metric="codec.reconstruction_psnr_db", limit=lambda c: c.min_reconstruction_db, at_least=True,
        sentence="the model does not know this kind of image: reconstruction {value:.1f} dB < {limit:.1f} dB",
    ),
    _Criterion(
        metric="image.min_spread", limit=lambda c: c.min_image_spread, at_least=True,
        sentence="an image is all but constant: luma spread {value:.2f} < {limit:.2f} grey levels",
    ),
    _Criterion(
        metric="motion.frozen_fraction", limit=lambda c: c.max_frozen_fraction, at_least=False,
        sentence="the video stands still while the ego moves: {value:.0%} of its frames > {limit:.0%}",
    ),
    _Criterion(
        metric="flicker.mean", limit=lambda c: c.min_flicker, at_least=True,
        sentence="adjacent frames differ too much: temporal stability {value:.3f} < {limit:.3f}",
    ),
    _Criterion(
        metric="sharpness.ratio_min", limit=lambda c: c.min_sharpness_ratio, at_least=True,
        sentence="the video blurs: sharpness falls to {value:.2f} of the condition frames < {limit:.2f}",
    ),
    _Criterion(
        metric="sharpness.ratio_last", limit=lambda c: c.max_sharpness_ratio, at_least=False,
        sentence="the video turns to noise: sharpness rises to {value:.2f} of the condition frames > {limit:.2f}",
    ),
    _Criterion(
        metric="counterfactual.psnr_db", limit=lambda c: c.min_counterfactual_psnr_db, at_least=True,
        sentence="the video is not what this path would show: {value:.1f} dB to the truth < {limit:.1f} dB",
    ),
    _Criterion(
        metric="ego_motion.agreed_ade_m", limit=lambda c: c.max_path_error_m, at_least=False,
        sentence="the camera does not go where it was told: {value:.2f} m from the commanded path > {limit:.2f} m",
    ),
    _Criterion(
        metric="cross_view.worst_pair", limit=lambda c: c.min_cross_view, at_least=True,
        sentence="two neighbouring cameras do not show one world: correlation {value:.2f} where both look < {limit:.2f}",
    ),
)  # fmt: skip


GATED = (*(criterion.metric for criterion in _CRITERIA), RECALL, UNLABELLED)  # what verdicts hang on


def judge(metrics: Mapping[str, float], config: GateConfig) -> Verdict:
    """Holds a clip's metrics against the limits.

    A metric that a criterion needs and that is absent or not a number is itself a reason: nothing passes unmeasured.
    """
    reasons = [reason for criterion in _CRITERIA if (reason := _judge_one(criterion, metrics, config))]
    reasons += _judge_recall(metrics, config) + _judge_unlabelled(metrics, config)
    return Verdict(keep=not reasons, reasons=tuple(reasons))


def _judge_one(criterion: _Criterion, metrics: Mapping[str, float], config: GateConfig) -> Reason | None:
    limit = criterion.limit(config)
    if limit is None:
        return None
    value = metrics.get(criterion.metric, math.nan)
    if not math.isfinite(value):
        return _not_measured(criterion.metric, criterion.metric in metrics, value, limit)
    if value >= limit if criterion.at_least else value <= limit:
        return None
    return Reason(
        metric=criterion.metric, value=value, limit=limit, sentence=criterion.sentence.format(value=value, limit=limit)
    )


def _judge_recall(metrics: Mapping[str, float], config: GateConfig) -> list[Reason]:
    limit = config.min_relative_recall
    # A scene without a box in range has neither recall nor anything that could be missing.
    if limit is None or metrics.get(BOXES_IN_RANGE) == 0:
        return []
    for name in (RECALL, REFERENCE_RECALL):
        value = metrics.get(name, math.nan)
        if not math.isfinite(value):
            return [_not_measured(name, name in metrics, value, limit)]
    recall, reference = metrics[RECALL], metrics[REFERENCE_RECALL]
    if reference < config.min_reference_recall:
        return _judge_reference(reference, metrics, config)
    if recall >= limit * reference:
        return []
    sentence = (
        f"conditioned objects are missing: the detector finds {recall:.0%} of the boxes within 30 m, "
        f"{reference:.0%} {_source(metrics)}; ratio {recall / reference:.2f} < {limit:.2f}"
    )
    return [Reason(metric=RECALL, value=recall / reference, limit=limit, sentence=sentence)]


def _source(metrics: Mapping[str, float]) -> str:
    """Where the detector's references come from."""
    return "in the log's images" if LOGGED_BOXES in metrics else "on true video"


def _judge_unlabelled(metrics: Mapping[str, float], config: GateConfig) -> list[Reason]:
    """Things that nobody asked for; what the detector invents on true video, or in the log's images, is its own fault."""
    limit = config.max_unlabelled
    if limit is None:
        return []
    for name in (UNLABELLED, REFERENCE_UNLABELLED):
        value = metrics.get(name, math.nan)
        if not math.isfinite(value):
            return [_not_measured(name, name in metrics, value, limit)]
    value, more = metrics[UNLABELLED], metrics[UNLABELLED] - metrics[REFERENCE_UNLABELLED]
    if more <= limit:
        return []
    source = _source(metrics)
    sentence = f"things appear that no label knows: {value:.2f} detections a frame, {more:.2f} more than {source} > {limit:.2f}"
    return [Reason(metric=UNLABELLED, value=more, limit=limit, sentence=sentence)]


def _judge_reference(reference: float, metrics: Mapping[str, float], config: GateConfig) -> list[Reason]:
    """A detector that fails on the real thing leaves the labels unverified: nothing passes on its silence."""
    logged = LOGGED_BOXES in metrics
    boxes = metrics[LOGGED_BOXES] if logged else metrics.get(BOXES_IN_RANGE, 0.0)
    if boxes < config.min_reference_boxes:
        return []
    limit = config.min_reference_recall
    weakness = "does not know this kind of image" if logged else "is too weak for this scene"
    where = "in the log's own images" if logged else "on true video"
    sentence = (
        f"the detector {weakness}: it finds {reference:.0%} of the {boxes:.0f} boxes within 30 m {where} < {limit:.0%}, "
        "so nothing confirms the labels"
    )
    return [Reason(metric=REFERENCE_RECALL, value=reference, limit=limit, sentence=sentence)]


def _not_measured(metric: str, present: bool, value: float, limit: float) -> Reason:
    what = f"it is {value}" if present else "the metric is absent"
    return Reason(metric=metric, value=math.nan, limit=limit, sentence=f"not measured: {metric} ({what})")
