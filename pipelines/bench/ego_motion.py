"""Can a video be told from one along a wrong path, by its pictures alone? Ego motion read off true and generated video.

Every held-out moment is filmed as driven and along moved paths (2 m aside, hard brake), truly and by the world model. What the network and
ground-plane odometry read is held against the path that was commanded, and against a wrong one: the logged path for moved clips, each
moved path for the clip as driven. AUC is the chance that a wrong path's error is larger than a commanded one's, all clips of a kind
together (Mann and Whitney, 1947).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dwm.conditioning.build import ScenarioConditioner
from dwm.rollout.config import RolloutConfig
from dwm.rollout.world_model import WorldModel
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from evaluators.ego_motion.inference import EgoMotionReader
from evaluators.ego_motion.odometry import OdometryConfig
from evaluators.ego_motion.path import PathError, mean_error
from evaluators.ego_motion.score import EgoMotionScore, ReadingConfig, read_steps, score_ego_motion
from evaluators.protocol import bootstrap_interval
from pipelines.bench.rollouts import (
    ASIDE,
    FPS,
    HARD_BRAKE,
    LOGGED_S,
    Images,
    Moment,
    first_feasible,
    generate,
    rejections,
    size,
    starting_moments,
    true_frames,
)
from pipelines.clip_labels import rig
from pipelines.logged_frames import leading_images

Array = NDArray[np.float64]
_MOVES = {"2 m aside": ASIDE, "hard brake": (HARD_BRAKE,)}
_READERS: dict[str, Callable[[EgoMotionScore], tuple[PathError, ...]]] = {
    "network": lambda score: score.learnt, "odometry": lambda score: score.seen, "the nearer one": lambda score: score.agreed,
}  # fmt: skip
_SOURCES = ("true video", "generated")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Errors:
    """Of one reader on one kind of video, a clip each."""

    own: list[PathError] = field(default_factory=list)
    wrong: list[PathError] = field(default_factory=list)


def bench_ego_motion(
    dataroot: Path, version: str, codec: Path, weights: Path, things: Path, ego_motion: Path, cases: int, duration_s: float, steps: int
) -> str:  # fmt: skip
    """The table as Markdown; ``cases`` starting moments, clips of ``duration_s``."""
    world, reader, rejected = WorldModel.load(codec, weights, things), EgoMotionReader.load(ego_motion), Counter[str]()
    found: dict[tuple[str, str, str], _Errors] = {}
    known: dict[str, list[float]] = {source: [] for source in _SOURCES}
    moments = starting_moments(dataroot, version, cases, LOGGED_S)
    for moment in tqdm(moments, desc="moments", disable=None):
        _judge(world, reader, moment, duration_s, replace(RolloutConfig(), steps=steps), found, known, rejected)
    scenes = len({moment.scene.name for moment in moments})
    lines = [
        f"{len(moments)} starting moments of {scenes} scenes, clips of {duration_s:g} s read every {ReadingConfig().step_s:.2f} s, six "
        f"cameras, {size(world.image_hw)}; network {reader.sha256[:12]}; odometry answers "
        + ", ".join(f"{np.mean(share):.0%} ({source})" for source, share in known.items()),
        "", "| video | path | read by | clips | ADE [m] | FDE [m] | heading [rad] | speed [m/s] | ADE of a wrong path [m] | AUC |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    return "\n".join([*lines, *(_row(key, errors) for key, errors in found.items()), *rejections(rejected)])


def _judge(
    world: WorldModel, reader: EgoMotionReader, moment: Moment, duration_s: float, rollout: RolloutConfig,
    found: dict[tuple[str, str, str], _Errors], known: dict[str, list[float]], rejected: Counter[str],
) -> None:  # fmt: skip
    driven = first_feasible(moment, (BASELINE,), duration_s, rejected, "as driven")
    moved = {name: first_feasible(moment, moves, duration_s, rejected, name) for name, moves in _MOVES.items()}
    told = {"as driven": driven, **moved}
    frames = ReadingConfig().moments(FPS, 0, round(duration_s * FPS) + 1)
    for name, scenario in told.items():
        if scenario is None or driven is None:
            continue
        conditioner = world.conditioner(scenario)
        videos = {
            "true video": true_frames(moment, scenario, frames, world.image_hw),
            "generated": _generated(world, conditioner, rollout, scenario, frames),
        }
        others = [driven] if name != "as driven" else [other for other in moved.values() if other is not None]
        for source, video in videos.items():
            _read(reader, conditioner, video, scenario, others, frames, (source, name), found, known)


def _generated(
    world: WorldModel, conditioner: ScenarioConditioner, rollout: RolloutConfig, scenario: Scenario, frames: list[int]
) -> Images:
    first = leading_images(scenario, 1, world.image_hw)
    return np.concatenate([first, generate(world, conditioner, rollout, frames[1:]).images])


def _read(
    reader: EgoMotionReader, conditioner: ScenarioConditioner, video: Images, scenario: Scenario, others: list[Scenario], frames: list[int],
    kind: tuple[str, str], found: dict[tuple[str, str, str], _Errors], known: dict[str, list[float]],
) -> None:  # fmt: skip
    learnt, seen = read_steps(reader, video, *rig(conditioner), OdometryConfig())
    own = score_ego_motion(learnt, seen, scenario.ego_to_global[frames])
    wrong = [score_ego_motion(learnt, seen, other.ego_to_global[frames]) for other in others]
    known[kind[0]].append(own.metrics()["ego_motion.odometry_known"])
    for name, errors_of in _READERS.items():
        errors = found.setdefault((*kind, name), _Errors())
        errors.own.append(mean_error(errors_of(own)))
        errors.wrong.extend(mean_error(errors_of(score)) for score in wrong)


def area_under_roc(own: Array, wrong: Array) -> float:
    """The chance that one of ``wrong`` is larger than one of ``own``, ties counting half; NaN without either."""
    if not len(own) or not len(wrong):
        return float("nan")
    return float(np.mean((wrong[:, None] > own) + 0.5 * (wrong[:, None] == own)))


def _row(key: tuple[str, str, str], errors: _Errors) -> str:
    ade = bootstrap_interval(np.array([error.ade_m for error in errors.own]), np.random.default_rng(0))
    means = [np.mean([getattr(error, name) for error in errors.own]) for name in ("fde_m", "heading_rad", "speed_mps")]
    wrong = np.array([error.ade_m for error in errors.wrong])
    auc = area_under_roc(np.array([error.ade_m for error in errors.own]), wrong)
    figures = [ade.text(".2f"), f"{means[0]:.2f}", f"{means[1]:.3f}", f"{means[2]:.2f}", f"{wrong.mean():.2f}", f"{auc:.2f}"]
    return "| " + " | ".join([*key, str(len(errors.own)), *figures]) + " |"
