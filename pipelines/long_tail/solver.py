"""How often each stretch of a log is drawn so that a mix of clips comes closest to its targets.

W windows, G groups of families that change the same tags, T targeted tags. The answer is the distribution over windows
and groups that is nearest (Kullback-Leibler) to the base measure among those that meet the targets: maximum entropy,
solved by its convex dual. A small ridge keeps it solvable where targets cannot be met; then they are missed by little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]
RIDGE = 1e-4
_SWEEPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class MixProblem:
    """What is asked for."""

    base: Array  # [W] > 0
    features: Array  # [W, G, T] 1 where a clip of the window and group carries the tag
    targets: Array  # [T] share of all clips
    quotas: NDArray[np.int64]  # [G] clips of each group
    max_repeats: int  # clips of one window

    @property
    def clips(self) -> int:
        return int(self.quotas.sum())


def solve(problem: MixProblem) -> Array:
    """Expected clips [W, G]: groups sum to their quotas, no window exceeds ``max_repeats``, tags are near their targets."""
    windows, groups, tags = problem.features.shape
    shares, cap = problem.quotas / problem.clips, problem.max_repeats / problem.clips
    start = np.log(problem.base / problem.base.sum())[:, None] + np.log(np.maximum(shares, 1e-300))[None]

    def distribution(x: Array) -> tuple[Array, float]:
        logits = start + problem.features @ x[:tags] + x[tags : tags + groups] - x[tags + groups :, None]
        norm = float(logits.max() + np.log(np.exp(logits - logits.max()).sum()))
        return np.exp(logits - norm), norm

    def dual(x: Array) -> tuple[float, Array]:
        p, norm = distribution(x)
        pull, full = x[:tags], x[tags + groups :]
        value = norm - pull @ problem.targets - x[tags : tags + groups] @ shares + cap * full.sum() + RIDGE / 2 * pull @ pull
        slope = np.concatenate([
            np.einsum("wg,wgt->t", p, problem.features) - problem.targets + RIDGE * pull, p.sum(0) - shares, cap - p.sum(1),
        ])  # fmt: skip
        return float(value), slope

    bounds = [(None, None)] * (tags + groups) + [(0.0, None)] * windows
    found = minimize(dual, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 2000})
    return distribution(found.x)[0] * problem.clips


def whole_counts(problem: MixProblem, expected: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole clips per kind of window, and the kind [W] of each: counts [K, G] whose tags are nearest to the targets.

    Windows with the same targeted tags are one kind. Quotas are met exactly; no kind gets more than its windows allow.
    """
    flat = problem.features.reshape(len(problem.base), -1)
    _, first, kind = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    kind = kind.ravel()
    features, room = problem.features[first], np.bincount(kind) * problem.max_repeats
    mean = np.zeros((len(first), expected.shape[1]))
    np.add.at(mean, kind, expected)
    counts = np.stack([_largest_remainder(mean[:, g], q) for g, q in enumerate(problem.quotas)], axis=1)
    return _nearest(counts, mean, features, room, problem.targets * problem.clips), kind


def _nearest(
    counts: NDArray[np.int64], mean: Array, features: Array, room: NDArray[np.int64], wanted: Array
) -> NDArray[np.int64]:
    """Moves clips of a group between kinds while that brings the sum of squared errors down.

    The error is that of the tags' counts, then, far lighter, the distance from the mean, and far heavier what has no room.
    """

    def cost(moved: NDArray[np.int64]) -> float:
        over = np.maximum(moved.sum(1) - room, 0).sum()
        tags = np.einsum("kg,kgt->t", moved, features) - wanted
        return float(1e6 * over + tags @ tags + 1e-4 * ((moved - mean) ** 2).sum())

    best = cost(counts)
    for _ in range(_SWEEPS):
        found = _best_move(counts, mean, features, room, wanted)
        if found is None:
            break
        source, target, group = found
        moved = counts.copy()
        moved[source, group] -= 1
        moved[target, group] += 1
        now = cost(moved)
        if now >= best - 1e-9:
            break
        counts, best = moved, now
    return counts


def _best_move(
    counts: NDArray[np.int64], mean: Array, features: Array, room: NDArray[np.int64], wanted: Array
) -> tuple[int, int, int] | None:
    """The move of one clip (from kind, to kind, group) that lowers the cost most."""
    off = np.einsum("kg,kgt->t", counts, features) - wanted
    used = counts.sum(1)
    best, answer = 0.0, None
    for g in range(counts.shape[1]):
        phi, away = features[:, g], counts[:, g] - mean[:, g]
        sources = np.flatnonzero(counts[:, g])
        change = phi[None] - phi[sources][:, None]  # [S, K, T]
        gain = 2 * change @ off + (change**2).sum(-1) + 2e-4 * (away[None] - away[sources][:, None] + 1)
        gain += 1e6 * ((used >= room)[None].astype(float) - (used > room)[sources][:, None])
        gain[np.arange(len(sources)), sources] = 0.0
        if gain.size and gain.min() < best - 1e-9:
            s, k = np.unravel_index(int(gain.argmin()), gain.shape)
            best, answer = float(gain.min()), (int(sources[s]), int(k), g)
    return answer


def quotas(weights: Array, clips: int) -> NDArray[np.int64]:
    """Whole clips [F] in proportion to weights, by largest remainder."""
    return _largest_remainder(weights / weights.sum() * clips, clips)


def _largest_remainder(mean: Array, total: int) -> NDArray[np.int64]:
    scaled = mean * (total / mean.sum()) if mean.sum() > 0 else np.full(len(mean), total / len(mean))
    counts = np.floor(scaled + 1e-9).astype(np.int64)
    order = np.argsort(-(scaled - counts), kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts


def systematic(mean: Array, total: int, max_repeats: int, offset: float) -> NDArray[np.int64]:
    """Whole draws [N] that sum to ``total``: one comb over the cumulative means, then what exceeds the cap moves on.

    Each count differs from its mean by less than one where no cap is met (Madow, 1949). ``offset`` in [0, 1) is random.
    """
    room = np.full(len(mean), max_repeats, np.int64)
    if total > room.sum():
        raise ValueError(f"{total} draws from {len(mean)} windows of {max_repeats}")
    counts = np.zeros(len(mean), np.int64)
    while (left := total - int(counts.sum())) > 0:
        weight = np.where(counts < room, np.maximum(mean, 1e-12), 0.0)
        edges = np.floor(np.cumsum(weight) / weight.sum() * left - offset + 1e-9)
        counts = np.minimum(counts + np.diff(edges, prepend=np.floor(-offset + 1e-9)).astype(np.int64), room)
    return counts
