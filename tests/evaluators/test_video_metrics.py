"""PSNR, SSIM, flicker, sharpness and buckets in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dwm.errors import InputError
from evaluators.buckets import bucket_means, bucket_metrics
from evaluators.counterfactual import PSNR_CAP_DB, psnr_db, score_counterfactual, ssim
from evaluators.flicker import adjacent_change, score_appearance, sharpness, temporal_flickering


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_psnr_of_a_constant_error_is_its_closed_form() -> None:
    truth = np.full((2, 3, 8, 9, 3), 100, np.uint8)
    images = truth.copy()
    images[1, 2] += 10
    values = psnr_db(images, truth)
    assert values.shape == (2, 3)
    assert values[1, 2] == pytest.approx(20 * math.log10(255 / 10), abs=1e-5)
    assert values[0, 0] == PSNR_CAP_DB


def test_psnr_does_not_wrap_around_in_uint8() -> None:
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    assert psnr_db(black, white)[0] == pytest.approx(0.0, abs=1e-9)


def test_images_of_another_shape_or_type_are_refused() -> None:
    image = noise((1, 8, 8, 3))
    with pytest.raises(InputError, match="one shape"):
        psnr_db(image, image[:, :4])
    with pytest.raises(InputError, match="float64"):
        psnr_db(image.astype(np.float64), image)
    with pytest.raises(InputError, match="window"):
        ssim(image, image)


def test_ssim_is_one_for_equal_images_and_its_closed_form_for_flat_ones() -> None:
    image = noise((1, 32, 32, 3))
    assert ssim(image, image)[0] == pytest.approx(1.0)
    a, b = np.full((1, 32, 32, 3), 80, np.uint8), np.full((1, 32, 32, 3), 120, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b)[0] == pytest.approx((2 * 80 * 120 + c1) / (80**2 + 120**2 + c1), abs=1e-4)
    assert ssim(image, noise((1, 32, 32, 3), 1))[0] < 0.1


def test_condition_frames_do_not_count_and_drift_shows_in_the_buckets() -> None:
    truth = np.full((40, 1, 12, 12, 3), 100, np.uint8)
    images = truth.copy()
    images[2:20] += 5
    images[20:] += 20
    metrics = score_counterfactual(np.ascontiguousarray(images), truth, fps=2.0, condition_frames=2).metrics()
    good, bad = 20 * math.log10(255 / 5), 20 * math.log10(255 / 20)
    assert metrics["counterfactual.psnr_db.0-10s"] == pytest.approx(good, abs=1e-4)
    assert metrics["counterfactual.psnr_db.10-20s"] == pytest.approx(bad, abs=1e-4)
    assert metrics["counterfactual.psnr_db"] == pytest.approx((18 * good + 20 * bad) / 38, abs=1e-4)


def test_buckets_follow_time_not_frame_counts() -> None:
    values = np.arange(25.0)
    # At 12 Hz one second holds 12 frames: 0-11, 12-23, 24.
    np.testing.assert_allclose(bucket_means(values, 12.0, 1.0), [5.5, 17.5, 24.0])
    assert list(bucket_metrics("m", values, 1.0)) == ["m.0-10s", "m.10-20s", "m.20-30s"]
    assert math.isnan(bucket_means(np.array([math.nan, 1.0]), 1.0, 1.0)[0])
    assert len(bucket_means(np.zeros(0), 1.0)) == 0


def test_flicker_is_its_closed_form() -> None:
    images = np.full((3, 2, 4, 5, 3), 100, np.uint8)
    images[1, 0] = 151
    images[2, 1] = 49
    expected = np.array([[51, 0], [51, 51]])
    np.testing.assert_allclose(adjacent_change(images), expected)
    np.testing.assert_allclose(temporal_flickering(images), 1 - expected / 255)


def test_sharpness_of_a_ramp_is_its_slope() -> None:
    ramp = np.tile(np.arange(0, 120, 4, dtype=np.uint8)[None, None, None, :, None], (1, 1, 6, 1, 3))
    assert sharpness(ramp)[0, 0] == pytest.approx(4.0, abs=1e-4)


def test_blur_over_time_lowers_the_worst_sharpness_ratio() -> None:
    images = np.repeat(noise((1, 1, 16, 16, 3)), 30, axis=0)
    images[20:] = (images[20:] // 4) + 96
    metrics = score_appearance(images, fps=1.0, condition_frames=1).metrics()
    assert metrics["sharpness.ratio_min"] == pytest.approx(0.25, abs=0.03)
    assert "motion.frozen_fraction" not in metrics


def test_what_is_given_before_the_last_given_frame_is_not_judged() -> None:
    images = np.concatenate([np.full((2, 1, 16, 16, 3), 90, np.uint8), np.stack([noise((1, 16, 16, 3), s) for s in range(9)])])
    given, from_last = score_appearance(images, 2.0, 3), score_appearance(images[2:], 2.0, 1)
    names = ("image.min_spread", "sharpness.mean", "flicker.mean")
    assert [given.metrics()[name] for name in names] == [from_last.metrics()[name] for name in names]
    assert given.metrics(2.0)["flicker.0-2s"] == pytest.approx(1 - adjacent_change(images)[2:4].mean() / 255)
    assert (
        np.isnan(given.judged(given.sharpness)[:2]).all() and (given.judged(given.sharpness)[2:] == given.sharpness[2:]).all()
    )
    same = score_appearance(images, 2.0, 3, truth=images[:, :, ::-1].copy()).metrics()
    assert [same["flicker.change_ratio"], same["sharpness.truth_ratio"]] == pytest.approx([1.0, 1.0])


def test_a_standing_picture_is_frozen_only_while_the_ego_moves() -> None:
    images = np.repeat(noise((1, 1, 16, 16, 3)), 10, axis=0)
    driving, parked = np.full(10, 5.0), np.zeros(10)
    assert score_appearance(images, 12.0, ego_speed_mps=driving).metrics()["motion.frozen_fraction"] == 1
    assert score_appearance(images, 12.0, ego_speed_mps=parked).metrics()["motion.frozen_fraction"] == 0
    moving = np.stack([noise((1, 16, 16, 3), s) for s in range(10)])
    assert score_appearance(moving, 12.0, ego_speed_mps=driving).metrics()["motion.frozen_fraction"] == 0


def test_a_constant_image_has_no_spread_and_ratios_compare_with_the_truth() -> None:
    truth = np.stack([noise((1, 16, 16, 3), s) for s in range(4)])
    images = truth.copy()
    images[2] = 128
    metrics = score_appearance(images, 12.0, truth=truth).metrics()
    # Luma in float32 leaves a rounding error of the order of 1e-5.
    assert metrics["image.min_spread"] == pytest.approx(0.0, abs=1e-3)
    same = score_appearance(truth, 12.0, truth=truth).metrics()
    assert same["flicker.change_ratio"] == pytest.approx(1.0)
    assert same["sharpness.truth_ratio"] == pytest.approx(1.0)
    assert metrics["flicker.change_ratio"] < 1
