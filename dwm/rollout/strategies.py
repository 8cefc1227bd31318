"""Ways to a long video. Each makes one chunk after another, from what the chunk before has left (``State``): memory stays that
of a few windows whatever the video's length, and a roll-out goes on wherever its state was saved.

``recurrent`` (Vista): every window starts with the last frames of the one before.
``coarse_to_refine`` (MiLA section 3.2): anchor frames at a low rate first, then windows that end in an anchor and
correct it while filling in; the anchors go on from their own last one.
``divide_and_conquer`` (NUWA-XL): key frames at a low rate first, then windows between two of them, both given as they are; gaps
longer than a window get key frames of their own.
``hierarchical`` (LongDWM): the same with one level of key frames and a model of its own between them, which fills several
gaps at a time, since no gap depends on another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dwm.conditioning.build import Given, ScenarioConditioner
from dwm.errors import InputError
from dwm.rollout.config import RolloutConfig
from dwm.rollout.state import State
from dwm.rollout.window import Ask, Session, as_given, decoded, denoise_window, denoise_windows
from dwm.rollout.world_model import WorldModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive new frames; none where only key frames further ahead were made."""

    first_frame: int
    images_NV3HW: Tensor  # in [-1, 1], on the world model's device
    after: State  # to go on from


def roll_out(
    world: WorldModel,
    conditioner: ScenarioConditioner,
    first_images: Tensor,
    config: RolloutConfig,
    seed: int,
    after: State | None = None,
) -> Iterator[Chunk]:
    """All frames of the conditioner's scenario behind the given ones; or those ``after`` a state.

    ``first_images`` are frame 0 [V, 3, H, W], or the leading N frames [N, V, 3, H, W], in [-1, 1].
    """
    step = STRATEGIES.get(config.strategy)
    if step is None:
        raise InputError("rollout.strategy", f"unknown strategy '{config.strategy}'", f"choose one of {', '.join(STRATEGIES)}")
    if not 0 < config.condition_frames < config.window_frames:
        raise InputError(
            "rollout.condition_frames", f"{config.condition_frames} of a window of {config.window_frames}",
            "keep at least one frame given and one to generate",
        )  # fmt: skip
    if config.strategy == "divide_and_conquer" and config.window_frames < 3:
        raise InputError("rollout.window_frames", f"{config.window_frames}", "a window between two key frames needs 3 or more")
    with torch.inference_mode():
        leading = first_images.to(world.device)
        leading = leading[None] if leading.ndim == 4 else leading
        given = [Given(frame=i, latents_VCHW=world.codec.encode(x), images_V3HW=x) for i, x in enumerate(leading)]
        appearance = conditioner.appearance(0, leading[0], world.things) if config.appearance else None
    session = Session(world=world, conditioner=conditioner, appearance=appearance, config=config, seed=seed)
    return _chunks(session, step, after or State(given=given[-config.condition_frames :], ahead=[]))


def _chunks(session: Session, step: Step, state: State) -> Iterator[Chunk]:
    while state.given[-1].frame + 1 < session.total:
        chunk = step(session, state)
        state = chunk.after
        yield chunk


def _recurrent(session: Session, state: State) -> Chunk:
    start = state.given[0].frame
    return _next_window(session, state, list(range(start, min(start + session.config.window_frames, session.total))))


def _coarse_to_refine(session: Session, state: State) -> Chunk:
    stride, now, ahead = _stride(session), state.given[-1].frame, state.ahead
    if len(ahead) <= 1:
        ahead = [*ahead, *_low_rate(session, ahead[-1:] or state.given, stride)]
    frames = [g.frame for g in state.given] + list(range(now + 1, min(now + stride, session.total - 1) + 1))
    return _next_window(session, State(given=state.given, ahead=ahead), frames)


def _next_window(session: Session, state: State, frames: list[int]) -> Chunk:
    """A window at the video's rate behind the given frames; if its last frame is the next one ahead, that is corrected."""
    given, config, fps = state.given, session.config, session.conditioner.scenario.fps
    meets = bool(state.ahead) and state.ahead[0].frame == frames[-1]
    end, ahead = (state.ahead[:1], state.ahead[1:]) if meets else ([], state.ahead)
    if config.correct_anchors:
        ask = Ask(frames=frames, fps=fps, given=given, anchors={anchor.frame: anchor.latents_VCHW for anchor in end})
    else:
        ask = Ask(frames=frames, fps=fps, given=[*given, *end])
    made = denoise_window(session, ask)
    fresh = len(given)
    images = decoded(session, made, slice(fresh, None))
    kept = min(config.condition_frames, len(images))
    new = as_given(session, made, slice(-kept, None), images[-kept:])
    if end and not config.correct_anchors:
        images, new[-1] = torch.cat([images[:-1], end[0].images_V3HW[None]]), end[0]
    after = State(given=[*given, *new][-config.condition_frames :], ahead=ahead)
    return Chunk(first_frame=frames[fresh], images_NV3HW=images, after=after)


def _divide_and_conquer(session: Session, state: State) -> Chunk:
    if not state.ahead:
        return _key_frames(session, state)
    ahead = state.ahead
    while ahead[0].frame - state.given[-1].frame >= session.config.window_frames:
        ahead = [*_between(session, state.given[-1], ahead[0]), *ahead]
    return _filled(session, state.given[-1], ahead, gaps=1, fine=False)


def _hierarchical(session: Session, state: State) -> Chunk:
    if not state.ahead:
        return _key_frames(session, state)
    return _filled(session, state.given[-1], state.ahead, gaps=session.config.gaps_at_once, fine=True)


def _key_frames(session: Session, state: State) -> Chunk:
    """A chunk of its own: all that later key frames wait for, and no gap does for another."""
    ahead = _low_rate(session, state.given, _stride(session), to_end=True)
    none = state.given[-1].images_V3HW[None][:0]
    return Chunk(first_frame=state.given[-1].frame + 1, images_NV3HW=none, after=State(given=state.given, ahead=ahead))


def _filled(session: Session, start: Given, ahead: list[Given], *, gaps: int, fine: bool) -> Chunk:
    """Everything up to the ``gaps``-th key frame ahead; gaps as long as each other are filled side by side."""
    keys = [start, *ahead[:gaps]]
    fps = session.conditioner.scenario.fps
    asks = [Ask(frames=list(range(a.frame, b.frame + 1)), fps=fps, given=[a, b]) for a, b in pairwise(keys)]
    lengths = sorted({len(ask.frames) for ask in asks})
    made = {
        done.ask.frames[0]: decoded(session, done, slice(1, -1))
        for length in lengths if length > 2
        for done in denoise_windows(session, [ask for ask in asks if len(ask.frames) == length], fine=fine)
    }  # fmt: skip
    images = [part for ask in asks for part in (*made.get(ask.frames[0], ()), ask.given[1].images_V3HW)]
    after = State(given=[keys[-1]], ahead=ahead[gaps:])
    return Chunk(first_frame=start.frame + 1, images_NV3HW=torch.stack(images), after=after)


def _low_rate(session: Session, given: list[Given], stride: int, *, to_end: bool = False) -> list[Given]:
    """New frames of one window at a low rate behind the given ones, none when no stride is left; ``to_end``: also the very last."""
    most = session.config.window_frames - len(given)
    frames = list(range(given[-1].frame + stride, session.total, stride))[:most]
    if to_end and len(frames) < most and (frames or [given[-1].frame])[-1] != session.total - 1:
        frames.append(session.total - 1)
    if not frames:
        return []
    frames = [g.frame for g in given] + frames
    return _frames_of(session, Ask(frames=frames, fps=session.conditioner.scenario.fps / stride, given=given))


def _between(session: Session, start: Given, end: Given) -> list[Given]:
    """Key frames that divide a gap into as many parts as a window can."""
    most = session.config.window_frames - 1
    stride = -(-(end.frame - start.frame) // most)
    frames = [*range(start.frame, end.frame, stride), end.frame]
    return _frames_of(session, Ask(frames=frames, fps=session.conditioner.scenario.fps / stride, given=[start, end]))


def _frames_of(session: Session, ask: Ask) -> list[Given]:
    """A window's new frames, which stand together."""
    known = {g.frame for g in ask.given}
    places = [i for i, frame in enumerate(ask.frames) if frame not in known]
    new = slice(places[0], places[-1] + 1)
    made = denoise_window(session, ask)
    return as_given(session, made, new, decoded(session, made, new))


def _stride(session: Session) -> int:
    return max(1, round(session.conditioner.scenario.fps / session.config.anchor_fps))


Step = Callable[[Session, State], Chunk]
STRATEGIES: dict[str, Step] = {
    "recurrent": _recurrent,
    "coarse_to_refine": _coarse_to_refine,
    "divide_and_conquer": _divide_and_conquer,
    "hierarchical": _hierarchical,
}
