"""How near the relit first frame, and a roll-out from it, come to the true weather: night, rain, fog, and night in rain.

Daylit scenes without other weather only: the same moment is filmed in the weather that the conditions make, and held against the logged
frame, the relit one, and three seconds of roll-outs with and without the conditions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dwm.conditioning.relight import given_frames
from dwm.errors import InputError
from dwm.rollout.config import RolloutConfig
from dwm.rollout.world_model import WorldModel
from dwm.scenario.conditions import USUAL, conditions_of
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Perturbation, Scenario
from dwm.scenes.nuscenes import list_scenes, read_scene
from dwm.scenes.prompts import clip_weather, scene_prompt
from evaluators.counterfactual import psnr_db
from evaluators.protocol import bootstrap_interval
from pipelines.bench.rollouts import Images, Moment, first_feasible, generate, opened_truth, size, true_frames
from pipelines.logged_frames import leading_images

_SECONDS, _EVERY_S = 3.0, 2.0
_JUDGED = (12, 18, 24, 30, 36)  # frames at 1, 1.5, 2, 2.5 and 3 s
_ASKED = (
    *(Perturbation(name=name, params=params, severity=0.5) for name, params in USUAL.items()),
    Perturbation(
        name="night+rain", severity=0.5,
        params={f"{name}.{key}": value for name in ("night", "rain") for key, value in USUAL[name].items()},
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
    for number, (moment, scenario) in enumerate(tqdm(found, desc="conditions", disable=None)):
        logged = leading_images(scenario, 1, world.image_hw)
        plain = generate(world, world.conditioner(scenario), config, _JUDGED).images if number < cases else None
        for perturbation in _ASKED:
            asked = _under(scenario, perturbation)
            conditioner = world.conditioner(asked)
            given = given_frames(asked, conditioner, logged)
            frames[perturbation.name].append(_psnr((logged, given), true_frames(moment, asked, [0], world.image_hw)))
            if plain is not None:
                made = generate(world, conditioner, config, _JUDGED).images
                rolled[perturbation.name].append(_psnr((plain, made), true_frames(moment, asked, _JUDGED, world.image_hw)))
    count = f"{len(found)} moments of daylit scenes, {steps} denoising steps, six cameras, {size(world.image_hw)}"
    return "\n".join([
        count, "", *_table("first frame", "as logged", "relit", frames),
        "", *_table("at 1-3 s", "without conditions", "with conditions", rolled),
    ])  # fmt: skip


def _days(dataroot: Path, version: str) -> Iterator[tuple[Moment, Scenario]]:
    for name in list_scenes(dataroot, version):
        scene = read_scene(dataroot, version, name)
        truth = opened_truth(scene)
        length_s = float(scene.key_timestamps_us[-1] - scene.key_timestamps_us[0]) * 1e-6
        if clip_weather(scene) != "clear" or truth.weather.name != "day":
            continue
        for start_s in np.arange(0.0, length_s - _SECONDS, _EVERY_S).tolist():
            moment = Moment(scene=scene, start_s=start_s, truth=truth)
            scenario = first_feasible(moment, (BASELINE,), _SECONDS, Counter(), "as driven")
            if scenario is not None:
                yield moment, scenario


def _under(scenario: Scenario, perturbation: Perturbation) -> Scenario:
    names = [condition.name for condition in conditions_of(perturbation)]
    return replace(scenario, perturbation=perturbation, prompt=scene_prompt(scenario.scene, names))


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
