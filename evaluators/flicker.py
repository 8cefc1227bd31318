"""Temporal flicker, sharpness and degenerate images: what can be said about a video without labels.

Shapes: T frames, V views, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from evaluators.buckets import BUCKET_S, bucket_means, bucket_metrics
from evaluators.counterfactual import luma

Array = NDArray[np.float64]
Images = NDArray[np.uint8]
# Adjacent frames closer than this (mean absolute grey levels) count as a standing picture.
FROZEN_GREY_LEVELS = 0.25
MOVING_MPS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AppearanceScore:
    """Stability of a clip's pictures."""

    change: Array  # [T - 1, V] mean absolute difference of adjacent frames, grey levels
    sharpness: Array  # [T, V] mean gradient magnitude of the luma, grey levels per pixel
    spread: Array  # [T, V] standard deviation of the luma, grey levels; 0 for a constant image
    fps: float
    condition_frames: int
    ego_speed_mps: Array | None = None  # [T]
    reference_change: Array | None = None  # [T - 1, V] of a true video of the same path
    reference_sharpness: Array | None = None  # [T, V]

    def metrics(self, bucket_s: float = BUCKET_S) -> dict[str, float]:
        """A flat table; ratios to a true video and the frozen share are absent where they cannot be measured."""
        first, begin = float(self.sharpness[: max(self.condition_frames, 1)].mean()), self._begin
        drift = bucket_means(self.sharpness[self.condition_frames :], self.fps, bucket_s) / max(first, 1e-9)
        flat = {"image.min_spread": float(self.spread[begin:].min()), "sharpness.mean": float(self.sharpness[begin:].mean())}
        if len(drift):
            flat |= {"sharpness.ratio_min": float(drift.min()), "sharpness.ratio_last": float(drift[-1])}
        if len(self.change):
            flicker = 1 - self.change / 255
            flat["flicker.mean"] = float(flicker[begin:].mean())
            flat |= bucket_metrics("flicker", self.judged(flicker), self.fps, bucket_s)
            flat |= self._frozen() | self._ratios()
        return flat

    @property
    def _begin(self) -> int:
        """The last given frame: what is between those before it was not made."""
        return max(self.condition_frames - 1, 0)

    def judged(self, values: Array) -> Array:
        """Values [T, ...] of frames, or [T - 1, ...] of neighbours, with NaN before the last given frame."""
        out = values.copy()
        out[: self._begin] = np.nan
        return out

    def _frozen(self) -> dict[str, float]:
        if self.ego_speed_mps is None:
            return {}
        moving = (self.ego_speed_mps[1:] > MOVING_MPS) & (self.ego_speed_mps[:-1] > MOVING_MPS)
        moving[: self._begin] = False
        share = float((self.change[moving] < FROZEN_GREY_LEVELS).mean()) if moving.any() else 0.0
        return {"motion.frozen_fraction": share}

    def _ratios(self) -> dict[str, float]:
        flat, judged = {}, slice(self._begin, None)
        if self.reference_change is not None:
            flat["flicker.change_ratio"] = float(self.change[judged].mean() / max(self.reference_change[judged].mean(), 1e-9))
        if self.reference_sharpness is not None:
            reference = self.reference_sharpness[judged].mean()
            flat["sharpness.truth_ratio"] = float(self.sharpness[judged].mean() / max(reference, 1e-9))
        return flat


def adjacent_change(images: Images) -> Array:
    """Mean absolute difference [T - 1, V] of adjacent frames of uint8 [T, V, H, W, 3], in grey levels."""
    changes = [np.abs(b.astype(np.int16) - a).mean(axis=(1, 2, 3)) for a, b in pairwise(images)]
    return np.array(changes, dtype=np.float64).reshape(max(len(images) - 1, 0), images.shape[1])


def temporal_flickering(images: Images) -> Array:
    """(255 - mean |difference|) / 255 of adjacent frames, [T - 1, V]; 1 is a standing picture (VBench, CVPR 2024).

    VBench applies it to static scenes; with a moving ego it also falls with motion, so compare like with like.
    """
    return (255 - adjacent_change(images)) / 255


def sharpness(images: Images) -> Array:
    """Mean gradient magnitude [T, V] of the luma of uint8 [T, V, H, W, 3]: central differences, grey levels per pixel."""
    return _per_image(images, lambda y: float(np.hypot(*np.gradient(y)).mean()))


def score_appearance(
    images: Images, fps: float, condition_frames: int = 1, ego_speed_mps: Array | None = None, truth: Images | None = None
) -> AppearanceScore:
    """Flicker, sharpness and spread of uint8 frames [T, V, H, W, 3], against a true video where there is one."""
    return AppearanceScore(
        change=adjacent_change(images),
        sharpness=sharpness(images),
        spread=_per_image(images, lambda y: float(y.std())),
        fps=fps,
        condition_frames=condition_frames,
        ego_speed_mps=None if ego_speed_mps is None else np.abs(ego_speed_mps),
        reference_change=None if truth is None else adjacent_change(truth),
        reference_sharpness=None if truth is None else sharpness(truth),
    )


def _per_image(images: Images, measure: Callable[[NDArray[np.float32]], float]) -> Array:
    return np.array([[measure(luma(view)) for view in frame] for frame in images], dtype=np.float64)
