"""Training videos from the proving ground: towns, traffic and ego paths nobody logged, rendered in six cameras.

Training uses town seeds below ``FIRST_HELD_OUT_TOWN``; datasets built with ``roadreel world build`` and every published
figure use seeds from there on.

Shapes: T frames, V views, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dwm.geometry import rotation_from_yaw, transform_from_xy_yaw, yaw_from_rotation
from dwm.models.dit import IMAGE_HW
from dwm.scenario.types import AgentBoxes, LabelSource, Perturbation, Scenario
from dwm.scenes.prompts import scene_prompt
from dwm.scenes.proving_ground.city import City, build_city, scene_map
from dwm.scenes.proving_ground.render import RenderAgent, Renderer
from dwm.scenes.proving_ground.rig import CAMERA_HZ, KEY_FRAME_EVERY, LIDAR_TO_EGO, make_rig
from dwm.scenes.proving_ground.tokens import appearance_seed, make_token
from dwm.scenes.proving_ground.weather import WEATHERS
from dwm.scenes.proving_ground.world import World, make_world
from dwm.scenes.types import EgoTrack, Scene

_START_US = 1_533_151_603_000_000
_WEATHER_SHARES = (0.4, 0.15, 0.15, 0.15, 0.15)
_DATES = ("2018-01-15", "2018-04-12", "2018-08-01", "2018-11-06")


@dataclass(frozen=True, slots=True, kw_only=True)
class Town:
    """A city with its renderer; building one takes seconds, so it serves many drives."""

    city: City
    renderer: Renderer | None  # None where only the traffic is wanted


def open_town(seed: int, device: str | torch.device = "cpu", render: bool = True) -> Town:
    city = build_city(seed)
    return Town(city=city, renderer=Renderer(city, device) if render else None)


def drive(town: Town, seed: int, duration_s: float = 20.0, n_agents: int = 60) -> tuple[Scenario, str]:
    """Traffic around an ego that swerves and brakes, as a scenario at 12 Hz; and the weather's name."""
    rng = np.random.default_rng((town.city.seed, seed))
    weather = str(rng.choice(list(WEATHERS), p=_WEATHER_SHARES))
    world = make_world(
        town.city, WEATHERS[weather], _START_US, round(duration_s * CAMERA_HZ), n_agents,
        lambda i: make_token(town.city.seed, "training", seed, i), rng,
    )  # fmt: skip
    times = world.timestamps_us
    logged = world.ego.at(times)
    xy, yaw = wander(logged[:, :2, 3], yaw_from_rotation(logged), rng)
    poses = transform_from_xy_yaw(xy[:, 0], xy[:, 1], yaw)
    scene = _scene(town.city, times, poses, WEATHERS[weather].words, str(rng.choice(_DATES)), seed)
    n_frames = len(times)
    return Scenario(
        scene=scene, perturbation=Perturbation(name="baseline", params={}, severity=0.0), seed=seed, fps=CAMERA_HZ, timestamps_us=times,
        ego_to_global=poses, baseline_ego_to_global=poses, agents=_agents(world), is_key_frame=np.arange(n_frames) % KEY_FRAME_EVERY == 0,
        log_end_index=n_frames, prompt=scene_prompt(scene),
    ), weather  # fmt: skip


