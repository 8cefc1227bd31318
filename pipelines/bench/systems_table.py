"""The table of the systems bench, with intervals over starting moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from evaluators.boxes import Boxes
from evaluators.buckets import BUCKET_S
from evaluators.detection import evaluate_boxes_in_memory
from evaluators.frechet import ClipSums, frechet_distance, moments, score_frechet
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
    lines += ["", *_halves_rows(runs), "", *(_floor_line(truth, b) for b in range(len(truth[0].buckets)) if len(truth) > 1)]
    return [*lines, "", *_comparison_rows(runs, comparisons)] if comparisons else lines


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
        name, _time(b), str(len(made)), *(_distance(true, own, f).text(".4f") for f in (_video, _image)),
        psnr.text(".2f"), _relative_map(own, of_truth).text(".2f"), *(totals if last else ("", "", "")),
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


def _halves_rows(runs: dict[str, list[Run]]) -> list[str]:
    """FVD-pg of each half of its features, how clips look and how much their frames change, in a variant's last bucket."""
    head = ("variant", "time", "FVD-pg of looks alone", "of change alone", "mean change, over true")
    lines = [_row(*head), _row(*["---"] * len(head))]
    for name, made in runs.items():
        if name != "truth":
            b = len(made[0].buckets) - 1
            true, own = (
                np.concatenate([_video(run.buckets[b]) for run in part]) for part in (runs["truth"][: len(made)], made)
            )
            looks, change = (frechet_distance(moments(t), moments(o)) for t, o in zip(_halves(true), _halves(own), strict=True))
            share = float(_halves(own)[1].mean() / _halves(true)[1].mean())
            lines.append(_row(name, _time(b), f"{looks:.3f}", f"{change:.3f}", f"x {share:.2f}"))
    return lines


def _halves(video_features: Array) -> tuple[Array, Array]:
    looks, change = np.split(video_features, 2, axis=1)
    return looks, change


def _comparison_rows(runs: dict[str, list[Run]], pairs: Sequence[tuple[str, ...]]) -> list[str]:
    """FVD-pg and time of one variant over another's, in every bucket that both have."""
    last = len(runs["truth"][0].buckets)
    head = (
        "variant",
        "against",
        *(f"FVD-pg, {_time(b)}" for b in range(last)),
        "time a frame",
        "its independent windows side by side",
    )
    lines = [_row(*head), _row(*["---"] * len(head))]
    for name, other in pairs:
        n = min(len(runs[name]), len(runs[other]))
        shared = min(len(runs[name][0].buckets), len(runs[other][0].buckets))
        ratios = [f"x {_ratio(runs, name, other, n, b).text('.2f')}" if b < shared else "" for b in range(last)]
        costs = {key: [run.cost for run in runs[key][:n]] for key in (name, other)}
        a_frame = sum(c.seconds for c in costs[other]) / sum(c.frames for c in costs[other])
        frames = a_frame * sum(c.frames for c in costs[name])
        times = (sum(c.seconds for c in costs[name]) / frames, sum(c.seconds_side_by_side for c in costs[name]) / frames)
        lines.append(_row(name, other, *ratios, *(f"x {time:.2f}" for time in times)))
    return lines


def _ratio(runs: dict[str, list[Run]], name: str, other: str, n: int, b: int) -> Interval:
    """FVD-pg of one variant over another's in bucket ``b``, of the first ``n`` moments, drawn together."""
    videos = {key: [_video(run.buckets[b]) for run in runs[key][:n]] for key in ("truth", name, other)}
    origin = np.concatenate(videos["truth"]).mean(0)
    sums = {key: ClipSums(clips, origin) for key, clips in videos.items()}

    def ratio(chosen: Array) -> float:
        indices = chosen.astype(np.int64)
        true = sums["truth"].moments(indices)
        return frechet_distance(true, sums[name].moments(indices)) / frechet_distance(true, sums[other].moments(indices))

    return bootstrap_interval(np.arange(n, dtype=np.float64), np.random.default_rng(0), ratio, resamples=_RESAMPLES)


def _video(scored: Scored) -> Array:
    return scored.video_features


def _image(scored: Scored) -> Array:
    return scored.image_features


def _time(b: int) -> str:
    return f"{b * BUCKET_S:g}-{(b + 1) * BUCKET_S:g} s"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
