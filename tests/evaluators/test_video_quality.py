"""FID and FVD through small scripted stand-ins for the public networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dwm.errors import InputError
from dwm.models.weights import weights_sha256
from evaluators.network_file import NetworkFile
from evaluators.public_networks import I3dFeatures, InceptionFeatures, centre_cropped
from evaluators.video_quality import VideoQuality, VideoQualityConfig, VideoQualityResult, fid, fvd
from tests.evaluators.tiny_networks import TinyI3d, TinyInception, saved

CAMERAS = ("CAM_FRONT", "CAM_BACK")
SIZE_HW = (12, 20)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> NetworkFile:
    return saved(TinyInception(), tmp_path_factory.mktemp("networks") / "inception.pt")


@pytest.fixture(scope="module")
def i3d(tmp_path_factory: pytest.TempPathFactory) -> NetworkFile:
    return saved(TinyI3d(), tmp_path_factory.mktemp("networks") / "i3d.pt")


def video(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Noise around a colour of its own per frame and camera, far from black and white."""
    colours = rng.integers(80, 140, (frames, len(CAMERAS), 1, 1, 3))
    return (colours + rng.integers(0, 9, (frames, len(CAMERAS), *SIZE_HW, 3))).astype(np.uint8)


def brighter(clip: np.ndarray, frames: slice = slice(None), cameras: slice = slice(None)) -> np.ndarray:
    out = clip.copy()
    out[frames, cameras] += 10
    return out


def results(
    quality: VideoQuality, true: list[np.ndarray], made: list[np.ndarray], rate: float = 1.0
) -> dict[tuple[str, float | None], VideoQualityResult]:
    for a, b in zip(true, made, strict=True):
        quality.add(a, b, cameras=CAMERAS, frames_per_second=rate)
    return {(result.metric, result.start_s): result for result in quality.results()}


def images_of(inception: NetworkFile, **settings) -> VideoQuality:
    return VideoQuality(VideoQualityConfig(resamples=20, **settings), [fid(InceptionFeatures(inception))])


def test_inception_gets_whole_uint8_images_channels_first(inception: NetworkFile) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 6, 10, 3), dtype=np.uint8)
    np.testing.assert_allclose(InceptionFeatures(inception).of_images(images), images.mean((1, 2)), atol=1e-4)


def test_i3d_gets_whole_uint8_clips_and_resizes_inside_or_cropped_ones_ready_made(i3d: NetworkFile) -> None:
    clips = np.full((5, 10, *SIZE_HW, 3), 60, np.uint8)
    clips[..., 6:14, :] = 200  # the middle square is 12 wide
    squeezed = I3dFeatures(i3d).of_clips(clips)
    cropped = I3dFeatures(i3d, "centre_crop").of_clips(clips)
    assert squeezed[:, 4:].tolist() == [[12, 20, 8, 8]] * 5
    assert cropped[:, 4:].tolist() == [[224, 224, 224, 224]] * 5
    # In -1 to 1; the sides are 12 of 20 columns of the whole and 4 of 12 of the middle.
    dark, bright = 2 * 60 / 255 - 1, 2 * 200 / 255 - 1
    np.testing.assert_allclose(squeezed[:, :3], (12 * dark + 8 * bright) / 20, atol=0.05)
    np.testing.assert_allclose(cropped[:, :3], (4 * dark + 8 * bright) / 12, atol=0.01)


def test_centre_crops_bring_the_shorter_side_to_224_either_way() -> None:
    wide = torch.arange(40, dtype=torch.uint8).expand(1, 3, 2, 10, 40)
    columns = centre_cropped(wide)[0, 0, 0, 0]
    assert columns.shape == (224,)
    middle = (columns + 1) / 2 * 255
    assert middle[[0, -1]].tolist() == pytest.approx([15, 24], abs=0.5)
    tall = centre_cropped(wide.transpose(3, 4))
    assert tall.shape == (1, 3, 2, 224, 224)
    torch.testing.assert_close(tall, centre_cropped(wide).transpose(3, 4))


def test_shrinking_a_clip_does_not_smooth_it_first() -> None:
    columns = np.arange(896) % 4
    stripes = torch.from_numpy(np.where((columns == 1) | (columns == 2), 255, 0).astype(np.uint8))
    assert (centre_cropped(stripes.expand(1, 3, 10, 896, 896)) == 1.0).all(), (
        "each place is the mean of the two columns at its middle"
    )


