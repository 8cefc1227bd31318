"""The counterfactual truth: what the cameras of a proving-ground scene would have seen on a path nobody drove."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dwm.errors import InputError
from dwm.scenario.conditions import air_of, conditions_of, new_conditions
from dwm.scenario.types import Scenario
from dwm.scenes.proving_ground.build import WORLD_FILE
from dwm.scenes.proving_ground.capture import SceneRenderer
from dwm.scenes.proving_ground.city import City, build_city
from dwm.scenes.proving_ground.render import RenderAgent, RenderedViews, Renderer
from dwm.scenes.proving_ground.tokens import appearance_seed, noise_seed
from dwm.scenes.proving_ground.weather import WEATHERS, Weather, under
from dwm.scenes.types import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterfactualRenderer:
    """The world behind a proving-ground scene, ready to be filmed from anywhere."""

    city: City
    weather: Weather
    renderer: SceneRenderer

    def views(self, scenario: Scenario, frame_index: int, size_hw: tuple[int, int]) -> RenderedViews:
        """All cameras of the rig at one frame of a scenario, in the weather that its conditions make of the log's;
        ``instance`` indexes ``frame_agents``."""
        asked, _ = new_conditions(scenario.scene, conditions_of(scenario.perturbation))
        return counterfactual_views(self.renderer, under(self.weather, air_of(asked)), scenario, frame_index, size_hw)


def open_counterfactual(scene: Scene, device: str = "cpu") -> CounterfactualRenderer | None:
    """Rebuilds the world of a scene from its dataroot; None for a scene that was not made here.

    Raises InputError when the dataroot's world file is damaged or does not name the scene.
    """
    path = scene.dataroot / WORLD_FILE
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text())["scenes"][scene.name]
        seed, size_m, weather = int(facts["city_seed"]), float(facts["city_size_m"]), WEATHERS[facts["weather"]]
    except (ValueError, KeyError, TypeError) as error:
        problem = f"no usable entry for {scene.name} ({type(error).__name__}: {error})"
        raise InputError(path, problem, "build the proving ground again with this version") from error
    city, renderer = _open(seed, size_m, device)
    return CounterfactualRenderer(city=city, weather=weather, renderer=renderer)


def counterfactual_views(
    renderer: SceneRenderer, weather: Weather, scenario: Scenario, frame_index: int, size_hw: tuple[int, int]
) -> RenderedViews:
    """Agents and ego from the scenario, looks from the instance tokens: on an unmoved path, the log's own
    images up to sensor noise and the agents' interpolation between key frames.

    ``instance`` of the result indexes ``frame_agents(scenario, frame_index)``.
    """
    height, width = size_hw
    cameras = tuple(camera.resized(width, height) for camera in scenario.scene.cameras)
    ego = np.repeat(scenario.ego_to_global[frame_index][None], len(cameras), axis=0)
    _, agents = frame_agents(scenario, frame_index)
    seed = noise_seed(scenario.scene.token, int(scenario.timestamps_us[frame_index]))
    return renderer.render(cameras, ego, agents, weather, seed)


def frame_agents(scenario: Scenario, frame_index: int) -> tuple[list[int], list[RenderAgent]]:
    """Indices into ``scenario.agents`` of the agents that can be drawn at a frame, and their drawings."""
    boxes = scenario.agents
    drawn = [i for i, name in enumerate(boxes.detection_classes) if name is not None and boxes.present[i, frame_index]]
    speeds = np.nan_to_num(np.linalg.norm(boxes.velocities_mps[drawn, frame_index], axis=1))
    return drawn, [
        RenderAgent(
            detection_class=str(boxes.detection_classes[i]), center_m=boxes.centers_m[i, frame_index],
            yaw_rad=float(boxes.yaws_rad[i, frame_index]), size_wlh_m=boxes.sizes_wlh_m[i],
            seed=appearance_seed(boxes.instance_tokens[i]), speed_mps=float(speed),
        )
        for i, speed in zip(drawn, speeds, strict=True)
    ]  # fmt: skip


@lru_cache(maxsize=4)
def _open(seed: int, size_m: float, device: str) -> tuple[City, Renderer]:
    city = build_city(seed, size_m)
    return city, Renderer(city, device)
