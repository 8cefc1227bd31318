"""The table of the memory bench: PSNR, gain over no memory, and Frechet distances, with intervals over clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dwm.scenes.types import CAMERAS
from evaluators.frechet import FrechetScore, score_frechet
from evaluators.frechet_features import FrechetFeatures
from evaluators.protocol import bootstrap_interval
from pipelines.bench.rollouts import FPS, frames_between

Array = NDArray[np.float64]
TRUTH, OFF, SPLAT = "truth", "none", "splat alone"
_HEAD = ("time", "clips", "picture", "PSNR [dB]", "over no memory [dB]", "where the splat knows [dB]", "FID-pg", "FVD-pg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One stretch of one clip in one mode; distances need all clips together, so their features are kept."""

    psnr_db: float
    known_psnr_db: float  # over pixels that the splat knows; NaN without a splat
    image_features: Array
    video_features: Array


def offset_table(
    clips: Sequence[dict[str, list[Judged]]], stretches_s: Sequence[tuple[float, float]], features: FrechetFeatures
) -> list[str]:  # fmt: skip
    """Markdown rows by stretch and mode, then the cards of the distances.

    A clip gives, by mode (``TRUTH`` and ``OFF`` among them), as many of the first stretches as it holds.
    """
    lines, cards = ["", _row(*_HEAD), _row(*["---"] * len(_HEAD))], []
    for s, (start_s, end_s) in enumerate(stretches_s):
        held = [clip for clip in clips if len(clip[OFF]) > s]
        if not held:
            continue
        by_name = {name: [clip[name][s] for clip in held] for name in held[0]}
        distances = {name: _distances(by_name[TRUTH], judged) for name, judged in by_name.items() if name != TRUTH}
        start = (f"{start_s:g}-{end_s:g} s", str(len(held)))
        for name, scores in distances.items():
            title = name if name == SPLAT else f"memory {name}"
            lines.append(_row(*start, title, *_psnr_cells(by_name, name), *map(_cell, scores.values())))
        floors = [f"{score.floor:.4f}" if score.floor is not None else "" for score in distances[OFF].values()]
        lines.append(_row(*start, "true halves, by clip", "", "", "", *floors))
        for metric, score in distances[OFF].items():
            cards.append(f"- {start[0]}, {_card(features, metric, score, len(frames_between(start_s, end_s)))}")
    return [*lines, "", *cards] if cards else []


def _distances(truth: list[Judged], made: list[Judged]) -> dict[str, FrechetScore]:
    """By metric; the same draws of clips for every mode."""
    return {
        metric: score_frechet([f(j) for j in truth], [f(j) for j in made], np.random.default_rng(0))
        for metric, f in (("FID-pg", lambda j: j.image_features), ("FVD-pg", lambda j: j.video_features))
    }


def _psnr_cells(by_name: dict[str, list[Judged]], name: str) -> list[str]:
    """PSNR, its gain over no memory clip by clip, PSNR over known pixels."""
    own, off = (np.array([j.psnr_db for j in by_name[n]]) for n in (name, OFF))
    known = float(np.mean([j.known_psnr_db for j in by_name[name]]))
    gain = bootstrap_interval(own - off, np.random.default_rng(0))
    return [f"{own.mean():.2f}", "" if name == OFF else gain.text("+.2f"), f"{known:.2f}" if np.isfinite(known) else ""]


def _card(features: FrechetFeatures, metric: str, score: FrechetScore, frames: int) -> str:
    """What holds for every mode of a stretch; the intervals stand in the table."""
    card = features.card(metric, score, frames=frames, frames_per_second=FPS, cameras=CAMERAS, seed=0)
    return replace(card, interval=None).sentence()


def _cell(score: FrechetScore) -> str:
    return f"{score.distance:.4f}" if score.interval is None else score.interval.text(".4f")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
