"""Augmentation keeps images, cameras and boxes together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dwm.geometry import apply, invert, project, transform_from_xy_yaw
from evaluators.boxes import Boxes, boxes_from
from evaluators.detector.augment import AugmentConfig, Sample, augmented, jittered, mirrored, rotated

LOOKS_FORWARD = np.array([[0.0, 0, 1, 1.2], [-1, 0, 0, 0.3], [0, -1, 0, 1.5], [0, 0, 0, 1]])


def a_sample(seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    cameras = np.stack([transform_from_xy_yaw(0, 0, -v * math.pi / 3 + 0.05 * v) @ LOOKS_FORWARD for v in range(6)])
    intrinsics = np.array([[30.0, 0, 19], [0, 31, 12], [0, 0, 1]])
    boxes = boxes_from(
        np.arange(5), rng.uniform(-20, 20, (5, 3)), rng.uniform(1, 4, (5, 3)), rng.uniform(-3, 3, 5), rng.normal(0, 4, (5, 2))
    )
    return Sample(
        images=rng.integers(0, 255, (1, 6, 24, 40, 3), dtype=np.uint8), intrinsics=np.tile(intrinsics, (1, 6, 1, 1)),
        camera_to_ego=cameras[None], boxes=boxes,
    )  # fmt: skip


def pixels(sample: Sample, boxes: Boxes, view: int) -> tuple[np.ndarray, np.ndarray]:
    return project(apply(invert(sample.camera_to_ego[0, view]), boxes.centers_m), sample.intrinsics[0, view])


def test_mirroring_twice_gives_the_sample_back() -> None:
    sample = a_sample()
    again = mirrored(mirrored(sample))
    np.testing.assert_array_equal(again.images, sample.images)
    np.testing.assert_allclose(again.camera_to_ego, sample.camera_to_ego, atol=1e-12)
    np.testing.assert_allclose(again.intrinsics, sample.intrinsics, atol=1e-12)
    for name in Boxes.__dataclass_fields__:
        np.testing.assert_allclose(getattr(again.boxes, name), getattr(sample.boxes, name), atol=1e-12)


def test_mirrored_boxes_project_to_mirrored_pixels_in_the_swapped_camera() -> None:
    sample = a_sample()
    flipped = mirrored(sample)
    assert np.linalg.det(flipped.camera_to_ego[0, 1, :3, :3]) == pytest.approx(1.0)
    for view in range(6):
        swapped = -view % 6
        before, depth_before = pixels(sample, sample.boxes, swapped)
        after, depth_after = pixels(flipped, flipped.boxes, view)
        np.testing.assert_allclose(depth_after, depth_before, atol=1e-9)
        np.testing.assert_allclose(after, np.stack([40 - before[:, 0], before[:, 1]], -1), atol=1e-6)
        np.testing.assert_array_equal(flipped.images[0, view], sample.images[0, swapped, :, ::-1])
    np.testing.assert_allclose(flipped.boxes.velocities_mps, sample.boxes.velocities_mps * [1, -1])


def test_turning_the_ego_leaves_every_projection_where_it_was() -> None:
    sample = a_sample()
    turned = rotated(sample, 0.25)
    for view in range(6):
        np.testing.assert_allclose(pixels(turned, turned.boxes, view)[0], pixels(sample, sample.boxes, view)[0], atol=1e-6)
    np.testing.assert_allclose(turned.boxes.yaws_rad[0], sample.boxes.yaws_rad[0] + 0.25)
    np.testing.assert_allclose(
        np.linalg.norm(turned.boxes.velocities_mps, axis=1), np.linalg.norm(sample.boxes.velocities_mps, axis=1)
    )


def test_jitter_changes_brightness_within_its_limits_and_is_decided_by_the_seed() -> None:
    images = np.full((1, 6, 8, 8, 3), 100, np.uint8)
    config = AugmentConfig(max_gain=0.2, max_contrast=0.0, max_tint=0.0, max_noise=0.0)
    means = [jittered(images, config, np.random.default_rng(s)).mean() for s in range(20)]
    assert 79 <= min(means) < 90 < 110 < max(means) <= 121
    once, again = (jittered(images, AugmentConfig(), np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_augmentation_without_strength_changes_nothing() -> None:
    sample = a_sample()
    off = AugmentConfig(flip_probability=0, max_rotation_rad=0, max_gain=0, max_contrast=0, max_tint=0, max_noise=0)
    same = augmented(sample, off, np.random.default_rng(0))
    np.testing.assert_array_equal(same.images, sample.images)
    np.testing.assert_allclose(same.boxes.centers_m, sample.boxes.centers_m, atol=1e-12)
