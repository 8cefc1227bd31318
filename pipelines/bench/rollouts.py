"""What the benches of roll-outs share: starting moments on held-out scenes, frames as generated and as they truly look.

Shapes: K scored frames, V views, H W pixels.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dwm.conditioning.build import ScenarioConditioner, images_to_tensor, tensor_to_images
from dwm.conditioning.relight import given_frames
from dwm.errors import InputError
from dwm.rollout.config import RolloutConfig
from dwm.rollout.strategies import Chunk, roll_out
from dwm.rollout.world_model import WorldModel
from dwm.scenario.build import build_scenario
from dwm.scenario.types import Perturbation, Scenario
from dwm.scenes.nuscenes import list_scenes, read_scene
from dwm.scenes.proving_ground.counterfactual import CounterfactualRenderer, open_counterfactual
from dwm.scenes.types import Scene
from pipelines.logged_frames import leading_images

Images = NDArray[np.uint8]
FPS = 12.0
LOGGED_S = 1.0  # of log that must be left at a starting moment
# The moved paths of benches: the first that can be driven counts.
ASIDE = tuple(
    Perturbation(name="lateral_offset", params={"offset_m": offset_m, "onset_s": 0.0, "ramp_s": 2.5}, severity=0.6)
    for offset_m in (2.0, -2.0)
)
HARD_BRAKE = Perturbation(name="hard_brake", params={"decel_mps2": 5.0, "onset_s": 0.0, "hold_s": 2.0}, severity=0.75)
_MIN_SPEED_MPS, _APART_KEY_FRAMES = 3.0, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A scene from one of its key frames on, and its true renderer."""

    scene: Scene
    start_s: float
    truth: CounterfactualRenderer


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Generated frames that are scored, and what all frames up to the last of them cost."""

    images: Images  # [K, V, H, W, 3]
    seconds: float
    frames: int

    @property
    def seconds_per_frame(self) -> float:
        return self.seconds / self.frames


def starting_moments(dataroot: Path, version: str, count: int, logged_s: float) -> list[Moment]:
    """Up to ``count`` moments in motion with ``logged_s`` of log to come: the first of every scene, then the second.

    Raises InputError for a dataroot that is not a proving ground, or without any such moment.
    """
    if count < 1:
        raise InputError("--cases", f"{count} starting moments", "give 1 or more")
    scenes = [read_scene(dataroot, version, name) for name in list_scenes(dataroot, version)]
    rounds = zip_longest(*([(scene, start_s) for start_s in _starts_s(scene, logged_s)] for scene in scenes))
    chosen = [start for starts in rounds for start in starts if start is not None][:count]
    if not chosen:
        problem = f"no scene drives faster than {_MIN_SPEED_MPS:g} m/s with {logged_s:g} s of log to come"
        raise InputError(dataroot, problem, "build more or longer scenes: roadreel world build --scenes N --duration SECONDS")
    # A world takes seconds to rebuild: only those that are filmed, and once for all moments of a scene.
    truths = {scene.name: opened_truth(scene) for scene in {scene.name: scene for scene, _ in chosen}.values()}
    return [Moment(scene=scene, start_s=start_s, truth=truths[scene.name]) for scene, start_s in chosen]


def _starts_s(scene: Scene, logged_s: float) -> list[float]:
    """Every third key frame in motion, in seconds since the first, with enough log to come."""
    seconds = (scene.key_timestamps_us - scene.key_timestamps_us[0]) * 1e-6
    out = []
    for start_s in seconds[seconds + logged_s <= seconds[-1] + 1e-6][::_APART_KEY_FRAMES]:
        moment = scene.key_timestamps_us[0] + round(start_s * 1e6)
        a, b = scene.ego.at(np.array([moment, moment + 100_000]))[:, :2, 3]
        if np.linalg.norm(b - a) / 0.1 > _MIN_SPEED_MPS:
            out.append(float(start_s))
    return out


def opened_truth(scene: Scene) -> CounterfactualRenderer:
    """The world that a scene was filmed in; raises InputError for a log that is not of the proving ground."""
    truth = open_counterfactual(scene)
    if truth is None:
        problem = "not a proving-ground world: its true video cannot be rendered"
        raise InputError(scene.dataroot, problem, "use roadreel world build")
    return truth


def first_feasible(
    moment: Moment, moves: Sequence[Perturbation], duration_s: float, rejected: Counter[str], what: str
) -> Scenario | None:
    """The first of the moves that can be driven, frames from 0 to ``duration_s``, both included.

    None when all are infeasible; every rejection on the way is counted by ``what`` was asked for and the reason.
    """
    for move in moves:
        found = build_scenario(moment.scene, move, 0, duration_s=duration_s + 1 / FPS, fps=FPS, start_s=moment.start_s)
        if isinstance(found, Scenario):
            return found
        rejected[f"{what}: {found.reason}"] += 1
    return None


def generate(
    world: WorldModel, conditioner: ScenarioConditioner, config: RolloutConfig, frames: Sequence[int], seed: int = 0,
    on_chunk: Callable[[Chunk], None] = lambda _: None,
) -> Made:  # fmt: skip
    """Rolls out from the log's images, relit as the scenario asks, to the last of ``frames`` (rising, from 1 on); keeps these alone.

    Frames that the log leads with come back as they were given.
    """
    scenario = conditioner.scenario
    leading = given_frames(scenario, conditioner, leading_images(scenario, config.logged_frames, world.image_hw))
    given, kept = images_to_tensor(leading, world.device), {f: image for f, image in enumerate(leading) if f in frames}
    asked, done, started = set(frames), 0, time.perf_counter()
    for chunk in roll_out(world, conditioner, given, config, seed):
        on_chunk(chunk)
        for i, image in enumerate(chunk.images_NV3HW):
            if chunk.first_frame + i in asked:
                kept[chunk.first_frame + i] = tensor_to_images(image)
        done = chunk.first_frame + len(chunk.images_NV3HW) - 1
        if done >= max(frames):
            break
    seconds, made = time.perf_counter() - started, done + 1 - len(leading)
    return Made(images=np.stack([kept[f] for f in frames]), seconds=seconds, frames=made)


def true_frames(moment: Moment, scenario: Scenario, frames: Sequence[int], image_hw: tuple[int, int]) -> Images:
    """What the cameras would have seen [K, V, H, W, 3] along the scenario's own path."""
    return np.stack([moment.truth.views(scenario, f, image_hw).image for f in frames])


def size(image_hw: tuple[int, int]) -> str:
    """An image size as the tables name it."""
    return f"{image_hw[0]}x{image_hw[1]}"


def frames_between(start_s: float, end_s: float, every: int = 1) -> tuple[int, ...]:
    """Frame numbers from ``start_s`` to ``end_s``, both included, ``every`` so many."""
    return tuple(range(round(start_s * FPS), round(end_s * FPS) + 1, every))


def rejections(rejected: Counter[str]) -> list[str]:
    """A line with the counts, most frequent first; none without rejections."""
    if not rejected:
        return []
    return ["", "Rejected: " + ", ".join(f"{count} x {what}" for what, count in rejected.most_common()) + "."]
