"""Ways to a long video. Each is a generator of chunks and keeps a few frames in memory, whatever the video's length.

``recurrent`` (Vista): every window starts with the last frames of the one before.
``coarse_to_refine`` (MiLA section 3.2): anchor frames at a low rate first, then windows that end in an anchor and
correct it while filling in; the coarse stage runs ahead by one window at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dwm.conditioning.build import Given, ScenarioConditioner
from dwm.errors import InputError
from dwm.rollout.config import RolloutConfig
from dwm.rollout.window import Denoised, Session, advance, decoded, denoise_window
from dwm.rollout.world_model import WorldModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive new frames."""

    first_frame: int
    images_NV3HW: Tensor  # in [-1, 1], on the world model's device


def roll_out(
    world: WorldModel, conditioner: ScenarioConditioner, first_images_V3HW: Tensor, config: RolloutConfig, seed: int
) -> Iterator[Chunk]:
    """All frames of the conditioner's scenario from 1 on, given frame 0 [V, 3, H, W] in [-1, 1]."""
    strategy = STRATEGIES.get(config.strategy)
    if strategy is None:
        raise InputError("rollout.strategy", f"unknown strategy '{config.strategy}'", f"choose one of {', '.join(STRATEGIES)}")
    if not 0 < config.condition_frames < config.window_frames:
        raise InputError(
            "rollout.condition_frames", f"{config.condition_frames} of a window of {config.window_frames}",
            "keep at least one frame given and one to generate",
        )  # fmt: skip
    with torch.inference_mode():
        images = first_images_V3HW.to(world.device)
        first = Given(frame=0, latents_VCHW=world.codec.encode(images), images_V3HW=images)
        appearance = conditioner.appearance(0, images, world.things) if config.appearance else None
    return strategy(Session(world=world, conditioner=conditioner, appearance=appearance, config=config, seed=seed), first)


def _recurrent(session: Session, first: Given) -> Iterator[Chunk]:
    scenario, config, given = session.conditioner.scenario, session.config, [first]
    total = len(scenario.timestamps_us)
    while given[-1].frame + 1 < total:
        start = given[0].frame
        frames = list(range(start, min(start + config.window_frames, total)))
        made = denoise_window(session, frames, fps=scenario.fps, given=given, anchors={})
        chunk, given = _advance(session, frames, made, given)
        yield chunk


def _coarse_to_refine(session: Session, first: Given) -> Iterator[Chunk]:
    scenario, given = session.conditioner.scenario, [first]
    total, stride = len(scenario.timestamps_us), max(1, round(scenario.fps / session.config.anchor_fps))
    anchors = _anchors(session, first, stride)
    while given[-1].frame + 1 < total:
        now = given[-1].frame
        end = min(now + stride, total - 1)
        frames = [g.frame for g in given] + list(range(now + 1, end + 1))
        anchor = dict([next(anchors)]) if end == now + stride else {}
        made = denoise_window(session, frames, fps=scenario.fps, given=given, anchors=anchor)
        chunk, given = _advance(session, frames, made, given)
        yield chunk


def _anchors(session: Session, first: Given, stride: int) -> Iterator[tuple[int, Tensor]]:
    """Predicted anchor frames in order, each with its latents [V, C, h, w]; window after window as they are asked for."""
    scenario, given = session.conditioner.scenario, first
    total, fps = len(scenario.timestamps_us), scenario.fps / stride
    while given.frame + stride < total:
        frames = list(range(given.frame, total, stride))[: session.config.window_frames]
        made = denoise_window(session, frames, fps=fps, given=[given], anchors={})
        yield from zip(frames[1:], made.latents_TVCHW[1:], strict=True)
        last = slice(-1, None)
        given = advance(session, frames[last], made.latents_TVCHW[last], decoded(session, made, last), given)[0]


def _advance(session: Session, frames: list[int], made: Denoised, given: list[Given]) -> tuple[Chunk, list[Given]]:
    """The window's new frames as images, and what the next window is given."""
    fresh = len(given)
    images = decoded(session, made, slice(fresh, None))
    kept = slice(-min(session.config.condition_frames, len(images)), None)
    new = advance(session, frames[fresh:][kept], made.latents_TVCHW[fresh:][kept], images[kept], given[-1])
    return Chunk(first_frame=frames[fresh], images_NV3HW=images), [*given, *new][-session.config.condition_frames :]


Strategy = Callable[[Session, Given], Iterator[Chunk]]
STRATEGIES: dict[str, Strategy] = {"recurrent": _recurrent, "coarse_to_refine": _coarse_to_refine}
