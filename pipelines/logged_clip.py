"""The log's own images as a short clip: what a detector's score on a generated clip is held against without a true video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from dwm.scenes.clips import read_image, resize
from dwm.scenes.types import CAMERAS, CameraFrame

Images = NDArray[np.uint8]
_AT_MOST = 8  # key frames: enough boxes for a share, little beside the scores of the clip
_TOLERANCE_US = 60_000  # an image further from its key frame shows another moment


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedClip:
    """The unperturbed scenario over the log, and its images at some key frames."""

    scenario: Scenario
    frames: tuple[int, ...]  # successive key frames of the scenario
    images: Images  # [len(frames), V, H, W, 3]


def logged_clip(scenario: Scenario, image_hw: tuple[int, int]) -> LoggedClip | None:
    """The first key frames from the start of a clip whose six images are on disk; None when there is not even one."""
    seconds = float(scenario.timestamps_us[0] - scenario.scene.key_timestamps_us[0]) * 1e-6
    duration_s = min(_AT_MOST / 2, max(scenario.log_end_index, 1) / scenario.fps)
    log = build_scenario(scenario.scene, BASELINE, scenario.seed, duration_s=duration_s, fps=scenario.fps, start_s=seconds)
    if not isinstance(log, Scenario):
        return None
    frames, images = [], []
    for frame in np.flatnonzero(log.is_key_frame[: log.log_end_index]).tolist():
        paths = [_nearest(log.scene.frames[channel], int(log.timestamps_us[frame])) for channel in CAMERAS]
        if None in paths:
            break
        frames.append(frame)
        images.append([resize(read_image(path), image_hw) for path in paths if path])
    return LoggedClip(scenario=log, frames=tuple(frames), images=np.array(images, np.uint8)) if frames else None


def _nearest(frames: tuple[CameraFrame, ...], timestamp_us: int) -> Path | None:
    """The image on disk closest to a time, unless it shows another moment."""
    near = [f for f in frames if abs(f.timestamp_us - timestamp_us) <= _TOLERANCE_US]
    return next((f.path for f in sorted(near, key=lambda f: abs(f.timestamp_us - timestamp_us)) if f.path.is_file()), None)
