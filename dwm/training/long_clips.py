"""One long clip as LongDWM's models see it: its key frames as a coarse clip, every gap between two as a dense window. And as MiLA's does:
windows of successive frames at several rates.

Shapes: T frames, K a vector.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from dwm.errors import InputError
from dwm.training.clips import ClipSource, TrainingClip

CUTS = ("whole", "coarse", "dense", "rates")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFrames:
    """Which frames of a long clip are key frames: 0, stride, 2 stride, ... gaps * stride."""

    gaps: int = 12  # between key frames; N of LongDWM's 12 N + 1 frames
    stride: int = 12  # frames from one key frame to the next

    def __post_init__(self) -> None:
        if min(self.gaps, self.stride) < 1:
            raise InputError("world.key_frames", f"{self.gaps} gaps of {self.stride} frames", "give at least 1 of each")

    @property
    def frames(self) -> int:
        """Of the long clip."""
        return self.gaps * self.stride + 1

    @property
    def coarse(self) -> range:
        """The key frames."""
        return range(0, self.frames, self.stride)

    def window(self, gap: int) -> range:
        """All frames from one key frame to the next, both included."""
        return range(gap * self.stride, (gap + 1) * self.stride + 1)


def cut(clip: TrainingClip, frames: range) -> TrainingClip:
    """Some frames of a clip as a clip of its own, whose first frame is given; tensors share memory where they can.

    Times and waypoints count from its own first frame. The memory stays the long clip's: carried from where that began.
    Raises InputError for a clip that is too short.
    """
    total = len(clip.latents_TVCHW)
    if frames[-1] >= total:
        raise InputError(
            "data", f"a clip has {total} frames, {frames[-1] + 1} are needed",
            "give as many to drives.frames_12hz and clips.window_frames, or lower world.key_frames",
        )  # fmt: skip
    kept = slice(frames.start, frames.stop, frames.step)
    parts = {f.name: getattr(clip, f.name)[kept] for f in fields(clip) if "_T" in f.name}
    parts["waypoints_TK"] = rebased(parts["waypoints_TK"])
    parts["times_T"] = parts["times_T"] - parts["times_T"][0]
    return replace(clip, **parts, fps=clip.fps / frames.step, given=1)


def rebased(waypoints_TK: Tensor) -> Tensor:
    """Waypoints [T, 6] relative to the first of them (see ``dwm.models.conditioning.WAYPOINT_SIZE``), exact on flat ground.

    Places and headings turn with the new origin; speed and yaw rate belong to the path and stay.
    """
    x, y, sin, cos, *motion = waypoints_TK.unbind(-1)
    dx, dy, sin_0, cos_0 = x - x[0], y - y[0], sin[0], cos[0]
    place = (cos_0 * dx + sin_0 * dy, cos_0 * dy - sin_0 * dx)
    return torch.stack([*place, sin * cos_0 - cos * sin_0, cos * cos_0 + sin * sin_0, *motion], dim=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CutClips:
    """Long clips as what one of the models learns from."""

    clips: ClipSource
    key_frames: KeyFrames
    dense: bool  # a window of each clip, drawn; else its key frames

    def __len__(self) -> int:
        return len(self.clips)

    def get(self, index: int, generator: np.random.Generator) -> TrainingClip:
        clip = self.clips.get(index, generator)
        if not self.dense:
            return cut(clip, self.key_frames.coarse)
        return cut(clip, self.key_frames.window(int(generator.integers(self.key_frames.gaps))))


@dataclass(frozen=True, slots=True, kw_only=True)
class RateWindows:
    """Windows of successive frames at a rate drawn for each (MiLA, supplement B), from wherever in a long clip.

    A clip of no more frames than a window comes whole: the two kinds may be mixed.
    """

    clips: ClipSource
    rates_hz: tuple[int, ...]
    frames: int  # of a window, or as many as a clip has at the rate

    def __post_init__(self) -> None:
        if not self.rates_hz or min(self.rates_hz) < 1 or self.frames < 2:
            problem = f"rates of {list(self.rates_hz)} Hz, windows of {self.frames} frames"
            raise InputError("world.cut", problem, "give rates of at least 1 Hz and windows of at least 2 frames")

    def __len__(self) -> int:
        return len(self.clips)

    def get(self, index: int, generator: np.random.Generator) -> TrainingClip:
        clip = self.clips.get(index, generator)
        total = len(clip.latents_TVCHW)
        if total <= self.frames:
            return clip
        stride = max(1, round(clip.fps / int(generator.choice(self.rates_hz))))
        length = min(self.frames, (total - 1) // stride + 1)
        start = int(generator.integers(total - (length - 1) * stride))
        return cut(clip, range(start, start + (length - 1) * stride + 1, stride))


def cut_clips(
    clips: ClipSource, how: str, key_frames: KeyFrames, rates_hz: tuple[int, ...] = (12, 2, 1), window_frames: int = 16
) -> ClipSource:
    """Clips "whole", their "coarse" key frames, one "dense" window of each, or one at one of the "rates".

    Raises InputError for anything else.
    """
    if how not in CUTS:
        raise InputError("world.cut", f"'{how}' is unknown", f"choose one of {', '.join(CUTS)}")
    if how == "rates":
        return RateWindows(clips=clips, rates_hz=rates_hz, frames=window_frames)
    return clips if how == "whole" else CutClips(clips=clips, key_frames=key_frames, dense=how == "dense")
