"""Augmentation that keeps images, cameras and boxes consistent.

Shapes: F key frames, V views, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import transform_from_xy_yaw, wrap_angle
from evaluators.boxes import Boxes

Array = NDArray[np.float64]
_MIRROR_Y = np.diag([1.0, -1.0, 1.0, 1.0])
_MIRROR_X = np.diag([-1.0, 1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One training sample: F key frames (present first) in the present ego frame."""

    images: NDArray[np.uint8]  # [F, V, H, W, 3]
    intrinsics: Array  # [F, V, 3, 3]
    camera_to_ego: Array  # [F, V, 4, 4]
    boxes: Boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """How strongly training samples are varied."""

    flip_probability: float = 0.5
    max_rotation_rad: float = 0.3  # of the ego frame about z, cameras and boxes alike
    max_gain: float = 0.25  # brightness factor 1 +- this
    max_contrast: float = 0.2
    max_tint: float = 0.06  # per colour channel
    max_noise: float = 3.0  # standard deviation in grey levels


def mirrored(sample: Sample) -> Sample:
    """The world mirrored left to right: images flipped, views of the ring swapped, cameras and boxes mirrored in y."""
    views = sample.images.shape[1]
    ring = (-np.arange(views)) % views
    intrinsics = sample.intrinsics[:, ring].copy()
    # Pixel centres lie at half-integers, so column u goes to W - u.
    intrinsics[..., 0, 2] = sample.images.shape[3] - intrinsics[..., 0, 2]
    intrinsics[..., 0, 1] *= -1
    boxes = sample.boxes
    return Sample(
        images=sample.images[:, ring, :, ::-1],
        intrinsics=intrinsics,
        camera_to_ego=_MIRROR_Y @ sample.camera_to_ego[:, ring] @ _MIRROR_X,
        boxes=replace(
            boxes,
            centers_m=boxes.centers_m * [1, -1, 1],
            yaws_rad=-boxes.yaws_rad,
            velocities_mps=boxes.velocities_mps * [1, -1],
        ),
    )


def rotated(sample: Sample, yaw_rad: float) -> Sample:
    """The ego frame turned by ``-yaw_rad``: the same images of the same world, seen by a car that stands askew."""
    turn = transform_from_xy_yaw(0.0, 0.0, yaw_rad)
    moved = sample.boxes.moved(turn)
    return replace(sample, camera_to_ego=turn @ sample.camera_to_ego, boxes=replace(moved, yaws_rad=wrap_angle(moved.yaws_rad)))


def jittered(images: NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Brightness, contrast, tint and noise; one draw for all views and frames, as one sky lights them all."""
    gain = 1 + rng.uniform(-config.max_gain, config.max_gain)
    contrast = 1 + rng.uniform(-config.max_contrast, config.max_contrast)
    tint = 1 + rng.uniform(-config.max_tint, config.max_tint, 3)
    noise = rng.uniform(0, config.max_noise)
    pixels = images.astype(np.float32)
    mean = pixels.mean()
    pixels = ((pixels - mean) * contrast + mean) * (gain * tint).astype(np.float32)
    pixels += noise * rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def augmented(sample: Sample, config: AugmentConfig, rng: np.random.Generator) -> Sample:
    """One random variation of a sample."""
    if rng.random() < config.flip_probability:
        sample = mirrored(sample)
    sample = rotated(sample, rng.uniform(-config.max_rotation_rad, config.max_rotation_rad))
    return replace(sample, images=jittered(sample.images, config, rng))