def test_files_that_are_not_what_they_should_be_are_refused(inception: NetworkFile, i3d: NetworkFile, tmp_path: Path) -> None:
    digest = weights_sha256(Path(inception.path))
    assert InceptionFeatures(NetworkFile(path=inception.path, sha256=digest.upper())).sha256 == digest
    with pytest.raises(InputError, match=f"sha256 {digest}, expected 00"):
        InceptionFeatures(NetworkFile(path=inception.path, sha256="00"))
    with pytest.raises(InputError, match="expected 00"):
        I3dFeatures(NetworkFile(path=i3d.path, sha256="00"))
    with pytest.raises(InputError, match="no such network file"):
        InceptionFeatures(NetworkFile(path=str(tmp_path / "none.pt")))
    torch.save(TinyInception().state_dict(), tmp_path / "state.pt")
    with pytest.raises(InputError, match="no TorchScript file"):
        InceptionFeatures(NetworkFile(path=str(tmp_path / "state.pt")))
    with pytest.raises(InputError, match="does not take rescale, resize, return_features"):
        I3dFeatures(inception).of_clips(np.zeros((1, 10, 8, 8, 3), np.uint8))


def test_clips_of_fewer_than_ten_frames_and_other_images_are_refused(inception: NetworkFile, i3d: NetworkFile) -> None:
    with pytest.raises(InputError, match="10 or more"):
        I3dFeatures(i3d).of_clips(np.zeros((1, 9, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="uint8 RGB"):
        InceptionFeatures(inception).of_images(np.zeros((1, 8, 8, 3), np.float32))


def test_a_shift_of_colour_is_the_square_of_its_length_and_true_clips_are_not_apart(inception: NetworkFile) -> None:
    rng = np.random.default_rng(0)
    true = [video(rng, 12) for _ in range(3)]
    shifted = results(images_of(inception), true, [brighter(clip) for clip in true])["FID", None]
    assert shifted.score.distance == pytest.approx(300, rel=1e-4)
    interval, floor = shifted.score.interval, shifted.score.floor
    assert interval is not None and interval.low <= 300.001 and interval.high >= 299.999
    assert floor is not None and floor > 0
    assert (shifted.score.true_samples, shifted.score.clips) == (3 * 11 * 2, 3)
    assert results(images_of(inception), true, true)["FID", None].score.distance == pytest.approx(0, abs=1e-6)


def test_samples_belong_to_the_stretch_in_which_they_begin(inception: NetworkFile) -> None:
    rng = np.random.default_rng(0)
    true = [video(rng, 24) for _ in range(2)]
    found = results(images_of(inception), true, [brighter(clip, slice(10, 20)) for clip in true])
    assert [start for _, start in found] == [None, 0, 10, 20]
    assert [found["FID", s].score.distance for s in (0.0, 10.0, 20.0)] == pytest.approx([0, 300, 0], abs=0.05)
    assert [found["FID", s].score.true_samples for s in (0.0, 10.0, 20.0)] == [2 * 2 * n for n in (9, 10, 4)]
    assert found["FID", 10.0].end_s == 20


def test_a_stretch_with_too_few_samples_for_a_floor_is_left_out(inception: NetworkFile) -> None:
    rng = np.random.default_rng(0)
    # A last stretch of one frame, of the front camera: halves of three clips hold one sample.
    true = [video(rng, 21) for _ in range(3)]
    assert [start for _, start in results(images_of(inception, views="front"), true, true)] == [None, 0, 10]
    assert [start for _, start in results(images_of(inception), true, true)] == [None, 0, 10, 20]


def test_a_clip_too_short_for_one_network_stays_with_neither(inception: NetworkFile, i3d: NetworkFile) -> None:
    rng = np.random.default_rng(0)
    quality = VideoQuality(VideoQualityConfig(resamples=20), [fid(InceptionFeatures(inception)), fvd(I3dFeatures(i3d), 10)])
    short, long = video(rng, 10), [video(rng, 11) for _ in range(2)]
    with pytest.raises(InputError, match="9 frames that count; give 10"):
        quality.add(short, short, cameras=CAMERAS, frames_per_second=1)
    found = results(quality, long, long)
    assert [found[metric, None].score.clips for metric in ("FID", "FVD")] == [2, 2]


def test_given_frames_count_only_where_asked_for(inception: NetworkFile) -> None:
    rng = np.random.default_rng(0)
    true = [video(rng, 8) for _ in range(2)]
    made = [brighter(clip, slice(0, 3)) for clip in true]
    without = results(images_of(inception, given_frames=3), true, made)["FID", None]
    counted = results(images_of(inception, given_frames=3, count_given_frames=True), true, made)["FID", None]
    assert without.score.distance == pytest.approx(0, abs=1e-6)
    assert counted.score.distance > 1
    assert (without.score.true_samples, counted.score.true_samples) == (2 * 2 * 5, 2 * 2 * 8)
    assert "the 3 given frames of a clip are left out" in without.card.notes
    assert "the 3 given frames of a clip count" in counted.card.notes


def test_cameras_are_samples_of_their_own_or_the_front_one_counts_alone(inception: NetworkFile) -> None:
    rng = np.random.default_rng(0)
    true = [video(rng, 8) for _ in range(2)]
    made = [brighter(clip, cameras=slice(1, 2)) for clip in true]
    front = results(images_of(inception, views="front"), true, made)["FID", None]
    assert front.score.distance == pytest.approx(0, abs=1e-6)
    assert (front.score.true_samples, front.card.cameras) == (2 * 7, ("CAM_FRONT",))
    everything = results(images_of(inception), true, made)["FID", None]
    assert everything.score.distance > 30
    assert (everything.score.true_samples, everything.card.cameras) == (2 * 7 * 2, CAMERAS)


def test_fvd_cuts_successive_clips_per_camera_and_its_card_says_how(i3d: NetworkFile) -> None:
    rng = np.random.default_rng(0)
    true = [video(rng, 1 + 2 * 10 + 5) for _ in range(2)]
    quality = VideoQuality(VideoQualityConfig(resamples=20), [fvd(I3dFeatures(i3d), 10)])
    found = results(quality, true, [brighter(clip) for clip in true], rate=2.0)
    whole = found["FVD", None]
    assert whole.score.distance == pytest.approx(3 * (20 / 255) ** 2, rel=1e-3)
    assert whole.score.true_samples == 2 * 2 * 2
    # The second sample begins with frame 11, at 5.5 s.
    assert list(found) == [("FVD", None), ("FVD", 0)]
    sentence = whole.card.sentence()
    for part in ("FVD: 2 clips of 25 frames at 2 Hz", "12x20", "anisotropic to 224x224", whole.card.weights_sha256[:12],
                 "10 successive frames to a sample", "true halves, by clip, are", "95% interval",
                 "every camera a sample of its own", "fewer samples than features: singular covariances"):  # fmt: skip
        assert part in sentence
    assert "samples that begin at 0 to 10 s" in found["FVD", 0.0].card.notes
    assert whole.card.weights_sha256 == weights_sha256(Path(i3d.path))


def test_what_cannot_be_compared_is_refused(inception: NetworkFile, i3d: NetworkFile) -> None:
    clip = video(np.random.default_rng(0), 8)
    with pytest.raises(InputError, match="by the same steps"):
        images_of(inception).add(clip, clip[:, :, :10], cameras=CAMERAS, frames_per_second=1)
    with pytest.raises(InputError, match="no CAM_FRONT"):
        images_of(inception, views="front").add(clip[:, 1:], clip[:, 1:], cameras=CAMERAS[1:], frames_per_second=1)
    with pytest.raises(InputError, match="of 1 cameras"):
        images_of(inception).add(clip, clip, cameras=CAMERAS[:1], frames_per_second=1)
    long_samples = VideoQuality(VideoQualityConfig(), [fvd(I3dFeatures(i3d))])
    with pytest.raises(InputError, match="give 16"):
        long_samples.add(clip, clip, cameras=CAMERAS, frames_per_second=1)
    quality = images_of(inception)
    with pytest.raises(InputError, match="no clips"):
        quality.results()
    quality.add(clip, clip, cameras=CAMERAS, frames_per_second=1)
    with pytest.raises(InputError, match="of one kind"):
        quality.add(clip, clip, cameras=CAMERAS, frames_per_second=2)
    for other, cameras in ((clip[:7], CAMERAS), (clip[:, ::-1], CAMERAS[::-1]), (clip[:, :, :10], CAMERAS)):
        with pytest.raises(InputError, match="of one kind"):
            quality.add(other, other, cameras=cameras, frames_per_second=1)
