from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dwm.errors import InputError
from dwm.scenes.clips import _read_with_av, read_image, read_images, read_video_frames, resize
from dwm.scenes.nuscenes import read_scene


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Ten frames of one grey level each: 20 n + 10."""
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(12))
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.options = {"crf": "1"}
        for n in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((32, 64, 3), 20 * n + 10, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("read", [read_video_frames, _read_with_av])
def test_frames_come_in_the_order_asked(video: Path, read) -> None:
    frames = read(video, [7, 0, 7, 3])
    assert frames.shape == (4, 32, 64, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), [150, 10, 150, 70], atol=3)
    assert read(video, []).shape == (0, 32, 64, 3)


@pytest.mark.parametrize("read", [read_video_frames, _read_with_av])
def test_an_index_beyond_the_video_names_its_length(video: Path, read) -> None:
    with pytest.raises(InputError, match=r"no frame 10; the video has 10 frames"):
        read(video, [0, 10])


@pytest.mark.parametrize("read", [read_video_frames, _read_with_av])
def test_a_truncated_video_is_an_input_error(video: Path, read) -> None:
    video.write_bytes(video.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot decode the video"):
        read(video, [0])


def test_a_missing_video_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such video"):
        read_video_frames(tmp_path / "none.mp4", [0])


def test_images_are_read_at_any_size(pg_dataroot: Path) -> None:
    scene = read_scene(pg_dataroot, "v1.0-mini", "scene-0001")
    full = read_images(scene, "CAM_FRONT", [0, 5])
    half = read_images(scene, "CAM_FRONT", [0, 5], (16, 28))
    assert full.shape == (2, 32, 56, 3)
    blocks = full.reshape(2, 16, 2, 28, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(half, blocks, atol=1.0)


def test_unknown_channels_and_frames_are_named(pg_dataroot: Path) -> None:
    scene = read_scene(pg_dataroot, "v1.0-mini", "scene-0001")
    with pytest.raises(InputError, match="no channel 'CAM_TOP'"):
        read_images(scene, "CAM_TOP", [0])
    with pytest.raises(InputError, match="CAM_FRONT has no frame 13"):
        read_images(scene, "CAM_FRONT", [13])


def test_a_truncated_or_missing_image_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match=r"a\.jpg: cannot decode"):
        read_image(path)
    path.write_text("not an image")
    with pytest.raises(InputError, match=r"a\.jpg: cannot decode"):
        read_image(path)
    with pytest.raises(InputError, match="missing"):
        read_image(tmp_path / "none.jpg")


def test_growing_an_image_keeps_a_constant() -> None:
    grown = resize(np.full((4, 6, 3), 77, np.uint8), (8, 12))
    assert grown.shape == (8, 12, 3)
    assert (grown == 77).all()