def wander(
    xy_m: NDArray[np.float64], yaw_rad: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same road driven otherwise: shifted sideways by up to 3 m here and there, now and then braking hard.

    Returns positions [T, 2] and headings [T].
    """
    t = np.arange(len(yaw_rad)) / CAMERA_HZ
    arc = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(xy_m, axis=0), axis=1))])
    pace = np.ones_like(t)
    for _ in range(rng.integers(0, 3)):  # brake at up to 6 m/s2, hold, drive off
        start, hold = rng.uniform(0, t[-1]), rng.uniform(0.5, 3.0)
        down = np.clip((t - start) / rng.uniform(1.2, 3.0), 0, 1)
        up = np.clip((t - start - hold - 2) / 3.0, 0, 1)
        pace *= 1 - down + up
    pace *= rng.choice([1.0, 1.0, rng.uniform(0.6, 1.2)])
    s = np.clip(np.concatenate([[0], np.cumsum(np.diff(arc) * pace[1:])]), 0, arc[-1])
    offset = np.zeros_like(t)
    for _ in range(rng.integers(0, 4)):
        ramp = np.clip((t - rng.uniform(0, t[-1])) / rng.uniform(1.5, 3.5), 0, 1)
        offset += rng.uniform(-2.5, 2.5) * (10 * ramp**3 - 15 * ramp**4 + 6 * ramp**5)
    offset = np.clip(offset, -3.0, 3.0)
    heading = np.unwrap(yaw_rad)
    order = np.maximum.accumulate(arc + 1e-9 * np.arange(len(arc)))
    x, y, yaw = (np.interp(s, order, c) for c in (xy_m[:, 0], xy_m[:, 1], heading))
    moved = np.stack([x - offset * np.sin(yaw), y + offset * np.cos(yaw)], axis=-1)
    travelled = np.maximum(np.gradient(s), 0.02)
    slip = np.where(np.gradient(s) > 0.05, np.arctan2(np.gradient(offset), travelled), 0.0)
    return moved, yaw + slip


def render_frames(
    town: Town, scenario: Scenario, weather: str, frames: NDArray[np.int64], image_hw: tuple[int, int] = IMAGE_HW
) -> NDArray[np.uint8]:
    """True video [T, V, H, W, 3] of the given frames."""
    assert town.renderer is not None
    height, width = image_hw
    cameras = tuple(c.resized(width, height) for c in scenario.scene.cameras)
    out = []
    for frame in frames:
        poses = np.repeat(scenario.ego_to_global[frame][None], len(cameras), axis=0)
        seen = render_agents(scenario, int(frame))
        out.append(town.renderer.render(cameras, poses, seen, WEATHERS[weather], int(frame)).image)
    return np.stack(out)


def render_agents(scenario: Scenario, frame: int) -> list[RenderAgent]:
    """The agents of one frame, each with the colour that its token gives it."""
    a = scenario.agents
    return [
        RenderAgent(
            detection_class=a.detection_classes[i] or "car", center_m=a.centers_m[i, frame], yaw_rad=float(a.yaws_rad[i, frame]),
            size_wlh_m=a.sizes_wlh_m[i], seed=appearance_seed(a.instance_tokens[i]),
        )
        for i in np.flatnonzero(a.present[:, frame])
        if a.detection_classes[i] is not None
    ]  # fmt: skip


def _agents(world: World) -> AgentBoxes:
    log, specs = world.log, world.specs
    a, t = log.yaw_rad.shape
    sizes = np.array([s.size_wlh_m for s in specs])
    heights = np.repeat(sizes[:, None, 2:] / 2, t, axis=1)
    direction = rotation_from_yaw(log.yaw_rad)[..., :2, 0]
    return AgentBoxes(
        instance_tokens=tuple(s.token for s in specs), detection_classes=tuple(s.detection_class for s in specs),
        categories=tuple(s.category for s in specs), sizes_wlh_m=sizes, centers_m=np.concatenate([log.xy_m, heights], axis=-1),
        yaws_rad=log.yaw_rad, velocities_mps=direction * log.speed_mps[..., None], present=log.present,
        label_sources=np.full((a, t), LabelSource.SIMULATED, dtype=np.int8), num_lidar_pts=np.full((a, t), -1, dtype=np.int32),
        attributes=tuple(("",) * t for _ in specs),
    )  # fmt: skip


def _scene(city: City, times: NDArray[np.int64], poses: NDArray[np.float64], words: str, date: str, seed: int) -> Scene:
    return Scene(
        dataroot=Path("."), version="training", token=f"{city.seed:08x}{seed:08x}", name=f"town-{city.seed}-{seed}",
        description=f"{words}, training drive", location=city.location, date_captured=date, key_timestamps_us=times[::KEY_FRAME_EVERY],
        sample_tokens=(), cameras=make_rig(), frames={}, lidar_paths=(), lidar_to_ego=LIDAR_TO_EGO,
        ego=EgoTrack(timestamps_us=times, ego_to_global=poses), agents=(), map=scene_map(city),
    )  # fmt: skip
