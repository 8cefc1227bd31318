from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from dwm.errors import InputError
from dwm.scenes.clips import read_video_frames
from pipelines.video import VideoWriter, check_video, decode_frames, encode_psnr_db, video_row

W, H, FPS = 96, 64, 12.0


def _flat_frames(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (H, W, 3)).copy() for _ in range(n)]


def _write(path: Path, frames: list[np.ndarray], **options) -> VideoWriter:
    with VideoWriter(path, W, H, FPS, **options) as writer:
        for frame in frames:
            writer.write(frame)
    return writer


def test_flat_colours_come_back_within_four_levels_from_every_decoder(tmp_path: Path):
    frames = _flat_frames(24)
    _write(tmp_path / "a.mp4", frames)
    expected = np.stack(frames).astype(int)
    through_pyav = np.stack(list(decode_frames(tmp_path / "a.mp4"))).astype(int)
    through_reader = read_video_frames(tmp_path / "a.mp4", range(24)).astype(int)
    assert np.abs(through_pyav - expected).max() <= 2
    assert np.abs(through_reader - expected).max() <= 4


def test_the_file_has_constant_rate_one_key_frame_a_second_no_b_frames_and_bt709_tags(tmp_path: Path):
    _write(tmp_path / "a.mp4", _flat_frames(30))
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        tags = (context.colorspace, context.color_range, context.color_primaries, context.color_trc)
        assert (context.name, context.profile, context.pix_fmt, tags) == ("h264", "High", "yuv420p", (1, 1, 1, 1))
        frames = list(container.decode(stream))
    assert [frame.time for frame in frames] == pytest.approx([i / FPS for i in range(30)])
    assert [i for i, frame in enumerate(frames) if frame.key_frame] == [0, 12, 24]
    assert {av.video.frame.PictureType(frame.pict_type).name for frame in frames} == {"I", "P"}
    head = (tmp_path / "a.mp4").read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")


def test_psnr_of_the_file_agrees_with_its_definition_and_lower_crf_is_better(tmp_path: Path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (H, W, 3), dtype=np.uint8) for _ in range(3)]
    _write(tmp_path / "a.mp4", frames)
    error = np.stack(list(decode_frames(tmp_path / "a.mp4"))).astype(float) - np.stack(frames)
    expected = 10 * np.log10(255**2 / np.mean(error**2))
    assert encode_psnr_db(tmp_path / "a.mp4", frames) == pytest.approx(expected)
    _write(tmp_path / "b.mp4", frames, crf=40)
    assert encode_psnr_db(tmp_path / "b.mp4", frames) < expected - 1
    with pytest.raises(ValueError, match="shorter"):
        encode_psnr_db(tmp_path / "a.mp4", frames[:2])


def test_the_same_frames_give_the_same_bytes(tmp_path: Path):
    for name in ("a.mp4", "b.mp4"):
        _write(tmp_path / name, _flat_frames(5))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path):
    def fail():
        with VideoWriter(tmp_path / "a.mp4", W, H, FPS) as writer:
            writer.write(np.zeros((H, W, 3), np.uint8))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_videos_row_describes_the_file(tmp_path: Path):
    row = video_row(_write(tmp_path / "CAM_BACK.mp4", _flat_frames(3), crf=20), "c", "CAM_BACK", psnr_db=40.0)
    assert (row["uri"], row["n_frames"], row["width"], row["height"], row["gop"]) == ("CAM_BACK.mp4", 3, W, H, 12)
    assert (row["fps"], row["crf"], row["encode_psnr_db"], row["stream"]) == (12.0, 20.0, 40.0, "rgb")


def test_odd_sizes_and_wrong_frames_are_input_errors(tmp_path: Path):
    with pytest.raises(InputError, match="95x64 cannot be coded"):
        VideoWriter(tmp_path / "a.mp4", 95, 64, FPS)
    writer = VideoWriter(tmp_path / "a.mp4", W, H, FPS)
    with pytest.raises(InputError, match=r"frame is float64 \(64, 96, 3\)"):
        writer.write(np.zeros((H, W, 3)))
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_checking_a_video_counts_frames_and_notices_truncation(tmp_path: Path):
    path = tmp_path / "a.mp4"
    rng = np.random.default_rng(0)
    _write(path, [rng.integers(0, 256, (H, W, 3), dtype=np.uint8) for _ in range(30)])
    assert check_video(path, middle=True) == 30
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="unreadable video"):
        check_video(path)
    path.write_bytes(b"nothing like a video")
    with pytest.raises(InputError, match="unreadable video"):
        check_video(path)
