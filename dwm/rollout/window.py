"""The primitive under every strategy: denoise these windows, given these clean frames.

Shapes: N windows, T frames of a window, V views, C latent channels, h w latent pixels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dwm.conditioning.appearance import Appearance
from dwm.conditioning.build import Given, ScenarioConditioner, Window, nearest
from dwm.device import half_precision
from dwm.flow.correcting import renoise_anchors
from dwm.flow.sampler import Denoiser, Start, denoise
from dwm.flow.schedule import ScheduleConfig
from dwm.models.conditioning import joined
from dwm.rollout.config import RolloutConfig
from dwm.rollout.detail import with_detail
from dwm.rollout.world_model import WorldModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What stays the same from the first window of a roll-out to the last."""

    world: WorldModel
    conditioner: ScenarioConditioner
    appearance: Appearance | None  # of the true first frame
    config: RolloutConfig
    seed: int

    @property
    def total(self) -> int:
        """Frames of the video."""
        return len(self.conditioner.scenario.timestamps_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A window to be made."""

    frames: list[int]
    fps: float
    given: list[Given]  # clean; some lead, one may stand at the end
    anchors: Mapping[int, Tensor] = field(default_factory=dict)  # predicted latents [V, C, h, w] that are corrected (MiLA 3.3)

    @property
    def sources(self) -> tuple[Given, ...]:
        """The given frames that memory comes from: the last of those that lead, and the one at the end."""
        leading = [g for g, frame in zip(self.given, self.frames, strict=False) if g.frame == frame]
        return (leading[-1], *self.given[len(leading) :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoised:
    """A window's frames, made or given, as latents, with the pictures they were made from."""

    ask: Ask
    latents_TVCHW: Tensor
    window: Window


def window_generator(seed: int, frames: Sequence[int]) -> torch.Generator:
    """The noise of a window depends on the clip's seed and the frames alone, so a roll-out can go on anywhere."""
    state = np.random.SeedSequence((seed, *frames)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


@torch.inference_mode()
def decoded(session: Session, made: Denoised, part: slice) -> Tensor:
    """Images [T', V, 3, H, W] of a part of a window."""
    images = session.world.decode(made.latents_TVCHW[part])
    shown, known = made.window.shown_TVCHW, made.window.known_TVCHW
    if not session.config.detail or shown is None or known is None:
        return images
    codec, pairs = session.world.codec, zip(images, shown[part], known[part], strict=True)
    return torch.stack([with_detail(frame, of, share, codec) for frame, of, share in pairs])


def as_given(session: Session, made: Denoised, part: slice, images: Tensor) -> list[Given]:
    """New frames of a window, with their ``images`` [T', V, 3, H, W], as they can be given to a later one."""
    log = session.config.memory == "log"
    return [
        Given(
            frame=f, latents_VCHW=z, images_V3HW=x,
            sharpness_VHW=session.conditioner.sharpness(nearest(made.ask.sources, f), f, log=log),
        )
        for f, z, x in zip(made.ask.frames[part], made.latents_TVCHW[part], images, strict=True)
    ]  # fmt: skip


def denoise_window(session: Session, ask: Ask) -> Denoised:
    """One window; its given frames come back untouched."""
    return denoise_windows(session, [ask])[0]


@torch.inference_mode()
def denoise_windows(session: Session, asks: Sequence[Ask], *, fine: bool = False) -> list[Denoised]:
    """Windows of equal length side by side in one batch; ``fine``: by the model for the frames between key frames."""
    world, config = session.world, session.config
    starts = [_start(session, ask) for ask in asks]
    windows = [
        session.conditioner.window(
            ask.frames, fps=ask.fps, codec=world.codec, layout=config.layout, appearance=session.appearance,
            sources=() if config.memory == "none" else ask.sources, log=config.memory == "log",
        )
        for ask in asks
    ]  # fmt: skip
    noise, clean, rough, mask, levels = (torch.stack(tensors) for tensors in zip(*starts, strict=True))
    model: Denoiser = world.fine if fine and world.fine is not None else world.denoiser
    with half_precision(config.precision, world.device, on_cpu=False):
        latents = denoise(
            model, noise, clean, mask, joined([window.condition for window in windows]), config.steps, config.guidance,
            ScheduleConfig(progressive_omega=config.progressive_omega),
            start=Start(latents_BTVCHW=rough, levels_BT=levels) if any(ask.anchors for ask in asks) else None,
        )  # fmt: skip
    return [Denoised(ask=a, latents_TVCHW=z, window=w) for a, z, w in zip(asks, latents, windows, strict=True)]


def _start(session: Session, ask: Ask) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of a window: noise, given latents, anchors as they are corrected [T, V, C, h, w]; which frames are given, levels [T]."""
    config, device, frames = session.config, session.world.device, ask.frames
    known = {g.frame: g.latents_VCHW for g in ask.given}
    shape = (len(frames), *ask.given[0].latents_VCHW.shape)
    noise = torch.randn((1, *shape), generator=window_generator(session.seed, frames))[0].to(device)
    clean, rough = torch.zeros_like(noise), noise.clone()
    mask, levels = torch.zeros(len(frames), dtype=torch.bool, device=device), torch.zeros(len(frames), device=device)
    for i, frame in enumerate(frames):
        if frame in known:
            clean[i], mask[i] = known[frame], True
        elif frame in ask.anchors:
            levels[i] = 1 - config.anchor_noise
            rough[i] = renoise_anchors(ask.anchors[frame], noise[i], alpha_1=config.anchor_error, total=config.anchor_noise)
    return noise, clean, rough, mask, levels
