"""How a number came about: the card that goes with every set of metrics, and intervals by bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its bootstrap percentile interval."""

    value: float
    low: float
    high: float
    level: float

    def text(self, form: str) -> str:
        """Value and interval by a format such as ".2f"; the value alone where the interval is a point or unknown."""
        if not self.low < self.high:
            return f"{self.value:{form}}"
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolCard:
    """Everything a reader needs to compare a number with another, or not to."""

    metric: str
    samples: int  # independent units the number averages over
    unit: str  # what one sample is: clip, key frame, image pair
    frames: int  # per clip
    frames_per_second: float
    cameras: tuple[str, ...]
    image_hw: tuple[int, int]  # as scored
    resize: str = "none"  # how images came to that size, e.g. "area 900x1600 to 128x224"
    source: str = "decoded video"  # or "rendered frames", "logged images"
    weights_sha256: str | None = None  # of the network behind the metric
    seed: int | None = None
    interval: Interval | None = None
    notes: tuple[str, ...] = ()

    def as_record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def sentence(self) -> str:
        """The card in one line."""
        parts = [f"{self.metric}: {self.samples} {self.unit}s of {self.frames} frames at {self.frames_per_second:g} Hz"]
        parts += [
            f"{len(self.cameras)} cameras, {self.image_hw[0]}x{self.image_hw[1]} px ({self.source}; resize {self.resize})"
        ]
        if self.weights_sha256:
            parts.append(f"weights {self.weights_sha256[:12]}")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        if self.interval:
            parts.append(f"{self.interval.level:.0%} interval {self.interval.low:.4g} to {self.interval.high:.4g}")
        return "; ".join([*parts, *self.notes])


def bootstrap_interval(
    values: Array,
    rng: np.random.Generator,
    statistic: Callable[[Array], float] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap (Efron, 1979) of a statistic, the mean unless given, over independent samples [N, ...].

    Resample whole clips, not frames: frames of a clip are not independent.

    Raises:
        InputError: no sample.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise InputError("bootstrap", "no samples", "score at least one clip")
    measure = statistic or (lambda chosen: float(chosen.mean()))
    draws = [measure(values[rng.integers(0, len(values), len(values))]) for _ in range(resamples)]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=measure(values), low=float(low), high=float(high), level=level)
