"""Pixels from disk: logged images and encoded video, as uint8 RGB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dwm.errors import InputError
from dwm.scenes.types import Scene

Images = NDArray[np.uint8]


def read_images(scene: Scene, channel: str, indices: Sequence[int], size_hw: tuple[int, int] | None = None) -> Images:
    """Images [N, H, W, 3] of ``scene.frames[channel]`` at the given indices, resized by area when ``size_hw`` is given.

    Raises:
        InputError: the channel or an index does not exist, or an image is missing, truncated or not an image.
    """
    if channel not in scene.frames:
        raise InputError(scene.name, f"no channel '{channel}'", f"channels: {', '.join(scene.frames)}")
    frames = scene.frames[channel]
    wrong = [i for i in indices if not 0 <= i < len(frames)]
    if wrong:
        raise InputError(scene.name, f"{channel} has no frame {wrong[0]}", f"indices go from 0 to {len(frames) - 1}")
    camera = next(c for c in scene.cameras if c.channel == channel)
    height, width = size_hw or (camera.height_px, camera.width_px)
    out = np.empty((len(indices), height, width, 3), np.uint8)
    for n, i in enumerate(indices):
        out[n] = resize(read_image(frames[i].path), (height, width))
    return out


def read_image(path: Path) -> Images:
    """One image [H, W, 3]."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise InputError(path, "the image is missing", "unpack the image archives, or choose frames that exist") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(path, f"cannot decode the image ({error})", "restore the truncated file") from error


def resize(image: Images, size_hw: tuple[int, int]) -> Images:
    """An image [H, W, 3] at another size: area average when it shrinks, bilinear when it grows."""
    height, width = size_hw
    if image.shape[:2] == (height, width):
        return image
    shrinks = _shrinks((image.shape[0], image.shape[1]), size_hw)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)  # type: ignore[return-value]


def named_resize(from_hw: tuple[int, int], to_hw: tuple[int, int]) -> str:
    """What ``resize`` does between two sizes, in words: "none", "area 360x640 to 128x224", "bilinear ..."."""
    if from_hw == to_hw:
        return "none"
    how = "area" if _shrinks(from_hw, to_hw) else "bilinear"
    return f"{how} {from_hw[0]}x{from_hw[1]} to {to_hw[0]}x{to_hw[1]}"


def _shrinks(from_hw: tuple[int, int], to_hw: tuple[int, int]) -> bool:
    return to_hw[0] <= from_hw[0] and to_hw[1] <= from_hw[1]


def read_video_frames(path: Path, indices: Sequence[int]) -> Images:
    """Decoded frames [N, H, W, 3] of a video at the given indices, in the order asked.

    Uses decord, and PyAV where decord has no wheel. Raises InputError for missing or unreadable files and indices.
    """
    if not Path(path).is_file():
        raise InputError(path, "no such video", "check the path, or run the generation again")
    try:
        import decord
    except ImportError:
        return _read_with_av(Path(path), indices)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        count = len(reader)
    except (decord.DECORDError, RuntimeError) as error:
        raise InputError(path, f"cannot decode the video ({_first_line(error)})", "write the file again") from error
    _check_indices(Path(path), indices, count)
    if not len(indices):
        return np.empty((0, *reader[0].shape), np.uint8)
    try:
        return reader.get_batch(list(indices)).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        raise InputError(path, f"cannot decode the video ({_first_line(error)})", "write the file again") from error


def _read_with_av(path: Path, indices: Sequence[int]) -> Images:
    import av

    wanted, found, count, shape = set(indices), {}, 0, (0, 0, 3)
    try:
        with av.open(str(path)) as container:
            for count, frame in enumerate(container.decode(video=0), start=1):
                shape = (frame.height, frame.width, 3)
                if count - 1 in wanted:
                    found[count - 1] = frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, IndexError) as error:
        raise InputError(path, f"cannot decode the video ({_first_line(error)})", "write the file again") from error
    _check_indices(path, indices, count)
    return np.stack([found[i] for i in indices]) if len(indices) else np.empty((0, *shape), np.uint8)


def _check_indices(path: Path, indices: Sequence[int], count: int) -> None:
    wrong = [i for i in indices if not 0 <= i < count]
    if wrong:
        raise InputError(path, f"no frame {wrong[0]}", f"the video has {count} frames, from 0 to {count - 1}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
