"""What the world model learns from: clips of cached latents with everything the model is told about them.

Shapes: B batch, T frames, V views, C channels, h w latent pixels, K a vector, L text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingClip:
    """One window of a video. Meanings and units of the vectors: ``dwm.models.conditioning``."""

    latents_TVCHW: Tensor  # float16 or float32
    memory_TVCHW: Tensor  # float16 or float32
    memory_valid_TV1HW: Tensor  # share in [0, 1] as float, or uint8 of 0-255
    appearance_TVCHW: Tensor  # float16 or float32
    appearance_known_TV1HW: Tensor  # share in [0, 1] as float, or uint8 of 0-255
    layout_TVCHW: Tensor  # [0, 1] as float, or uint8 of 0-255
    waypoints_TK: Tensor
    cameras_VK: Tensor
    times_T: Tensor  # seconds since the first frame
    fps: float
    text_L: Tensor  # int64
    given: int  # leading frames that are given, the last of which the memory was taken from
    text_features_LK: Tensor | None = None  # of an outside encoder; None: the model has words of its own

    def thinned(self, frames: int, generator: np.random.Generator) -> TrainingClip:
        """The given frames and some of the others, in order, ``frames`` in all: neighbours at 12 Hz hardly differ."""
        total = len(self.latents_TVCHW)
        if frames >= total:
            return self
        others = np.sort(generator.choice(np.arange(self.given, total), frames - self.given, replace=False))
        kept = torch.from_numpy(np.concatenate([np.arange(self.given), others]))
        per_frame = [f.name for f in fields(self) if "_T" in f.name]
        return replace(self, **{name: getattr(self, name)[kept] for name in per_frame})

    def giving(self, frames: int) -> TrainingClip:
        """The same clip with that many leading frames given, and no memory of a frame that is then not given."""
        memory = self.memory_valid_TV1HW if frames >= self.given else torch.zeros_like(self.memory_valid_TV1HW)
        return replace(self, given=frames, memory_valid_TV1HW=memory)


class ClipSource(Protocol):
    """Where clips come from (e.g. ``dwm.training.cache.ClipCache``)."""

    def __len__(self) -> int: ...

    def get(self, index: int, generator: np.random.Generator) -> TrainingClip:
        """Clip ``index``; a source may draw the window or the frame rate from the generator."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedClips:
    """Several sources, each as often as the others: smaller ones come round more than once. The first one's clips are the last."""

    first: ClipSource
    others: tuple[ClipSource, ...]

    def __len__(self) -> int:
        return len(self.first) * (1 + len(self.others))

    def get(self, index: int, generator: np.random.Generator) -> TrainingClip:
        part, clip = divmod(index, len(self.first))
        source = self.others[part] if part < len(self.others) else self.first
        return source.get(clip % len(source), generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipBatch:
    """Clips stacked, as float32 (text int64)."""

    latents_BTVCHW: Tensor
    memory_BTVCHW: Tensor
    memory_valid_BTV1HW: Tensor
    appearance_BTVCHW: Tensor
    appearance_known_BTV1HW: Tensor
    layout_BTVCHW: Tensor
    waypoints_BTK: Tensor
    cameras_BVK: Tensor
    times_BT: Tensor
    fps_B: Tensor
    text_BL: Tensor
    given_B: Tensor
    text_features_BLK: Tensor | None = None

    def to(self, device: torch.device) -> ClipBatch:
        """Move to the device in the stored types, then widen to float32 there."""
        tensors = {f.name: tensor for f in fields(self) if (tensor := getattr(self, f.name)) is not None}
        return ClipBatch(**{name: _widen(tensor.to(device, non_blocking=True)) for name, tensor in tensors.items()})


def collate(clips: list[TrainingClip]) -> ClipBatch:
    """Stack clips of equal shapes; types stay as stored until ``ClipBatch.to``."""
    names = dict(zip((f.name for f in fields(ClipBatch)), (f.name for f in fields(TrainingClip)), strict=True))
    told = {many: one for many, one in names.items() if getattr(clips[0], one) is not None}
    return ClipBatch(**{many: torch.stack([torch.as_tensor(getattr(c, one)) for c in clips]) for many, one in told.items()})


def _widen(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    return tensor.float() if tensor.is_floating_point() else tensor
