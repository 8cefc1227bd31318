"""Average precision and recall of vectorised map lines, as VAD scores them (hustvl/VAD, datasets/map_utils; from MapTR).

Every line is resampled to 100 points at equal steps. Two lines are as far apart as the mean of two mean distances, from each
to the nearest points of the other (chamfer distance), and only pairs whose 2 m buffers meet are compared at all. Buffers end
flat at a line's ends, so short lines one behind the other may stay unmatched although their chamfer distance is small.

A detection belongs to the true line nearest to it. Where several within the threshold share one, the best scored is right
and the others are wrong, even if another true line is within reach of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from dwm.errors import InputError

Array = NDArray[np.float64]

MAP_CLASSES = ("divider", "ped_crossing", "boundary")
THRESHOLDS_M = (0.5, 1.0, 1.5)
POINTS = 100
_BUFFER_M = 2.0  # half the width: VAD passes it to shapely as ``linewidth``


@dataclass(frozen=True, slots=True, kw_only=True)
class MapLine:
    """A true or detected line; both of a sample in the same frame, VAD's being LIDAR_TOP (x right, y forward)."""

    class_name: str  # one of MAP_CLASSES
    points_m: Array  # [P, 2]
    score: float = 1.0  # of a detection; not read from a true line


@dataclass(frozen=True, slots=True, kw_only=True)
class MapScore:
    """One class at one threshold."""

    class_name: str
    threshold_m: float
    truths: int
    detections: int
    recall: float  # of all detections, whatever their score; 0 without truth
    ap: float  # area under the precision-recall curve; 0 without truth


@dataclass(frozen=True, slots=True, kw_only=True)
class MapReport:
    """VAD's map scores. A class without truth counts as 0 in its means; means over classes with truth are NaN without any."""

    scores: tuple[MapScore, ...]  # by class, then threshold
    class_ap: dict[str, float]  # mean over thresholds
    mean_ap: float  # official, over the three classes
    mean_ap_with_truth: float
    mean_recall_at_m: dict[float, float]  # by threshold, over the three classes
    mean_recall: float  # over classes and thresholds
    mean_recall_with_truth: float
    samples: int


def evaluate_map_lines(truth: Mapping[str, Sequence[MapLine]], detections: Mapping[str, Sequence[MapLine]]) -> MapReport:
    """VAD's map scores of lines by sample token.

    ``truth`` decides which samples count; one without detections may be absent. Detections of fewer than two points are
    dropped and not counted. Of equal scores the earlier sample and line comes first.

    Raises:
        InputError: no sample, an unknown class, or points that make no line.
    """
    unknown = {line.class_name for lines in (*truth.values(), *detections.values()) for line in lines} - set(MAP_CLASSES)
    if unknown:
        raise InputError("map lines", f"class '{min(unknown)}'", f"use {', '.join(MAP_CLASSES)}")
    return map_report([match_lines(lines, detections.get(token, ())) for token, lines in truth.items()])


@dataclass(frozen=True, slots=True, kw_only=True)
class LineMatches:
    """Which lines of a sample are found; by class, in the order of the detections."""

    truths: dict[str, int]
    scores: dict[str, Array]
    hits: dict[tuple[str, float], NDArray[np.bool_]]  # by class and threshold


def match_lines(truth: Sequence[MapLine], detections: Sequence[MapLine]) -> LineMatches:
    """What of a sample is found, whatever stands in others."""
    truths, scores, hits = {}, {}, {}
    for name in MAP_CLASSES:
        true = _points([line for line in truth if line.class_name == name])
        found = [line for line in detections if line.class_name == name and len(line.points_m) > 1]
        truths[name], scores[name] = len(true), np.array([line.score for line in found], np.float64)
        distances = chamfer_distances_m(_points(found), true)
        for threshold in THRESHOLDS_M:
            hits[name, threshold] = _hits(distances, scores[name], threshold)
    return LineMatches(truths=truths, scores=scores, hits=hits)


