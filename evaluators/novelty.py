"""Is a generated video new, or the log once more? How near every frame is to the nearest image that the log holds of that camera.

Shapes: T frames, L images of a camera in the log, V cameras, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from evaluators.counterfactual import luma, psnr_db

Array = NDArray[np.float64]
Images = NDArray[np.uint8]
NEAR_COPY_DB = 32.0  # PSNR from which on nobody sees a difference at a glance
THUMBNAIL_HW = (32, 56)  # on which the nearest logged image is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedCamera:
    """What the log holds of one camera: small for all, in full on demand."""

    thumbnails: NDArray[np.float32]  # [L, 32, 56] luma
    read: Callable[[int], Images]  # an image [H, W, 3] of L, at the size of the generated ones

    @staticmethod
    def of(images: Images) -> LoggedCamera:
        """Images [L, H, W, 3] at hand."""
        return LoggedCamera(thumbnails=np.stack([thumbnail(luma(image)) for image in images]), read=images.__getitem__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoveltyScore:
    """The nearest logged image of every generated one."""

    nearest_db: Array  # [T, V] PSNR to it
    nearest: NDArray[np.int64]  # [T, V] its number in its camera's L

    def metrics(self) -> dict[str, float]:
        """By metric name (docs/metrics.md)."""
        return {
            "novelty.nearest_psnr_db": float(self.nearest_db.mean()),
            "novelty.near_copies": float((self.nearest_db >= NEAR_COPY_DB).mean()),
        }


def score_novelty(images: Images, logged: Sequence[LoggedCamera]) -> NoveltyScore:
    """Generated images [T, V, H, W, 3] against the log's of the same cameras.

    Raises InputError for other cameras and for one without any logged image.
    """
    if images.shape[1] != len(logged) or not all(len(camera.thumbnails) for camera in logged):
        problem = f"{images.shape[1]} cameras against {[len(camera.thumbnails) for camera in logged]} logged images"
        raise InputError("novelty", problem, "give at least one logged image of each camera")
    found = [_nearest(images[:, v], camera) for v, camera in enumerate(logged)]
    return NoveltyScore(nearest_db=np.stack([db for _, db in found], axis=1), nearest=np.stack([n for n, _ in found], axis=1))


def thumbnail(image_luma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Luma [H, W] by area."""
    return np.asarray(cv2.resize(image_luma, THUMBNAIL_HW[::-1], interpolation=cv2.INTER_AREA), np.float32)


def _nearest(images: Images, camera: LoggedCamera) -> tuple[NDArray[np.int64], Array]:
    """Of each image [T, H, W, 3]: the number of the nearest logged one by thumbnails, and the PSNR to it."""
    small = [thumbnail(luma(image)) for image in images]
    nearest = np.array([np.square(camera.thumbnails - own).mean(axis=(1, 2)).argmin() for own in small], np.int64)
    read = {number: camera.read(number) for number in set(nearest.tolist())}
    return nearest, np.array([float(psnr_db(image, read[n])) for image, n in zip(images, nearest.tolist(), strict=True)])
