"""One window of a video as a training clip: true latents, and everything that a world model is told about them.

Shapes: T frames, V views, C latent channels, h w latent pixels, H W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from dwm.codec.interface import Codec
from dwm.codec.load import load_codec
from dwm.conditioning.appearance import Appearance
from dwm.conditioning.build import Given, ScenarioConditioner, camera_features
from dwm.conditioning.things import Things
from dwm.device import pick_device
from dwm.models.text_encoder import TextEncoder, load_text_encoder
from dwm.processes import one_thread_pool
from dwm.training.config import ClipsConfig, LogClipsConfig

Config = TypeVar("Config", ClipsConfig, LogClipsConfig)
Encode = Callable[[Config, Codec, bool, int, TextEncoder | None], Path]  # settings, codec, progress, part, text encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipWindow:
    """Which frames of a video a clip shows."""

    fps: int
    frames: list[int]
    given: int  # leading frames that are given
    look: int  # the frame that appearance is taken from


def encode_window(
    conditioner: ScenarioConditioner, codec: Codec, things: Things, window: ClipWindow, images: Mapping[int, Tensor],
    latents: Mapping[int, Tensor], log: bool = False,
) -> dict[str, Tensor | float | int]:  # fmt: skip
    """The clip of a window of true frames: ``images`` [V, 3, H, W] in [-1, 1] and ``latents`` [V, C, h, w] by frame.

    The memory is the last given frame as the codec gives it back, which is what a roll-out carries along.
    """
    last = window.frames[window.given - 1]
    source = Given(frame=last, latents_VCHW=latents[last], images_V3HW=codec.decode(latents[last]))
    look = conditioner.appearance(window.look, images[window.look], things)
    video = torch.stack([latents[frame] for frame in window.frames])
    return tell_window(conditioner, codec, video, window.frames, window.fps, source, window.given, look, log=log)


def tell_window(
    conditioner: ScenarioConditioner, codec: Codec, latents_TVCHW: Tensor, frames: list[int], fps: int, source: Given,
    given: int, appearance: Appearance, log: bool = False,
) -> dict[str, Tensor | float | int]:  # fmt: skip
    """One training clip as tensors: true latents of ``frames``, and what the model is told about them.

    The memory is ``source``, the last of the ``given`` leading frames, carried along, with ``log`` helped by the conditioner's
    points.
    """
    window = conditioner.window(frames, fps=fps, codec=codec, sources=[source], appearance=appearance, log=log)
    condition = window.condition
    dense = {
        "memory": condition.memory_BTVCHW, "memory_valid": condition.memory_valid_BTV1HW,
        "appearance": condition.appearance_BTVCHW, "appearance_known": condition.appearance_known_BTV1HW,
        "layout": condition.layout_BTVCHW,
    }  # fmt: skip
    shares = ("memory_valid", "appearance_known")
    return {
        "latents": latents_TVCHW.half().cpu(),
        **{name: _small(tensor[0], share=name in shares) for name, tensor in dense.items() if tensor is not None},
        "waypoints": condition.waypoints_BTK[0].cpu(),
        "times": condition.times_BT[0].cpu(),
        "fps": float(fps),
        "given": given,
        "text": condition.text_BL[0].cpu(),
        **({} if condition.text_features_BLK is None else {"text_features": condition.text_features_BLK[0].half().cpu()}),
        "cameras": camera_features(conditioner.cameras),
    }


def _small(tensor: Tensor, *, share: bool) -> Tensor:
    """Half the bytes; a share in [0, 1] as one byte."""
    return (tensor * 255).round().to(torch.uint8).cpu() if share else tensor.half().cpu()


def save_clip(clip: dict[str, Tensor | float | int], path: Path) -> None:
    """Write a clip, all of it or nothing."""
    temporary = path.with_suffix(".part")
    torch.save(clip, temporary)
    os.replace(temporary, path)


def encode(config: Config, work: Encode, progress: bool) -> Path:
    """Do the ``work`` of a target with the codec and text encoder it names, in ``config.processes``; returns its folder.

    What the first process to fail raises is raised here.
    """
    if config.processes == 1:
        return _encode_part(config, work, progress, 0)
    with one_thread_pool(config.processes) as pool:
        parts = [pool.submit(_encode_part, config, work, progress, part) for part in range(config.processes)]
        for part in parts:
            part.result()
    return Path(config.out)


def _encode_part(config: Config, work: Encode, progress: bool, part: int) -> Path:
    device = pick_device(config.device)
    text = load_text_encoder(config.text_encoder).to(device) if config.text_encoder else None
    return work(config, load_codec(config.codec_weights).to(device), progress, part, text)