def map_report(samples: Sequence[LineMatches]) -> MapReport:
    """Scores of all samples together; a sample may be given more than once. InputError for none."""
    if not samples:
        raise InputError("map lines", "no samples", "give the true lines of at least one")
    scores = [score for name in MAP_CLASSES for score in _score_class(name, samples)]
    known = [score for score in scores if score.truths]
    return MapReport(
        scores=tuple(scores),
        class_ap={name: _mean([s.ap for s in scores if s.class_name == name]) for name in MAP_CLASSES},
        mean_ap=_mean([s.ap for s in scores]),
        mean_ap_with_truth=_mean([s.ap for s in known]),
        mean_recall_at_m={t: _mean([s.recall for s in scores if s.threshold_m == t]) for t in THRESHOLDS_M},
        mean_recall=_mean([s.recall for s in scores]),
        mean_recall_with_truth=_mean([s.recall for s in known]),
        samples=len(samples),
    )


def chamfer_distances_m(a_NP2: Array, b_MP2: Array) -> Array:
    """Chamfer distances [N, M] of resampled lines; infinite where buffers do not meet."""
    distances = np.full((len(a_NP2), len(b_MP2)), np.inf)
    if not distances.size:
        return distances
    # Since shapely 2 the tree answers with positions, not geometries.
    tree = shapely.STRtree(_buffers(a_NP2))
    for j, i in tree.query(_buffers(b_MP2), predicate="intersects").T:
        between = cdist(a_NP2[i], b_MP2[j])
        distances[i, j] = (between.min(0).mean() + between.min(1).mean()) / 2
    return distances


def resampled(points_m: Array) -> Array:
    """Points [POINTS, 2] at equal steps along a line [P, 2], both ends included; InputError where there is no line."""
    points = np.asarray(points_m, np.float64)
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 2 or not np.isfinite(points).all():
        raise InputError("map lines", f"a line of shape {points.shape}", "give two or more finite points [P, 2]")
    line = shapely.LineString(points)
    return shapely.get_coordinates(shapely.line_interpolate_point(line, np.linspace(0, line.length, POINTS)))


def area_under_curve(hits: NDArray[np.bool_], truths: int) -> float:
    """Area under the precision-recall curve of detections in falling order of score, precision made monotone from the right."""
    if not truths or not hits.any():
        return 0.0
    right = hits.cumsum()
    precision = right / np.arange(1, len(hits) + 1)
    # Recall grows by one truth at every hit; what counts there is the best precision at that recall or beyond.
    return float(np.maximum.accumulate(precision[::-1])[::-1][hits].sum() / truths)


def _score_class(name: str, samples: Sequence[LineMatches]) -> list[MapScore]:
    order = np.argsort(-np.concatenate([sample.scores[name] for sample in samples]), kind="stable")
    truths = sum(sample.truths[name] for sample in samples)
    return [
        _score(name, threshold, truths, np.concatenate([sample.hits[name, threshold] for sample in samples])[order])
        for threshold in THRESHOLDS_M
    ]  # fmt: skip


def _score(name: str, threshold_m: float, truths: int, hits: NDArray[np.bool_]) -> MapScore:
    return MapScore(
        class_name=name, threshold_m=threshold_m, truths=truths, detections=len(hits),
        recall=float(hits.sum() / truths) if truths else 0.0, ap=area_under_curve(hits, truths),
    )  # fmt: skip


def _hits(distances_DG: Array, scores_D: Array, threshold_m: float) -> NDArray[np.bool_]:
    """Which detections are right, in their own order."""
    hits = np.zeros(len(scores_D), bool)
    if not distances_DG.size:
        return hits
    nearest, taken = distances_DG.argmin(1), set()
    for i in np.argsort(-scores_D, kind="stable"):
        if distances_DG[i, nearest[i]] <= threshold_m and nearest[i] not in taken:
            taken.add(nearest[i])
            hits[i] = True
    return hits


def _points(lines: Sequence[MapLine]) -> Array:
    return np.stack([resampled(line.points_m) for line in lines]) if lines else np.zeros((0, POINTS, 2))


def _buffers(lines_NP2: Array) -> NDArray[np.object_]:
    return np.asarray(shapely.buffer(shapely.linestrings(lines_NP2), _BUFFER_M, cap_style="flat", join_style="mitre"))


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
