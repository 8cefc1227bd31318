"""LongDWM's cross-granularity distillation: what a fine model sees between key frames teaches a coarse one where they lead.

Equations and defaults: the authors' training code for arXiv 2506.01546 (the "explicit L2" version); see docs/methods.md.

Shapes: B batch, T frames, V views, C channels, h w latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dwm.flow.rectified import NoiseConfig, flow_loss
from dwm.training.clips import ClipBatch

_LOW = 0.2  # squared radius of the frequencies that are cut away, the highest along one axis being 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationConfig:
    """Who teaches the coarse model, and what counts how much."""

    teacher_weights: str = ""  # safetensors of a fine model: world.cut "dense", one given frame
    distill_weight: float = 1.0  # of the distance to the teacher
    flow_weight: float = 1.0  # of the distance to the truth
    high_frequency_weight: float = 0.5  # of the distance to the truth in fine detail


def high_pass(latents_BTVCHW: Tensor) -> Tensor:
    """Latents without the frequencies of (2 h / H - 1)^2 + (2 w / W - 1)^2 <= 0.2, zero frequency in the middle."""
    height, width = latents_BTVCHW.shape[-2:]
    v, u = (2 * torch.arange(size, device=latents_BTVCHW.device) / size - 1 for size in (height, width))
    kept = torch.fft.ifftshift(v[:, None].square() + u.square() > _LOW)
    return torch.fft.ifft2(torch.fft.fft2(latents_BTVCHW) * kept).real


@torch.no_grad()
def teacher_target(denoised: Callable[[ClipBatch], Tensor], windows: Iterable[ClipBatch]) -> Tensor:
    """What the teacher makes of the key frames [B, T, V, C, h, w]: the last frame of each window, and the very first.

    ``denoised`` gives its prediction of one window; windows are asked for one at a time.
    """
    frames: list[Tensor] = []
    for window in windows:
        predicted = denoised(window)
        if not frames:
            frames.append(predicted[:, 0])
        frames.append(predicted[:, -1])
    return torch.stack(frames, dim=1)


def distillation_losses(
    predicted_BTVCHW: Tensor, target_BTVCHW: Tensor, clean_BTVCHW: Tensor, levels_BT: Tensor, weighing: NoiseConfig
) -> dict[str, Tensor]:
    """Distances of the student's clean latents to the teacher's, to the truth, and to the truth in fine detail.

    Each is weighed as ``flow_loss`` does: LongDWM's 1 / (1 - alphabar_t) on the clean error is the error of its v-prediction, as
    1 / (1 - t)^2 is that of our velocity.
    """

    def distance(to: Tensor, of: Tensor = predicted_BTVCHW) -> Tensor:
        return flow_loss(of, to, levels_BT, weighing.weight_cap, weighing.robust)

    return {
        "distill": distance(target_BTVCHW),
        "flow": distance(clean_BTVCHW),
        "high_frequency": distance(high_pass(clean_BTVCHW), high_pass(predicted_BTVCHW)),
    }


def total_loss(losses: dict[str, Tensor], config: DistillationConfig) -> Tensor:
    """L = l_dis L_distill + l_diff L_diff + l_hf L_hf."""
    weights = {
        "distill": config.distill_weight,
        "flow": config.flow_weight,
        "high_frequency": config.high_frequency_weight,
    }
    return torch.stack([weight * losses[name] for name, weight in weights.items()]).sum()
