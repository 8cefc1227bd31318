"""mp4 files for training: H.264 that every decoder opens, seeks quickly and gives back in the same colours.

One group of pictures a second, no B frames, constant frame rate with pts = frame index, BT.709 limited range converted and
tagged alike, so that decord, PyAV and torchcodec agree. The encoder's bytes depend on its thread count: it is pinned to 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray

from dwm.errors import InputError

Image = NDArray[np.uint8]  # [H, W, 3] RGB

CODEC, PIX_FMT = "h264", "yuv420p"
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


class VideoWriter:
    """Streams RGB frames into an mp4 that appears under its name only when complete.

    Raises InputError for odd sizes or frames of another size; OSError as the disk reports it.
    """

    def __init__(self, path: Path, width: int, height: int, fps: float, crf: float = 17.0, preset: str = "medium") -> None:
        if width % 2 or height % 2:
            raise InputError(path, f"{width}x{height} cannot be coded as yuv420p", "use an even width and height")
        self.path, self.n_frames = path, 0
        self.width, self.height, self.fps = width, height, fps
        self._part = path.with_name(f"{path.name}.part")
        self._rate = Fraction(fps).limit_denominator(1001)
        self.encoder_args = encoder_args(fps, crf, preset)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._part), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = _h264_stream(self._container, width, height, self._rate, self.encoder_args)
        self._reformatter = VideoReformatter()

    def write(self, image: Image) -> None:
        """Appends one frame [H, W, 3] uint8."""
        expected = (self._stream.height, self._stream.width, 3)
        if image.shape != expected or image.dtype != np.uint8:
            raise InputError(self.path, f"frame is {image.dtype} {image.shape}", f"give uint8 {expected}")
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"), format=PIX_FMT,
            dst_colorspace=Colorspace.ITU709, src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.MPEG,
            dst_color_trc=ColorTrc.BT709, dst_color_primaries=ColorPrimaries.BT709, interpolation=_SCALING, threads=1,
        )  # fmt: skip
        frame.pts, frame.time_base = self.n_frames, 1 / self._rate
        self._container.mux(self._stream.encode(frame))
        self.n_frames += 1

    def close(self) -> None:
        """Finishes the file and gives it its name."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        os.replace(self._part, self.path)

    def abort(self) -> None:
        """Drops what was written."""
        try:
            self._container.close()
        finally:
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def encoder_args(fps: float, crf: float, preset: str) -> dict[str, str]:
    """The libx264 options of a ``VideoWriter``, as stored with each video."""
    return {
        "crf": f"{crf:g}", "preset": preset, "tune": "fastdecode", "profile": "high", "g": str(max(1, round(fps))), "bf": "0",
        "sc_threshold": "0", "threads": "1",
    }  # fmt: skip


def video_row(
    writer: VideoWriter, clip_id: str, channel: str, stream: str = "rgb", psnr_db: float | None = None, shown: range = range(1),
) -> dict[str, Any]:  # fmt: skip
    """The ``videos`` row of a closed writer of the clip's frames ``shown``; bytes, sha256 and the final uri follow at publication."""
    args = writer.encoder_args
    return {
        "clip_id": clip_id, "channel": channel, "stream": stream, "first_frame": shown.start,
        "frame_step": shown.step, "uri": writer.path.name, "n_frames": writer.n_frames,
        "width": writer.width, "height": writer.height, "fps": writer.fps, "codec": CODEC,
        "pix_fmt": PIX_FMT, "gop": int(args["g"]), "crf": float(args["crf"]), "encode_psnr_db": psnr_db,
        "encoder_args_json": json.dumps({"encoder": "libx264", **args}, sort_keys=True),
    }  # fmt: skip


def decode_frames(path: Path) -> Iterator[Image]:
    """All frames in order, [H, W, 3] uint8 RGB. InputError for a file that is not a video."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                yield _rgb(frame)
    except (av.FFmpegError, IndexError) as error:
        raise InputError(path, f"unreadable video ({error})", "generate the shard again") from error


def encode_psnr_db(path: Path, frames: Iterable[Image]) -> float:
    """Peak signal-to-noise ratio of the decoded file against the frames given to the encoder, over all pixels."""
    squares, count = 0.0, 0
    for decoded, original in zip(decode_frames(path), frames, strict=True):
        squares += float(np.sum((decoded.astype(np.float64) - original) ** 2))
        count += decoded.size
    return float("inf") if squares == 0 else float(10 * np.log10(255**2 * count / squares))


def check_video(path: Path, *, middle: bool = False) -> int:
    """Number of frames; decodes the first and last frame (and a middle one). InputError when one does not decode."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            pts = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
            wanted = [pts[0], pts[-1], *([pts[len(pts) // 2]] if middle else [])]
            for target in wanted:
                _decode_at(container, stream, target)
        return len(pts)
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise InputError(path, f"unreadable video ({error!r})", "generate the shard again") from error


def _decode_at(container: Any, stream: Any, pts: int) -> None:
    container.seek(pts, stream=stream, backward=True)
    next(frame for frame in container.decode(stream) if frame.pts == pts)


def _rgb(frame: Any) -> Image:
    return frame.reformat(
        format="rgb24", src_colorspace=Colorspace.ITU709, src_color_range=ColorRange.MPEG, dst_color_range=ColorRange.JPEG,
        interpolation=_SCALING, threads=1,
    ).to_ndarray()  # fmt: skip


def _h264_stream(container: Any, width: int, height: int, rate: Fraction, args: dict[str, str]) -> Any:
    stream = container.add_stream("libx264", rate=rate, options=args)
    stream.width, stream.height, stream.pix_fmt = width, height, PIX_FMT
    context = stream.codec_context
    context.thread_count, context.time_base, context.max_b_frames = 1, 1 / rate, 0
    context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream
