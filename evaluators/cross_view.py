"""Do neighbouring cameras show one world? What both of two cameras see is compared by known geometry.

Every ray of the overlap is followed into the other camera at several depths (nothing says how far the thing is), and the depth at which
the two views correlate best counts. Views of one moment then agree whatever stands there; views of other moments, other cameras or a
mirror do not.

Shapes: T frames, V cameras, H W pixels, P pairs of neighbours (camera v with v + 1, around the ring).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from evaluators.counterfactual import luma

Array = NDArray[np.float64]
Images = NDArray[np.uint8]
DEPTHS_M = (4.0, 8.0, 16.0, 32.0, 1000.0)
_BLUR_PX = 1.5  # standard deviation: neighbouring depths of a thing must still correlate
_LEAST_PX = 64  # of overlap at one depth
_LEAST_SPREAD = 2.0  # grey levels: a plain overlap correlates with nothing


def cross_view_metrics(agreement: Array) -> dict[str, float]:
    """Of ``cross_view_agreement``, by metric name (docs/metrics.md): the mean, and the pair that agrees least over time."""
    pairs = np.array([np.nan if np.isnan(part).all() else np.nanmean(part) for part in agreement.T])
    if np.isnan(pairs).all():
        return {}
    return {"cross_view.agreement": float(np.nanmean(pairs)), "cross_view.worst_pair": float(np.nanmin(pairs))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Where the pixels of one camera are in the next, if the world were so far away."""

    first: int  # camera
    second: int
    col: NDArray[np.float32]  # [H, W] in the second camera, px
    row: NDArray[np.float32]
    both: NDArray[np.bool_]  # [H, W] pixels of the first that the second sees


def overlaps(intrinsics: Array, camera_to_ego: Array, image_hw: tuple[int, int]) -> list[list[Overlap]]:
    """By pair of neighbours, one for each of DEPTHS_M that has an overlap; cameras [V, 3, 3], [V, 4, 4] in ring order."""
    count = len(intrinsics)
    pairs = [(v, (v + 1) % count) for v in range(count)]
    return [
        [found for depth_m in DEPTHS_M if (found := _overlap(a, b, intrinsics, camera_to_ego, image_hw, depth_m)) is not None]
        for a, b in pairs
    ]


def cross_view_agreement(images: Images, intrinsics: Array, camera_to_ego: Array) -> Array:
    """Correlation [T, P] of neighbouring views of uint8 images [T, V, H, W, 3] in their overlap, 1 for the same picture.

    NaN for pairs that share no picture, and where the overlap is plain.
    """
    regions = overlaps(intrinsics, camera_to_ego, (images.shape[2], images.shape[3]))
    out = np.full((len(images), len(regions)), np.nan)
    for t, frame in enumerate(images):
        grey = [np.asarray(cv2.GaussianBlur(luma(view), (0, 0), _BLUR_PX), np.float32) for view in frame]
        for p, depths in enumerate(regions):
            values = [_correlation(grey[o.first], grey[o.second], o) for o in depths]
            out[t, p] = max((value for value in values if np.isfinite(value)), default=np.nan)
    return out


def _overlap(
    a: int, b: int, intrinsics: Array, camera_to_ego: Array, image_hw: tuple[int, int], depth_m: float
) -> Overlap | None:
    height, width = image_hw
    rows, cols = np.mgrid[:height, :width] + 0.0
    rays = np.stack([cols, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(intrinsics[a]).T
    rays = depth_m * rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    to_second = np.linalg.inv(camera_to_ego[b]) @ camera_to_ego[a]
    points = rays @ to_second[:3, :3].T + to_second[:3, 3]
    pixels = points @ intrinsics[b].T
    with np.errstate(divide="ignore", invalid="ignore"):
        col, row = pixels[..., 0] / pixels[..., 2], pixels[..., 1] / pixels[..., 2]
    both = (points[..., 2] > 0.1) & (col >= 0) & (col <= width - 1) & (row >= 0) & (row <= height - 1)
    if both.sum() < _LEAST_PX:
        return None
    col, row = (np.where(both, part, 0).astype(np.float32) for part in (col, row))
    return Overlap(first=a, second=b, col=col, row=row, both=both)


def _correlation(first: NDArray[np.float32], second: NDArray[np.float32], overlap: Overlap) -> float:
    seen = cv2.remap(second, overlap.col, overlap.row, cv2.INTER_LINEAR)[overlap.both].astype(np.float64)
    own = first[overlap.both].astype(np.float64)
    spread = own.std() * seen.std()
    if min(own.std(), seen.std()) < _LEAST_SPREAD:
        return np.nan
    return float(np.mean((own - own.mean()) * (seen - seen.mean())) / spread)
