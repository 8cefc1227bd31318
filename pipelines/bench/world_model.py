"""How well the world model continues held-out scenes, and whether it follows a path that nobody drove.

1. The next 12 frames against repeating the last one: PSNR to the true video, front of everything else a video model does.
2. Lateral offsets of 2 m and hard brakes: is the roll-out closer to the render of its own commanded path than to the
   render of the logged path, at 1-3 s? With layout, appearance and memory, without memory, and with none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dwm.conditioning.build import IMAGE_HEIGHT, IMAGE_WIDTH, ScenarioConditioner, images_to_tensor, tensor_to_images
from dwm.errors import InputError
from dwm.rollout.config import RolloutConfig
from dwm.rollout.strategies import roll_out
from dwm.rollout.world_model import WorldModel
from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Perturbation, Rejection, Scenario
from dwm.scenes.nuscenes import list_scenes, read_scene
from dwm.scenes.proving_ground.counterfactual import CounterfactualRenderer, open_counterfactual
from dwm.scenes.types import Scene
from evaluators.counterfactual import psnr_db
from evaluators.protocol import bootstrap_interval
from pipelines.worker import first_images

Images = NDArray[np.uint8]
_SHORT_FRAMES, _LONG_S, _MIN_SPEED_MPS = 12, 3.0, 3.0
_JUDGED = tuple(range(12, 37, 6))  # frames at 1, 1.5, 2, 2.5 and 3 s
_MOVES = (
    Perturbation(name="lateral_offset", params={"offset_m": 2.0, "onset_s": 0.0, "ramp_s": 2.5}, severity=0.6),
    Perturbation(name="lateral_offset", params={"offset_m": -2.0, "onset_s": 0.0, "ramp_s": 2.5}, severity=0.6),
    Perturbation(name="hard_brake", params={"decel_mps2": 5.0, "onset_s": 0.0, "hold_s": 2.0}, severity=0.75),
)  # fmt: skip
_MODES = {
    "layout, appearance and memory": RolloutConfig(),
    "layout and appearance": RolloutConfig(memory="none"),
    "none of them": RolloutConfig(layout=False, appearance=False, memory="none"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One scene from one moment on, and its true renderer."""

    scene: Scene
    start_s: float
    truth: CounterfactualRenderer
    rendered: dict[tuple[str, str, int], Images] = field(default_factory=dict)  # true frames, the same for every mode


def bench_world_model(dataroot: Path, version: str, codec: Path, weights: Path, things: Path, cases: int, steps: int) -> str:
    """The table as Markdown; ``cases`` starting moments, one seed each."""
    world = WorldModel.load(codec, weights, things)
    found = [case for _, case in zip(range(cases), _cases(dataroot, version), strict=False)]
    if not found:
        raise InputError(dataroot, f"no scene starts faster than {_MIN_SPEED_MPS} m/s", "build more scenes")
    lines = [f"{len(found)} starting moments, {steps} denoising steps, six cameras, {IMAGE_HEIGHT}x{IMAGE_WIDTH}", ""]
    for name, mode in _MODES.items():
        lines += _mode_table(world, found, replace(mode, steps=steps), name)
    return "\n".join(lines)


def _mode_table(world: WorldModel, cases: list[Case], config: RolloutConfig, name: str) -> list[str]:
    gains, own, closer = [], [], {"lateral_offset": [], "hard_brake": []}
    for case in tqdm(cases, desc=name, disable=None):
        model, last = _short(world, case, config)
        gains.append(model - last)
        own.append(model)
        for move in _MOVES:
            margin = _margin(world, case, move, config)
            if margin is not None:
                closer[move.name].append(margin)
    rng = np.random.default_rng(0)
    gain = bootstrap_interval(np.array(gains), rng)
    lines = [f"**{name}**", "", "| figure | value | 95 % interval | n |", "|---|---|---|---|"]
    lines.append(f"| next 12 frames, PSNR [dB] | {np.mean(own):.2f} | | {len(own)} |")
    lines.append(
        f"| gain over repeating the last frame [dB] | {gain.value:+.2f} | {gain.low:+.2f} to {gain.high:+.2f} | {len(gains)} |"
    )
    for move, margins in closer.items():
        if margins:
            share, margin = np.mean(np.array(margins) > 0), bootstrap_interval(np.array(margins), rng)
            lines.append(f"| {move}: closer to its own path than to the log's | {share:.0%} | | {len(margins)} |")
            lines.append(
                f"| {move}: PSNR own minus log [dB] | {margin.value:+.2f} | {margin.low:+.2f} to {margin.high:+.2f} | {len(margins)} |"
            )
    return [*lines, ""]


