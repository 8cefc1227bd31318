"""How near the relit first frame, and a roll-out from it, come to the true weather: night, rain, fog, and night in rain.

Daylit scenes without other weather only: the same moment is filmed in the weather that the conditions make, and held against the logged
frame, the relit one, and three seconds of roll-outs with and without the conditions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dwm.conditioning.build import IMAGE_HEIGHT, IMAGE_WIDTH, ScenarioConditioner, images_to_tensor, tensor_to_images
from dwm.conditioning.relight import given_frame
from dwm.errors import InputError
from dwm.rollout.config import RolloutConfig
from dwm.rollout.strategies import roll_out
from dwm.rollout.world_model import WorldModel
from dwm.scenario.build import build_scenario
from dwm.scenario.conditions import conditions_of
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Perturbation, Scenario
from dwm.scenes.nuscenes import list_scenes, read_scene
from dwm.scenes.prompts import clip_weather, scene_prompt
from dwm.scenes.proving_ground.counterfactual import CounterfactualRenderer, open_counterfactual
from evaluators.counterfactual import psnr_db
from evaluators.protocol import bootstrap_interval
from pipelines.worker import first_images

Images = NDArray[np.uint8]
_SECONDS, _FPS, _EVERY_S = 3.0, 12.0, 2.0
_JUDGED = [12, 18, 24, 30, 36]  # frames at 1, 1.5, 2, 2.5 and 3 s
_ASKED = (
    Perturbation(name="night", params={"exposure_ev": 2.9}, severity=0.45),
    Perturbation(name="rain", params={"visibility_m": 469.0, "wetness": 0.8, "overcast": 1.0}, severity=0.72),
    Perturbation(name="fog", params={"visibility_m": 215.0}, severity=0.81),
    Perturbation(
        name="night+rain", severity=0.72,
        params={"night.exposure_ev": 2.9, "rain.visibility_m": 469.0, "rain.wetness": 0.8, "rain.overcast": 1.0},
    ),
)  # fmt: skip


def bench_conditions(dataroot: Path, version: str, codec: Path, weights: Path, things: Path, cases: int, steps: int) -> str:
    """Two tables as Markdown: given frames, and roll-outs of the first ``cases`` of them."""
    world, config = WorldModel.load(codec, weights, things), RolloutConfig(steps=steps)
    found = list(_days(dataroot, version))
    if not found:
        raise InputError(dataroot, "no scene on a clear day", "build more scenes")
    frames: dict[str, list[list[float]]] = {asked.name: [] for asked in _ASKED}
    rolled: dict[str, list[list[float]]] = {asked.name: [] for asked in _ASKED}
    for number, (scenario, truth) in enumerate(tqdm(found, desc="conditions", disable=None)):
        logged = first_images(scenario.scene, int(scenario.timestamps_us[0]))
        plain = _roll(world, scenario, logged, config) if number < cases else None
        for perturbation in _ASKED:
            asked = _under(scenario, perturbation)
            given = given_frame(asked, ScenarioConditioner(asked), logged)
            frames[perturbation.name].append(_psnr((logged, given), _film(truth, asked, [0])[0]))
            if plain is not None:
                made, true = _roll(world, asked, given, config), _film(truth, asked, _JUDGED)
                rolled[perturbation.name].append(_psnr((plain, made), true))
    count = f"{len(found)} moments of daylit scenes, {steps} denoising steps, six cameras, {IMAGE_HEIGHT}x{IMAGE_WIDTH}"
    return "\n".join([
        count, "", *_table("first frame", "as logged", "relit", frames),
        "", *_table("at 1-3 s", "without conditions", "with conditions", rolled),
    ])  # fmt: skip


def _days(dataroot: Path, version: str) -> Iterator[tuple[Scenario, CounterfactualRenderer]]:
    for name in list_scenes(dataroot, version):
        scene = read_scene(dataroot, version, name)
        truth = open_counterfactual(scene)
        if truth is None:
            raise InputError(dataroot, "not a proving-ground world: it cannot be filmed", "use roadreel world build")
        length_s = float(scene.key_timestamps_us[-1] - scene.key_timestamps_us[0]) * 1e-6
        if clip_weather(scene) != "clear" or truth.weather.name != "day":
            continue
        for start_s in np.arange(0.0, length_s - _SECONDS, _EVERY_S).tolist():
            scenario = build_scenario(scene, BASELINE, 0, duration_s=_SECONDS + 1 / _FPS, fps=_FPS, start_s=start_s)
            if isinstance(scenario, Scenario):
                yield scenario, truth


def _under(scenario: Scenario, perturbation: Perturbation) -> Scenario:
    names = [condition.name for condition in conditions_of(perturbation)]
    return replace(scenario, perturbation=perturbation, prompt=scene_prompt(scenario.scene, names))


def _roll(world: WorldModel, scenario: Scenario, given: Images, config: RolloutConfig) -> Images:
    """The judged frames [J, V, H, W, 3] of a roll-out."""
    conditioner = ScenarioConditioner(scenario, world.device)
    chunks = roll_out(world, conditioner, images_to_tensor(given, world.device), config, 0)
    return np.concatenate([given[None], *(tensor_to_images(chunk.images_NV3HW) for chunk in chunks)])[_JUDGED]


def _film(truth: CounterfactualRenderer, scenario: Scenario, frames: list[int]) -> Images:
    return np.stack([truth.views(scenario, f, (IMAGE_HEIGHT, IMAGE_WIDTH)).image for f in frames])


def _psnr(pictures: tuple[Images, Images], truth: Images) -> list[float]:
    return [float(psnr_db(images, truth).mean()) for images in pictures]


def _table(what: str, before: str, after: str, values: dict[str, list[list[float]]]) -> list[str]:
    lines = [
        f"| {what}, PSNR to the true weather [dB] | {before} | {after} | gain | 95 % interval | n |",
        "|---|---|---|---|---|---|",
    ]
    for name, pairs in values.items():
        if pairs:
            old, new = np.array(pairs).T
            gain = bootstrap_interval(new - old, np.random.default_rng(0))
            lines.append(
                f"| {name} | {old.mean():.2f} | {new.mean():.2f} | {gain.value:+.2f} | {gain.low:+.2f} to {gain.high:+.2f} | {len(old)} |"
            )
    return lines
