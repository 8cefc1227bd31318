"""Logs with something missing, made from a whole one: every family gives a scenario or says why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from dwm.scenario.build import ScenarioBuilder
from dwm.scenario.perturbations import BASELINE, FAMILIES, sample_perturbation
from dwm.scenario.types import Rejection
from dwm.scenes.nuscenes import list_scenes, read_scene
from dwm.scenes.types import AgentTrack, EgoTrack, Scene
from evaluators.scenario_check import RoadPolygons, second_opinion


def parked(scene: Scene) -> Scene:
    """The ego never moves."""
    poses = np.repeat(scene.ego.ego_to_global[:1], len(scene.ego.timestamps_us), axis=0)
    return replace(scene, ego=EgoTrack(timestamps_us=scene.ego.timestamps_us, ego_to_global=poses))


def two_key_frames(scene: Scene) -> Scene:
    """The log ends after half a second."""
    last = scene.key_timestamps_us[min(1, len(scene.key_timestamps_us) - 1)]
    agents = tuple(kept for a in scene.agents if (kept := _until(a, int(last))) is not None)
    return replace(
        scene, key_timestamps_us=scene.key_timestamps_us[:2], sample_tokens=scene.sample_tokens[:2],
        lidar_paths=scene.lidar_paths[:2], agents=agents,
    )  # fmt: skip


def annotated_once(scene: Scene) -> Scene:
    """Every agent has one annotation."""
    return replace(scene, agents=tuple(_rows(a, slice(0, 1)) for a in scene.agents))


def no_lanes(scene: Scene) -> Scene:
    """The map is a drivable mask."""
    return replace(scene, map=replace(scene.map, lane_graph=None))


def off_the_map(scene: Scene) -> Scene:
    """Ego and agents are 100 km away from everything the map knows."""
    poses = scene.ego.ego_to_global.copy()
    poses[:, 0, 3] += 1e5
    agents = tuple(replace(a, centers_m=a.centers_m + np.array([1e5, 0.0, 0.0])) for a in scene.agents)
    return replace(scene, ego=EgoTrack(timestamps_us=scene.ego.timestamps_us, ego_to_global=poses), agents=agents)


LOGS: dict[str, Callable[[Scene], Scene]] = {
    "parked ego": parked, "two key frames": two_key_frames, "agents annotated once": annotated_once, "no lanes": no_lanes,
    "ego off the map": off_the_map,
}  # fmt: skip


def bench_degenerate(dataroot: Path, version: str, duration_s: float) -> str:
    """Markdown table: what each family makes of each log, and whether the second opinion agrees with what was emitted."""
    scene = read_scene(dataroot, version, list_scenes(dataroot, version)[0])
    rows, broken = ["| family | " + " | ".join(LOGS) + " |", "|---|" + "---|" * len(LOGS)], 0
    shared = {name: ScenarioBuilder(change(scene), 0, duration_s=duration_s) for name, change in LOGS.items()}
    for family in (BASELINE.name, *FAMILIES):
        cells = []
        for builder in shared.values():
            made = builder.build(sample_perturbation(family, 0.5, np.random.default_rng(0)))
            cells.append(made.reason if isinstance(made, Rejection) else "scenario")
            if not isinstance(made, Rejection):
                broken += bool(second_opinion(made, RoadPolygons(builder.scene)).broken)
        rows.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"{broken} emitted scenarios break a limit by the second opinion."])


def _until(agent: AgentTrack, timestamp_us: int) -> AgentTrack | None:
    count = int(np.searchsorted(agent.timestamps_us, timestamp_us, side="right"))
    return _rows(agent, slice(0, count)) if count else None


def _rows(agent: AgentTrack, rows: slice) -> AgentTrack:
    """Some of the agent's annotations."""
    return replace(
        agent, timestamps_us=agent.timestamps_us[rows], centers_m=agent.centers_m[rows], rotations_wxyz=agent.rotations_wxyz[rows],
        velocities_mps=agent.velocities_mps[rows], attributes=agent.attributes[rows], num_lidar_pts=agent.num_lidar_pts[rows],
        num_radar_pts=agent.num_radar_pts[rows],
        visibility=agent.visibility[rows], annotation_tokens=agent.annotation_tokens[rows],
    )  # fmt: skip
