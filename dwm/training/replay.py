"""Training windows that begin where the model's own roll-outs have got to, with the truth as their target.

A model trained only on true first frames has never seen its own mistakes, and a minute of windows adds them up. Here it
drives itself along unlogged paths for a while; every window's given frame and memory are its own, every target is
rendered. The scheduled sampling of sequence models (Bengio et al. 2015), done between training legs because a roll-out costs
more than a step.

Shapes: V views, C latent channels, h w latent pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dwm.conditioning.build import Given, images_to_tensor
from dwm.rollout.config import RolloutConfig
from dwm.rollout.window import Ask, Session, as_given, decoded, denoise_window
from dwm.rollout.world_model import WorldModel
from dwm.scenario.types import Scenario
from dwm.training.cache import WARMUP_FRAMES, check_towns
from dwm.training.config import ReplayConfig
from dwm.training.encoding import save_clip, tell_window
from dwm.training.sequences import Town, drive, open_town, render_frames

_WINDOW_FRAMES = 8


def replay(config: ReplayConfig, progress: bool = True) -> Path:
    """Roll out every drive that is not there yet and write a clip per window; returns the folder."""
    check_towns(config.first_town, config.towns)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    world = WorldModel.load(
        config.codec_weights,
        Path(config.world_weights),
        Path(config.things) if config.things else None,
        config.device,
        text_encoder=config.text_encoder or None,
    )
    todo = [(t, d) for t in range(config.first_town, config.first_town + config.towns) for d in range(config.drives_per_town)]
    town: Town | None = None
    for town_seed, drive_seed in tqdm(todo, desc="replaying drives", disable=None if progress else True):
        names = [out / f"clip-{town_seed:04d}-{drive_seed:04d}-r{i:02d}.pt" for i in range(config.windows)]
        if all(name.exists() for name in names):
            continue
        if town is None or town.city.seed != town_seed:
            town = open_town(town_seed, world.device)
        scenario, weather = drive(town, drive_seed, duration_s=config.duration_s)
        windows = _windows(world, town, scenario, weather, config, np.random.default_rng((town_seed, drive_seed, 3)))
        for name, clip in zip(names, windows, strict=True):
            save_clip(clip, name)
    return out


@torch.inference_mode()
def _windows(
    world: WorldModel, town: Town, scenario: Scenario, weather: str, config: ReplayConfig, rng: np.random.Generator
) -> Iterator[dict[str, Tensor | float | int]]:
    """The clips of one roll-out, in order; each goes on from the last frame the model made in the one before.

    A clip shows a window's first frame, its last, and some between: what a window costs to render and to learn from. Its
    appearance is a true one of that window (see ``cache``); the roll-out's own is the drive's first frame's.
    """
    hop = RolloutConfig().window_frames - 1
    start = int(rng.integers(WARMUP_FRAMES, len(scenario.timestamps_us) - hop * config.windows))

    def truth(frames: list[int]) -> Tensor:
        return images_to_tensor(render_frames(town, scenario, weather, np.array(frames), world.image_hw), world.device)

    conditioner = world.conditioner(scenario)
    first = truth([start])[0]
    session = Session(
        world=world, conditioner=conditioner, appearance=conditioner.appearance(start, first, world.things),
        config=RolloutConfig(), seed=int(rng.integers(2**31)),
    )  # fmt: skip
    latents = world.codec.encode(first)
    given = Given(frame=start, latents_VCHW=latents, images_V3HW=world.decode(latents[None])[0])
    for _ in range(config.windows):
        between = rng.choice(np.arange(1, hop), _WINDOW_FRAMES - 2, replace=False)
        frames = [given.frame + int(i) for i in (0, *np.sort(between), hop)]
        images = truth(frames[1:])
        latents = torch.stack([given.latents_VCHW, *(world.codec.encode(image) for image in images)])
        shown = int(rng.integers(len(images)))
        look = conditioner.appearance(frames[1 + shown], images[shown], world.things)
        yield tell_window(conditioner, world.codec, latents, frames, round(scenario.fps), given, 1, look)
        made = denoise_window(session, Ask(frames=frames, fps=scenario.fps, given=[given]))
        last = slice(-1, None)
        given = as_given(session, made, last, decoded(session, made, last))[0]
