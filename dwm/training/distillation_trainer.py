"""Training a coarse world model under a frozen fine one.

Shapes: B batch, T frames, V views, C channels, h w latent pixels.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dwm.errors import InputError
from dwm.flow.rectified import flow_loss, interpolate
from dwm.models.weights import load_model, weights_sha256
from dwm.training.clips import ClipBatch, ClipSource, collate
from dwm.training.config import TrainConfig
from dwm.training.distillation import distillation_losses, teacher_target, total_loss
from dwm.training.long_clips import cut, cut_clips
from dwm.training.world_trainer import Draw, WorldTask, condition_of, draw


@dataclass(frozen=True, slots=True, kw_only=True)
class LongBatch:
    """Long clips, cut."""

    coarse: ClipBatch
    windows: tuple[ClipBatch, ...]  # as stored, on the CPU, until the teacher gets to them

    def to(self, device: torch.device) -> LongBatch:
        """The coarse clips on a device."""
        return replace(self, coarse=self.coarse.to(device))


class DistillationTask(WorldTask):
    """Trains the coarse model on long clips; held-out figures are those of its coarse clips."""

    def __init__(self, config: TrainConfig, clips: ClipSource) -> None:
        """Raises InputError without a teacher, for one that does not fit, and with an adversary, which has no part in this."""
        world = config.world
        if world.adversary:
            raise InputError("world.adversary", f"is {world.adversary} in a distillation", "set it to 0")
        if not world.distillation.teacher_weights:
            raise InputError("world.distillation.teacher_weights", "no teacher", "give the weights of a fine world model")
        super().__init__(config, cut_clips(clips, "coarse", world.key_frames))
        self.long_clips, self._teacher_path = clips, Path(world.distillation.teacher_weights)
        self.teacher, theirs = load_model(self._teacher_path, "multi_view_dit")
        for field in ("latent_channels", "layout_channels"):
            found, needed = getattr(theirs, field), getattr(world.model, field)
            if found != needed:
                raise InputError(
                    self._teacher_path, f"{field} is {found}, the student's {needed}", "train both on clips of one codec"
                )
        # One noise level for all frames, and the first one clean: the rest of what training draws is not for this.
        self._drawing = replace(
            world, anchor_share=0.0, dirty_condition_share=0.0, progressive_share=0.0, independent_share=0.0
        )

    @property
    def fingerprint(self) -> str:
        settings = {**asdict(self.config.world.distillation), "teacher_weights": weights_sha256(self._teacher_path)}
        key_frames = asdict(self.config.world.key_frames)
        return json.dumps({**json.loads(super().fingerprint), "distillation": {**settings, **key_frames}}, sort_keys=True)

    @property
    def metadata(self) -> dict[str, str]:
        return {**super().metadata, "teacher_sha256": weights_sha256(self._teacher_path)}

    def prepare(self, device: torch.device) -> None:
        """Nothing: the student's linear shortcut is part of its weights."""

    def load(self, indices: list[int], generator: np.random.Generator) -> Any:
        clips, key_frames = [self.long_clips.get(index, generator) for index in indices], self.config.world.key_frames
        return LongBatch(
            coarse=collate([cut(clip, key_frames.coarse) for clip in clips]),
            windows=tuple(collate([cut(clip, key_frames.window(i)) for clip in clips]) for i in range(key_frames.gaps)),
        )

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The three losses and their sum; student and teacher see the same level, noise and switched-off inputs."""
        coarse, world = batch.coarse, self.config.world
        clean = coarse.latents_BTVCHW
        frames = 1 + max(world.key_frames.gaps, world.key_frames.stride)  # each takes as many of them as it has
        drawn = draw(generator, coarse.given_B, frames, self._drawing)
        noise = torch.randn(len(clean), frames, *clean.shape[2:], generator=generator).to(clean.device)
        windows = (window.to(clean.device) for window in batch.windows)
        teacher = self.teacher.to(clean.device)
        target = teacher_target(lambda window: _denoised(teacher, window, drawn, noise), windows)
        predicted = _denoised(model, coarse, drawn, noise)
        levels = drawn.levels_BT[:, : clean.shape[1]].to(clean.device)
        losses = distillation_losses(predicted, target, clean, levels, world.noise)
        figures = {f"{name}_loss": loss.detach() for name, loss in losses.items()}
        clean_error = flow_loss(predicted.detach(), clean, levels, 1.0)
        return total_loss(losses, world.distillation), {**figures, "clean_error": clean_error}


def _denoised(model: Any, batch: ClipBatch, drawn: Draw, noise_BTVCHW: Tensor) -> Tensor:
    """Clean latents [B, T, V, C, h, w] as a model predicts them, with the leading frames of the noise and its levels."""
    clean = batch.latents_BTVCHW
    levels = drawn.levels_BT[:, : clean.shape[1]].to(clean.device)
    seen = interpolate(clean, noise_BTVCHW[:, : clean.shape[1]], levels)
    return model(seen, levels, condition_of(batch, drawn)).float()
