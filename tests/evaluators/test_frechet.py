"""Frechet distances and the proving ground's own features, against closed forms and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from dwm.errors import InputError
from evaluators.detector.inference import Detector
from evaluators.detector.model import BevDetector, DetectorConfig
from evaluators.frechet import ClipSums, Moments, frechet_distance, moments, score_frechet
from evaluators.frechet_features import CLIP_FRAMES, FrechetFeatures

CONFIG = DetectorConfig(image_hw=(32, 48), image_channels=8, bev_channels=8, cell_m=6.4, heights_m=(1.0,))


def gaussian(mean, covariance) -> Moments:
    return Moments(mean_D=np.asarray(mean, float), covariance_DD=np.asarray(covariance, float), samples=100)


def random_covariance(rng: np.random.Generator, size: int, rank: int) -> np.ndarray:
    factor = rng.normal(size=(size, rank))
    return factor @ factor.T / rank


@pytest.fixture(scope="module")
def extractor() -> FrechetFeatures:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FrechetFeatures(Detector(BevDetector(CONFIG), sha256="ab" * 32))


def test_diagonal_gaussians_are_apart_by_their_means_and_deviations() -> None:
    a, b = gaussian([0, 0], np.diag([1.0, 9.0])), gaussian([3, 4], np.diag([4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(25 + (2 - 1) ** 2 + (3 - 1) ** 2)


def test_turning_both_gaussians_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    a, b = random_covariance(rng, 5, 8), random_covariance(rng, 5, 8)
    turn, mean = np.linalg.qr(rng.normal(size=(5, 5)))[0], rng.normal(size=5)
    still = frechet_distance(gaussian(np.zeros(5), a), gaussian(mean, b))
    turned = frechet_distance(gaussian(np.zeros(5), turn @ a @ turn.T), gaussian(turn @ mean, turn @ b @ turn.T))
    assert turned == pytest.approx(still)


@pytest.mark.parametrize("rank", [40, 12])
def test_the_distance_equals_that_by_scipys_matrix_root(rank: int) -> None:
    rng = np.random.default_rng(rank)
    a, b = random_covariance(rng, 24, rank), random_covariance(rng, 24, rank)
    mean = rng.normal(size=24)
    slow = mean @ mean + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    # SciPy's Schur method itself loses digits on singular products.
    assert frechet_distance(gaussian(np.zeros(24), a), gaussian(mean, b)) == pytest.approx(
        slow, rel=1e-8 if rank > 24 else 1e-5
    )


def test_equal_sets_are_not_apart_even_with_fewer_samples_than_features() -> None:
    few = moments(np.random.default_rng(0).normal(size=(6, 50)))
    assert frechet_distance(few, few) < 1e-6
    assert np.linalg.matrix_rank(few.covariance_DD) == 5


def test_moments_are_numpys_and_survive_a_large_mean() -> None:
    features = np.random.default_rng(0).normal(size=(200, 4)) + 1e6
    found = moments(features)
    np.testing.assert_allclose(found.mean_D, features.mean(0))
    np.testing.assert_allclose(found.covariance_DD, np.cov(features.T), rtol=1e-8)


def test_moments_of_chosen_clips_are_those_of_their_features_together() -> None:
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=(n, 3)) for n in (4, 7, 5)]
    found = ClipSums(clips, np.ones(3)).moments(np.array([2, 0, 2]))
    together = np.concatenate([clips[2], clips[0], clips[2]])
    np.testing.assert_allclose(found.mean_D, together.mean(0))
    np.testing.assert_allclose(found.covariance_DD, np.cov(together.T), atol=1e-12)
    assert found.samples == 14


def test_two_halves_of_one_distribution_are_apart_by_the_known_bias() -> None:
    rng, size, samples = np.random.default_rng(0), 16, 1000
    halves = [[moments(rng.normal(size=(samples, size))) for _ in range(2)] for _ in range(30)]
    expected = 2 * size / samples + size * (size + 1) / (4 * samples) * 2
    assert np.mean([frechet_distance(*pair) for pair in halves]) == pytest.approx(expected, rel=0.05)


def test_a_score_counts_samples_holds_its_distance_and_tells_the_floor() -> None:
    rng = np.random.default_rng(0)
    true = [rng.normal(size=(40, 3)) for _ in range(12)]
    shifted = [clip + np.array([2.0, 0, 0]) for clip in true]
    score = score_frechet(true, shifted, np.random.default_rng(1))
    assert score.distance == pytest.approx(4.0)
    assert score.interval is not None and score.interval.low <= 4.0 <= score.interval.high
    assert (score.true_samples, score.generated_samples, score.clips, score.features) == (480, 480, 12, 3)
    assert score.floor is not None and 0 < score.floor < 0.2
    assert score == score_frechet(true, shifted, np.random.default_rng(1))


def test_the_floor_of_clips_that_differ_is_high() -> None:
    rng = np.random.default_rng(0)
    places = [rng.normal(size=(40, 3)) + 10 * i for i in range(4)]
    assert (score_frechet(places, places, rng).floor or 0) > 50


def test_the_interval_covers_the_expected_distance_at_its_level() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(40):
        true = [rng.normal(size=(1, 2)) * [1, 0.1] + rng.normal(size=(20, 2)) for _ in range(20)]
        made = [clip + rng.normal(1.0, 0.5, size=(1, 2)) for clip in true]
        score = score_frechet(true, made, rng, resamples=100)
        assert score.interval is not None
        # Means one apart along both features, seen through 20 clips; what the spread of the shifts adds is 0.03.
        hits += score.interval.low <= 2.03 <= score.interval.high
    assert hits >= 34


def test_one_clip_has_neither_interval_nor_floor_and_too_few_samples_are_said() -> None:
    rng = np.random.default_rng(0)
    score = score_frechet([rng.normal(size=(5, 9))], [rng.normal(size=(5, 9))], rng)
    assert score.interval is None and score.floor is None
    assert "fewer samples than features: singular covariances" in score.notes()


@pytest.mark.parametrize(("samples", "singular"), [(4, True), (5, False)])
def test_as_many_samples_as_features_leave_covariances_singular(samples: int, singular: bool) -> None:
    rng = np.random.default_rng(0)
    notes = score_frechet([rng.normal(size=(samples, 4))], [rng.normal(size=(9, 4))], rng).notes()
    assert any("singular" in note for note in notes) == singular


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="2 true and 1 generated"):
        score_frechet([np.zeros((3, 2))] * 2, [np.zeros((3, 2))], np.random.default_rng(0))
    with pytest.raises(InputError, match="2 against 3 features"):
        frechet_distance(gaussian(np.zeros(2), np.eye(2)), gaussian(np.zeros(3), np.eye(3)))
    with pytest.raises(InputError, match="1 samples"):
        moments(np.zeros((1, 4)))
    with pytest.raises(InputError, match="finite"):
        moments(np.full((3, 4), np.nan))


def test_image_features_are_the_mean_of_the_encoders_stage_and_do_not_depend_on_the_batch(extractor: FrechetFeatures) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 5, 32, 48, 3), dtype=np.uint8)
    features = extractor.of_images(images)
    assert features.shape == (15, 16)
    np.testing.assert_allclose(extractor.of_images(images[2, 4])[0], features[-1], atol=1e-6)
    encoder = extractor._encoder
    x = (torch.from_numpy(images[0]).permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.25
    with torch.inference_mode():
        slow = encoder.stride8(encoder.stride4(encoder.stem(x)))
    np.testing.assert_allclose(features[:5], slow.mean((2, 3)).numpy(), atol=1e-5)


def test_video_features_are_mean_and_change_per_camera_and_clip(extractor: FrechetFeatures) -> None:
    rng = np.random.default_rng(0)
    video = rng.integers(0, 255, (2 * CLIP_FRAMES + 3, 2, 32, 48, 3), dtype=np.uint8)
    features = extractor.of_video(video)
    assert features.shape == (4, 32)
    second_camera = extractor.of_images(video[:CLIP_FRAMES, 1])
    np.testing.assert_allclose(features[2, :16], second_camera.mean(0), atol=1e-6)
    shuffled = video[rng.permutation(CLIP_FRAMES)][:, :]
    np.testing.assert_allclose(extractor.of_video(shuffled)[0, :16], features[0, :16], atol=1e-6)
    still = extractor.of_video(np.repeat(video[:1], CLIP_FRAMES, axis=0))
    np.testing.assert_array_equal(still[:, 16:], 0)
    assert (features[:, 16:] > 0).any(1).all()


def test_frames_of_another_size_and_too_short_videos_are_refused(extractor: FrechetFeatures) -> None:
    with pytest.raises(InputError, match="without resizing"):
        extractor.of_images(np.zeros((1, 16, 24, 3), np.uint8))
    with pytest.raises(InputError, match="7 frames"):
        extractor.of_video(np.zeros((CLIP_FRAMES - 1, 1, 32, 48, 3), np.uint8))


def test_the_card_names_weights_layer_resizing_counts_and_floor(extractor: FrechetFeatures) -> None:
    rng = np.random.default_rng(0)
    true = [rng.normal(size=(9, 2)) for _ in range(4)]
    score = score_frechet(true, [t + 1 for t in true], rng)
    sentence = extractor.card("FID-pg", score, frames=9, frames_per_second=12, cameras=("CAM_FRONT",), seed=0).sentence()
    for part in ("FID-pg: 4 clips of 9 frames at 12 Hz", "32x48", "resize none", "abababababab", "layer images.stride8",
                 "36 generated against 36 true samples of 2 features", "95% interval", "true halves, by clip, are"):  # fmt: skip
        assert part in sentence
