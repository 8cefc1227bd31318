"""The primitive under every strategy: denoise this window, given these clean frames.

Shapes: T frames of the window, V views, C latent channels, h w latent pixels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dwm.conditioning.appearance import Appearance
from dwm.conditioning.build import Given, ScenarioConditioner, Window
from dwm.flow.correcting import renoise_anchors
from dwm.flow.sampler import Start, denoise
from dwm.flow.schedule import ScheduleConfig
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


def window_generator(seed: int, frames: Sequence[int]) -> torch.Generator:
    """The noise of a window depends on the clip's seed and the frames alone, so a roll-out can go on anywhere."""
    state = np.random.SeedSequence((seed, *frames)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoised:
    """A window's frames, made or given, as latents, with the pictures they were made from."""

    latents_TVCHW: Tensor
    window: Window


@torch.inference_mode()
def decoded(session: Session, made: Denoised, part: slice) -> Tensor:
    """Images [N, V, 3, H, W] of a part of a window."""
    images = session.world.decode(made.latents_TVCHW[part])
    shown, known = made.window.shown_TVCHW, made.window.known_TVCHW
    if not session.config.detail or shown is None or known is None:
        return images
    codec, pairs = session.world.codec, zip(images, shown[part], known[part], strict=True)
    return torch.stack([with_detail(frame, of, share, codec) for frame, of, share in pairs])


def advance(session: Session, frames: Sequence[int], latents: Tensor, images: Tensor, source: Given) -> list[Given]:
    """New frames [N, V, C, h, w] as they can be given to a later window, made with ``source`` as the memory's."""
    return [
        Given(
            frame=f, latents_VCHW=z, images_V3HW=x,
            sharpness_VHW=session.conditioner.sharpness(source, f, log=session.config.memory == "log"),
        )
        for f, z, x in zip(frames, latents, images, strict=True)
    ]  # fmt: skip


@torch.inference_mode()
def denoise_window(
    session: Session, frames: Sequence[int], *, fps: float, given: Sequence[Given], anchors: Mapping[int, Tensor]
) -> Denoised:
    """Latents of ``frames``. ``given`` frames come back untouched, the last of them is the memory's source.

    ``anchors`` maps frames to predicted latents that are corrected together with the rest (MiLA section 3.3).
    """
    world, config = session.world, session.config
    known = {g.frame: g.latents_VCHW for g in given}
    shape = (1, len(frames), *given[-1].latents_VCHW.shape)
    generator = window_generator(session.seed, frames)
    noise = torch.randn(shape, generator=generator).to(world.device)
    clean, mask = torch.zeros_like(noise), torch.zeros(1, len(frames), dtype=torch.bool, device=world.device)
    levels, rough = torch.zeros(1, len(frames), device=world.device), noise.clone()
    for i, frame in enumerate(frames):
        if frame in known:
            clean[0, i], mask[0, i] = known[frame], True
        elif frame in anchors:
            levels[0, i] = 1 - config.anchor_noise
            rough[0, i] = renoise_anchors(anchors[frame], noise[0, i], alpha_1=config.anchor_error, total=config.anchor_noise)
    window = session.conditioner.window(
        frames, fps=fps, codec=world.codec, layout=config.layout, appearance=session.appearance,
        source=None if config.memory == "none" else given[-1], log=config.memory == "log",
    )  # fmt: skip
    latents = denoise(
        world.denoiser, noise, clean, mask, window.condition, config.steps, config.guidance,
        ScheduleConfig(progressive_omega=config.progressive_omega),
        start=Start(latents_BTVCHW=rough, levels_BT=levels) if anchors else None,
    )[0]  # fmt: skip
    return Denoised(latents_TVCHW=latents, window=window)
