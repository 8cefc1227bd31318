"""Averages over stretches of a clip: how a metric drifts with time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BUCKET_S = 10.0


def bucket_means(values: Array, fps: float, bucket_s: float = BUCKET_S) -> Array:
    """Means [K] of values [T, ...] over successive stretches of ``bucket_s`` seconds, NaN entries left out.

    The last stretch may be shorter; a stretch without a known value is NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    # Frame times, not frame counts: at fractional rates a stretch may hold one frame more or less.
    bucket = np.floor(np.arange(len(values)) / fps / bucket_s + 1e-9).astype(np.int64)
    means = [_known_mean(values[bucket == k]) for k in range(bucket[-1] + 1)] if len(values) else []
    return np.array(means)


def bucket_metrics(name: str, values: Array, fps: float, bucket_s: float = BUCKET_S) -> dict[str, float]:
    """Bucket means named ``<name>.0-10s``, ``<name>.10-20s`` and so on."""
    means = bucket_means(values, fps, bucket_s)
    return {f"{name}.{k * bucket_s:g}-{(k + 1) * bucket_s:g}s": float(mean) for k, mean in enumerate(means)}


def _known_mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan
