"""Frechet distance between two sets of features, each taken to be Gaussian (Dowson and Landau, 1982; Heusel et al., 2017).

d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in float64. tr (S1 S2)^(1/2) is the sum of the square roots of the
eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2), which exists for singular covariances too: nothing is added to their
diagonal, and eigenvalues that rounding has made negative count as 0.

The distance is biased: N samples of D features of unit variance add about D / N + D (D + 1) / (4 N) for each of the two
sets, so it may only be compared at the same N, and a floor of two true halves goes with it.
Shapes: N samples, D features, C clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from evaluators.protocol import Interval

Array = NDArray[np.float64]
_FLOOR_SPLITS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Mean and unbiased covariance of a set of features."""

    mean_D: Array
    covariance_DD: Array
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrechetScore:
    """A distance with what is needed to judge it."""

    distance: float
    interval: Interval | None  # over clips; None for a single clip
    floor: float | None  # true halves against each other, each of about half as many samples; None for a single clip
    true_samples: int
    generated_samples: int
    clips: int
    features: int

    def notes(self) -> tuple[str, ...]:
        """Sentences for a protocol card."""
        out = [f"{self.generated_samples} generated against {self.true_samples} true samples of {self.features} features"]
        if min(self.true_samples, self.generated_samples) <= self.features:
            out.append("fewer samples than features: singular covariances")
        if self.floor is not None:
            out.append(f"true halves, by clip, are {self.floor:.4g} apart")
        return tuple(out)


class ClipSums:
    """Sums of clips' features, from which the moments of any choice of clips follow without the features themselves."""

    def __init__(self, clips: Sequence[Array], origin_D: Array) -> None:
        centred = [np.asarray(clip, np.float64) - origin_D for clip in clips]
        self._origin_D = origin_D
        self._count_C = np.array([len(clip) for clip in centred])
        self._sum_CD = np.stack([clip.sum(0) for clip in centred])
        self._square_CDD = np.stack([clip.T @ clip for clip in centred])

    def moments(self, chosen: NDArray[np.int64]) -> Moments:
        """Of the chosen clips together; one that is chosen twice counts twice."""
        count, total = int(self._count_C[chosen].sum()), self._sum_CD[chosen].sum(0)
        if count < 2:
            raise InputError("frechet distance", f"{count} samples", "give two or more")
        scatter = self._square_CDD[chosen].sum(0) - np.outer(total, total) / count
        return Moments(mean_D=self._origin_D + total / count, covariance_DD=scatter / (count - 1), samples=count)


def moments(features_ND: Array) -> Moments:
    """Mean and covariance of features; InputError for fewer than two samples or values that are not finite."""
    features = np.asarray(features_ND, np.float64)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise InputError("frechet distance", f"features of shape {features.shape}", "give finite features [N, D]")
    return ClipSums([features], features.mean(0)).moments(np.zeros(1, np.int64))


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared distance d^2 (what FID and FVD report), at least 0; symmetric."""
    if a.mean_D.shape != b.mean_D.shape:
        raise InputError("frechet distance", f"{a.mean_D.size} against {b.mean_D.size} features", "use one extractor")
    root = _root(a.covariance_DD)
    mixed = np.linalg.eigvalsh(root @ b.covariance_DD @ root)
    shared = np.sqrt(mixed.clip(min=0)).sum()
    gap = a.mean_D - b.mean_D
    return max(0.0, float(gap @ gap + np.trace(a.covariance_DD) + np.trace(b.covariance_DD) - 2 * shared))


def score_frechet(
    true: Sequence[Array], generated: Sequence[Array], rng: np.random.Generator, resamples: int = 200, level: float = 0.95
) -> FrechetScore:
    """Distance between true and generated clips, clip i of both showing the same: features [N_i, D] each.

    Interval: percentile bootstrap over clips, true and generated of a clip drawn together. Clips drawn twice raise every
    draw, so the draws are shifted until their mean is the distance: the interval tells spread at this size, not bias.
    """
    if not true or len(true) != len(generated):
        raise InputError("frechet distance", f"{len(true)} true and {len(generated)} generated clips", "give them in pairs")
    origin, everything = np.concatenate(true).mean(0), np.arange(len(true))
    truth, made = ClipSums(true, origin), ClipSums(generated, origin)

    def distance(chosen: NDArray[np.int64]) -> float:
        return frechet_distance(truth.moments(chosen), made.moments(chosen))

    value, interval = distance(everything), None
    if len(true) > 1:
        draws = np.array([distance(rng.integers(0, len(true), len(true))) for _ in range(resamples)])
        low, high = np.quantile(draws - draws.mean() + value, [(1 - level) / 2, (1 + level) / 2])
        interval = Interval(value=value, low=max(0.0, float(low)), high=float(high), level=level)
    return FrechetScore(
        distance=value, interval=interval, floor=_floor(truth, len(true), rng), true_samples=sum(map(len, true)),
        generated_samples=sum(map(len, generated)), clips=len(true), features=len(origin),
    )  # fmt: skip


def _floor(truth: ClipSums, clips: int, rng: np.random.Generator) -> float | None:
    """Mean distance between random halves of the true clips."""
    if clips < 2:
        return None
    orders = [rng.permutation(clips) for _ in range(_FLOOR_SPLITS)]
    return float(np.mean([frechet_distance(truth.moments(o[: clips // 2]), truth.moments(o[clips // 2 :])) for o in orders]))


def _root(covariance_DD: Array) -> Array:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(covariance_DD)
    return np.einsum("ik,k,jk->ij", vectors, np.sqrt(values.clip(min=0)), vectors, optimize=True)
