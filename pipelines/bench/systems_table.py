"""The table of the systems bench, with intervals over starting moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from evaluators.boxes import Boxes
from evaluators.buckets import BUCKET_S
from evaluators.detection import evaluate_boxes_in_memory
from evaluators.frechet import ClipSums, frechet_distance, score_frechet
from evaluators.protocol import Interval, bootstrap_interval
from pipelines.bench.systems_run import Run, Scored

Array = NDArray[np.float64]
_RESAMPLES = 200
_HEAD = ("variant", "time", "clips", "FVD-pg", "FID-pg", "PSNR [dB]", "mAP of truth's", "s a frame", "side by side", "passes")


def systems_table(runs: dict[str, list[Run]], comparisons: Sequence[tuple[str, ...]]) -> list[str]:
    """Markdown rows by variant and bucket, the floors of the truth, and the comparisons; ``runs`` has the "truth" among them.

    A variant of fewer clips than the truth has the first of them.
    """
    truth = runs["truth"]
    lines = ["", _row(*_HEAD), _row(*["---"] * len(_HEAD))]

    @cache
    def maps_of_truth(clips: int, b: int) -> Array:
        return _maps([run.buckets[b] for run in truth[:clips]])

    for name, made in runs.items():
        if name != "truth":
            lines += [_bucket_row(name, made, truth, b, maps_of_truth(len(made), b)) for b in range(len(made[0].buckets))]
    lines += ["", *(_floor_line(truth, b) for b in range(len(truth[0].buckets)) if len(truth) > 1)]
    return [*lines, "", *(_comparison(runs, *pair) for pair in comparisons)]


def _bucket_row(name: str, made: list[Run], truth: list[Run], b: int, of_truth: Array) -> str:
    cost, last = [run.cost for run in made], b == len(made[0].buckets) - 1
    frames = sum(c.frames for c in cost)
    totals = (
        f"{sum(c.seconds for c in cost) / frames:.2f}",
        f"{sum(c.seconds_side_by_side for c in cost) / frames:.2f}",
        f"{sum(c.passes for c in cost) / len(cost):.0f}",
    )
    own, true = ([run.buckets[b] for run in part] for part in (made, truth[: len(made)]))
    psnr = bootstrap_interval(np.array([bucket.psnr_db.mean() for bucket in own]), np.random.default_rng(0))
    return _row(
        name, _time(b), str(len(made)), *(_spread(_distance(true, own, f), ".4f") for f in (_video, _image)),
        _spread(psnr, ".2f"), _spread(_relative_map(own, of_truth), ".2f"), *(totals if last else ("", "", "")),
    )  # fmt: skip


def _distance(true: list[Scored], own: list[Scored], features: Callable[[Scored], Array]) -> Interval:
    score = score_frechet([features(t) for t in true], [features(o) for o in own], np.random.default_rng(0), _RESAMPLES)
    return score.interval or Interval(value=score.distance, low=np.nan, high=np.nan, level=0.95)


def _relative_map(own: list[Scored], of_truth: Array) -> Interval:
    """Official mAP over classes with boxes, generated over true frames, of all clips together.

    Interval: jackknife over clips, normal; the official evaluation is too slow for a bootstrap.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(of_truth > 0, _maps(own) / of_truth, np.nan)
    value, parts = float(ratios[0]), ratios[1:]
    n = len(parts)
    if n < 2:
        return Interval(value=value, low=np.nan, high=np.nan, level=0.95)
    spread = 1.96 * float(np.sqrt((n - 1) / n * np.square(parts - parts.mean()).sum()))
    return Interval(value=value, low=value - spread, high=value + spread, level=0.95)


def _maps(clips: list[Scored]) -> Array:
    """mAP [1 + N] of all clips together, and without each; of one clip, its own."""
    left_out = range(-1, len(clips) if len(clips) > 1 else 0)
    return np.array([_mean_ap([clip for i, clip in enumerate(clips) if i != out]) for out in left_out])


def _mean_ap(buckets: list[Scored]) -> float:
    def numbered(frames: Callable[[Scored], Sequence[Boxes]]) -> dict[str, Boxes]:
        return {f"{c}.{i}": boxes for c, bucket in enumerate(buckets) for i, boxes in enumerate(frames(bucket))}

    return evaluate_boxes_in_memory(numbered(lambda s: s.labels), numbered(lambda s: s.detections)).mean_ap_with_truth


def _floor_line(truth: list[Run], b: int) -> str:
    floors = [
        score_frechet(x, x, np.random.default_rng(0), 2).floor
        for x in ([f(r.buckets[b]) for r in truth] for f in (_video, _image))
    ]
    return f"- {_time(b)}: true halves, by clip, are {floors[0]:.4f} (FVD-pg) and {floors[1]:.4f} (FID-pg) apart"


def _comparison(runs: dict[str, list[Run]], name: str, other: str) -> str:
    """FVD-pg of one variant over another's in the last bucket that both have, moments drawn together."""
    b = min(len(runs[name][0].buckets), len(runs[other][0].buckets)) - 1
    n = min(len(runs[name]), len(runs[other]))
    videos = {key: [_video(run.buckets[b]) for run in runs[key][:n]] for key in ("truth", name, other)}
    origin = np.concatenate(videos["truth"]).mean(0)
    sums = {key: ClipSums(clips, origin) for key, clips in videos.items()}

    def ratio(chosen: Array) -> float:
        indices = chosen.astype(np.int64)
        true = sums["truth"].moments(indices)
        return frechet_distance(true, sums[name].moments(indices)) / frechet_distance(true, sums[other].moments(indices))

    everything = np.arange(n, dtype=np.float64)
    found = bootstrap_interval(everything, np.random.default_rng(0), ratio, resamples=_RESAMPLES)
    times = [sum(r.cost.seconds for r in runs[key][:n]) / sum(r.cost.frames for r in runs[key][:n]) for key in (name, other)]
    beside = sum(r.cost.seconds_side_by_side for r in runs[name][:n]) / sum(r.cost.frames for r in runs[name][:n])
    return (
        f"- {name} against {other}, {_time(b)}: FVD-pg x {_spread(found, '.2f')}; time x {times[0] / times[1]:.2f}, "
        f"with independent windows side by side x {beside / times[1]:.2f}"
    )


def _video(scored: Scored) -> Array:
    return scored.video_features


def _image(scored: Scored) -> Array:
    return scored.image_features


def _time(b: int) -> str:
    return f"{b * BUCKET_S:g}-{(b + 1) * BUCKET_S:g} s"


def _spread(interval: Interval, form: str) -> str:
    if not interval.low < interval.high:
        return f"{interval.value:{form}}"
    return f"{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
