"""Planted faults: what can be wrong with a generated clip, put into true video on purpose, so that a gate can be tried.

Some are done to the pictures, the others to what is filmed while the labels stay as they were. The first ``given`` frames are the log's
and stay. Shapes: T frames, V cameras (ring order), H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dwm.scenario.types import AgentBoxes, Scenario
from dwm.scenes.types import CAMERAS

Images = NDArray[np.uint8]
FROZEN_AFTER_S = 1.0
NOISE_GREY_LEVELS = 25.0  # standard deviation
STRANGERS = 6
_NEAREST_STRANGER_M, _FARTHEST_STRANGER_M, _CLEAR_M = 6.0, 20.0, 5.0


def swapped_cameras(video: Images, fps: float, given: int) -> Images:
    """Front left and front right take each other's place."""
    left, right = CAMERAS.index("CAM_FRONT_LEFT"), CAMERAS.index("CAM_FRONT_RIGHT")
    out = video.copy()
    out[given:, left], out[given:, right] = video[given:, right], video[given:, left]
    return out


def frozen(video: Images, fps: float, given: int) -> Images:
    """Nothing moves any more after a second."""
    out = video.copy()
    last = min(given - 1 + round(FROZEN_AFTER_S * fps), len(video) - 1)
    out[last + 1 :] = video[last]
    return out


def noisy(video: Images, fps: float, given: int) -> Images:
    """Independent Gaussian noise on every pixel."""
    out, rng = video.copy(), np.random.default_rng(0)
    for t in range(given, len(video)):
        loud = video[t] + NOISE_GREY_LEVELS * rng.standard_normal(video.shape[1:], dtype=np.float32)
        out[t] = np.clip(loud, 0, 255).astype(np.uint8)
    return out


def mirrored(video: Images, fps: float, given: int) -> Images:
    """Every picture is flipped, left for right."""
    return np.concatenate([video[:given], video[given:, :, :, ::-1]])


def reversed_in_time(video: Images, fps: float, given: int) -> Images:
    """The last frame comes first."""
    return np.concatenate([video[:given], video[given:][::-1]])


def wrong_path(scenario: Scenario) -> Scenario:
    """The ego drives as in the log, whatever was commanded."""
    return replace(scenario, ego_to_global=scenario.baseline_ego_to_global)


def without_agents(scenario: Scenario) -> Scenario:
    """Nobody is there."""
    return replace(scenario, agents=replace(scenario.agents, present=np.zeros_like(scenario.agents.present)))


def with_strangers(scenario: Scenario) -> Scenario:
    """Cars that no label knows stand around the path, clear of everybody else and of the ego, where there is room for them."""
    rng = np.random.default_rng(0)
    path = scenario.ego_to_global[:, :2, 3]
    heading = scenario.ego_to_global[:, :2, 0]
    taken = [scenario.agents.centers_m[scenario.agents.present][:, :2], path]
    places: list[tuple[float, float, float]] = []
    for _ in range(400):
        if len(places) == STRANGERS:
            break
        t = int(rng.integers(len(path)))
        side = rng.choice([-1.0, 1.0]) * rng.uniform(3.5, 8.0)
        ahead = rng.uniform(_NEAREST_STRANGER_M, _FARTHEST_STRANGER_M)
        along = heading[t] / max(float(np.linalg.norm(heading[t])), 1e-9)
        spot = path[t] + ahead * along + side * np.array([-along[1], along[0]])
        clear_m = (_CLEAR_M, 3.0)
        if all(not len(o) or np.linalg.norm(o - spot, axis=1).min() > c for o, c in zip(taken, clear_m, strict=True)):
            places.append((float(spot[0]), float(spot[1]), float(np.arctan2(along[1], along[0]))))
            taken[0] = np.concatenate([taken[0], spot[None]])
    return replace(scenario, agents=_with_cars(scenario.agents, places))


def _with_cars(agents: AgentBoxes, places: list[tuple[float, float, float]]) -> AgentBoxes:
    count, frames = len(places), agents.present.shape[1]
    size = np.array([1.9, 4.5, 1.6])
    spots = np.array(places).reshape(count, 3)
    centres = np.column_stack([spots[:, :2], np.full(count, size[2] / 2)])
    return AgentBoxes(
        instance_tokens=(*agents.instance_tokens, *(f"{k:08x}{'f' * 24}" for k in range(1, count + 1))),
        detection_classes=(*agents.detection_classes, *["car"] * count), categories=(*agents.categories, *["vehicle.car"] * count),
        sizes_wlh_m=np.concatenate([agents.sizes_wlh_m, np.repeat(size[None], count, axis=0)]),
        centers_m=np.concatenate([agents.centers_m, np.repeat(centres[:, None], frames, axis=1)]),
        yaws_rad=np.concatenate([agents.yaws_rad, np.repeat(spots[:, 2:], frames, axis=1)]),
        velocities_mps=np.concatenate([agents.velocities_mps, np.zeros((count, frames, 2))]),
        present=np.concatenate([agents.present, np.ones((count, frames), dtype=bool)]),
        label_sources=np.concatenate([agents.label_sources, np.zeros((count, frames), dtype=np.int8)]),
        num_lidar_pts=np.concatenate([agents.num_lidar_pts, np.full((count, frames), -1, dtype=np.int32)]),
        attributes=(*agents.attributes, *[("",) * frames] * count),
    )  # fmt: skip


IN_PICTURES: dict[str, Callable[[Images, float, int], Images]] = {
    "swapped cameras": swapped_cameras, "frozen video": frozen, "noise": noisy, "left-right mirrored": mirrored,
    "time-reversed": reversed_in_time,
}  # fmt: skip
IN_WHAT_IS_FILMED: dict[str, Callable[[Scenario], Scenario]] = {
    "wrong path": wrong_path, "missing agents": without_agents, "hallucinated agents": with_strangers,
}  # fmt: skip