def _cases(dataroot: Path, version: str) -> Iterator[Case]:
    for name in list_scenes(dataroot, version):
        scene = read_scene(dataroot, version, name)
        truth = open_counterfactual(scene)
        if truth is None:
            raise InputError(
                dataroot, "not a proving-ground world: its true video cannot be rendered", "use roadreel world build"
            )
        seconds = (scene.key_timestamps_us - scene.key_timestamps_us[0]) * 1e-6
        for start_s in seconds[seconds + _LONG_S <= seconds[-1]][::3]:
            moment = scene.key_timestamps_us[0] + int(start_s * 1e6)
            a, b = scene.ego.at(np.array([moment, moment + 100_000]))[:, :2, 3]
            if np.linalg.norm(b - a) / 0.1 > _MIN_SPEED_MPS:
                yield Case(scene=scene, start_s=float(start_s), truth=truth)


def _short(world: WorldModel, case: Case, config: RolloutConfig) -> tuple[float, float]:
    """Mean PSNR of the next 12 frames: the model's, and that of the last given frame repeated."""
    scenario = _scenario(case, BASELINE, (_SHORT_FRAMES + 1) / 12)
    assert isinstance(scenario, Scenario)
    first, made = _generate(world, scenario, config, seed=0)
    truth = _true(case, scenario, range(1, _SHORT_FRAMES + 1))
    still = np.repeat(first[None], _SHORT_FRAMES, axis=0)
    return float(psnr_db(made[1:], truth).mean()), float(psnr_db(still, truth).mean())


def _margin(world: WorldModel, case: Case, move: Perturbation, config: RolloutConfig) -> float | None:
    """PSNR to the own path's render minus PSNR to the log path's, mean over 1-3 s; None for an infeasible move."""
    moved, baseline = (_scenario(case, p, _LONG_S + 1 / 12) for p in (move, BASELINE))
    if isinstance(moved, Rejection) or isinstance(baseline, Rejection):
        return None
    _, made = _generate(world, moved, config, seed=0)
    judged = made[list(_JUDGED)]
    return float((psnr_db(judged, _true(case, moved, _JUDGED)) - psnr_db(judged, _true(case, baseline, _JUDGED))).mean())


def _scenario(case: Case, move: Perturbation, duration_s: float) -> Scenario | Rejection:
    return build_scenario(case.scene, move, 0, duration_s=duration_s, fps=12.0, start_s=case.start_s)


def _generate(world: WorldModel, scenario: Scenario, config: RolloutConfig, seed: int) -> tuple[Images, Images]:
    """The given frame [V, H, W, 3] and all frames [T, V, H, W, 3], the given one first."""
    first = first_images(scenario.scene, int(scenario.timestamps_us[0]))
    conditioner = ScenarioConditioner(scenario, world.device)
    chunks = roll_out(world, conditioner, images_to_tensor(first, world.device), config, seed)
    return first, np.concatenate([first[None], *(tensor_to_images(chunk.images_NV3HW) for chunk in chunks)])


def _true(case: Case, scenario: Scenario, frames: range | tuple[int, ...]) -> Images:
    move = scenario.perturbation
    for f in frames:
        key = (move.name, str(move.params), f)
        if key not in case.rendered:
            case.rendered[key] = case.truth.views(scenario, f, (IMAGE_HEIGHT, IMAGE_WIDTH)).image
    return np.stack([case.rendered[move.name, str(move.params), f] for f in frames])
