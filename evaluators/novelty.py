"""Is a generated video new, or the log once more? How near every frame is to the nearest image that the log holds of that camera.

Shapes: T frames, L logged moments, V cameras, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from evaluators.counterfactual import luma, psnr_db

Array = NDArray[np.float64]
Images = NDArray[np.uint8]
NEAR_COPY_DB = 32.0  # PSNR from which on nobody sees a difference at a glance
_THUMBNAIL_HW = (32, 56)  # on which the nearest logged image is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class NoveltyScore:
    """The nearest logged image of every generated one."""

    nearest_db: Array  # [T, V] PSNR to it
    nearest: NDArray[np.int64]  # [T, V] its logged moment

    def metrics(self) -> dict[str, float]:
        """By metric name (docs/metrics.md)."""
        return {
            "novelty.nearest_psnr_db": float(self.nearest_db.mean()),
            "novelty.near_copies": float((self.nearest_db >= NEAR_COPY_DB).mean()),
        }


def score_novelty(images: Images, logged: Images) -> NoveltyScore:
    """Generated images [T, V, H, W, 3] against logged ones [L, V, H, W, 3] of the same cameras and size; both uint8.

    Raises InputError for other sizes and for no logged image.
    """
    if images.shape[1:] != logged.shape[1:] or not len(logged):
        problem = f"generated images {list(images.shape)} against logged ones {list(logged.shape)}"
        raise InputError("novelty", problem, "give at least one logged moment, in the same cameras and size")
    small, known = _thumbnails(images), _thumbnails(logged)
    apart = np.stack([np.square(small - moment).mean(axis=(-1, -2)) for moment in known])  # [L, T, V]
    nearest, views = apart.argmin(axis=0), np.arange(images.shape[1])
    nearest_db = np.stack([psnr_db(image, logged[rows, views]) for image, rows in zip(images, nearest, strict=True)])
    return NoveltyScore(nearest_db=nearest_db, nearest=nearest)


def _thumbnails(images: Images) -> NDArray[np.float32]:
    height, width = _THUMBNAIL_HW
    small = [[cv2.resize(luma(view), (width, height), interpolation=cv2.INTER_AREA) for view in frame] for frame in images]
    return np.asarray(small, np.float32)
