"""What the log shows, camera by camera: what generated video is held against for novelty."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dwm.scenes.clips import read_image, resize
from dwm.scenes.types import CAMERAS, Scene
from evaluators.novelty import THUMBNAIL_HW, LoggedCamera, thumbnail


def logged_looks(scene: Scene, image_hw: tuple[int, int]) -> tuple[LoggedCamera, ...] | None:
    """All images on disk, sweeps too, in ring order; None where a camera has none."""
    paths = [tuple(frame.path for frame in scene.frames[channel] if frame.path.is_file()) for channel in CAMERAS]
    return tuple(_camera(own, image_hw) for own in paths) if all(paths) else None


# Clips of one scene follow each other.
@lru_cache(maxsize=len(CAMERAS))
def _camera(paths: tuple[Path, ...], image_hw: tuple[int, int]) -> LoggedCamera:
    return LoggedCamera(
        thumbnails=np.stack([_thumbnail(path) for path in paths]),
        read=lambda number: resize(read_image(paths[number]), image_hw),
    )


def _thumbnail(path: Path) -> NDArray[np.float32]:
    with Image.open(path) as image:
        height, width = THUMBNAIL_HW
        image.draft("L", (2 * width, 2 * height))  # a JPEG is decoded at a fraction of its size
        return thumbnail(np.asarray(image.convert("L"), np.float32))
