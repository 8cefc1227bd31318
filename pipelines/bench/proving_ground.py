"""The proving ground's own promises: speed, labels that lie on their objects, counts that can be recounted."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from nuscenes.utils.data_classes import Box, LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box
from pyquaternion import Quaternion
from tqdm import tqdm

from dwm.geometry import apply, invert, project
from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from dwm.scenes.dataroot import open_dataroot
from dwm.scenes.nuscenes import list_scenes, read_scene
from dwm.scenes.proving_ground.city import FIRST_HELD_OUT_TOWN
from dwm.scenes.proving_ground.counterfactual import CounterfactualRenderer, frame_agents, open_counterfactual
from dwm.training.sequences import drive, open_town, render_frames

_SIZE_HW = (128, 224)
_TIMED_FRAMES = 20


def bench_proving_ground(dataroot: Path, version: str) -> str:
    """Markdown table for a built world."""
    rate, agents = _frames_per_second()
    inside, total = 0, 0
    for name in tqdm(list_scenes(dataroot, version), desc="centres", disable=None):
        scene = read_scene(dataroot, version, name)
        truth = open_counterfactual(scene)
        scenario = build_scenario(
            scene, BASELINE, 0, duration_s=float(scene.key_timestamps_us[-1] - scene.key_timestamps_us[0]) * 1e-6
        )
        assert isinstance(scenario, Scenario)
        assert truth is not None
        for frame in range(0, len(scenario.timestamps_us), 12):
            hit, seen = _centres(truth, scenario, frame)
            inside, total = inside + hit, total + seen
    equal, counted = _recount(dataroot, version)
    return "\n".join([
        "| figure | value | n |", "|---|---|---|",
        f"| six-camera frames a second, {_SIZE_HW[0]}x{_SIZE_HW[1]}, {agents} agents, {torch.get_num_threads()} threads | {rate:.1f} | {_TIMED_FRAMES} |",
        f"| projected centres of fully visible boxes on a pixel of their own instance | {inside / max(total, 1):.2%} | {total} |",
        f"| annotations whose LiDAR count equals a devkit recount | {equal / max(counted, 1):.2%} | {counted} |",
    ])  # fmt: skip


def _frames_per_second() -> tuple[float, int]:
    town = open_town(FIRST_HELD_OUT_TOWN)
    scenario, weather = drive(town, 0, duration_s=6.0)
    render_frames(town, scenario, weather, np.arange(2))
    started = time.perf_counter()
    render_frames(town, scenario, weather, np.arange(_TIMED_FRAMES))
    return _TIMED_FRAMES / (time.perf_counter() - started), len(scenario.agents.yaws_rad)


def _centres(truth: CounterfactualRenderer, scenario: Scenario, frame: int) -> tuple[int, int]:
    """Of agents that nothing hides in a camera: how many centres fall on their own pixels, and how many there are.

    Fully visible: the whole box inside the image, in front of the camera, and at none of 27 points that span its middle half
    a surface in front of the box.
    """
    views = truth.views(scenario, frame, _SIZE_HW)
    _, agents = frame_agents(scenario, frame)
    hits = seen = 0
    spread = np.stack(np.meshgrid(*[[-0.5, 0.0, 0.5]] * 3, indexing="ij"), axis=-1).reshape(-1, 3) / 2
    for v, camera in enumerate(scenario.scene.cameras):
        small = camera.resized(_SIZE_HW[1], _SIZE_HW[0])
        to_camera = invert(scenario.ego_to_global[frame] @ small.camera_to_ego)
        for i, agent in enumerate(agents):
            width, length, height = agent.size_wlh_m
            cos, sin = np.cos(agent.yaw_rad), np.sin(agent.yaw_rad)
            turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
            box = np.array([length, width, height])
            corners = (np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3), axis=-1).reshape(-1, 3) * box) @ turn.T + agent.center_m
            uv, depth = project(apply(to_camera, corners), small.intrinsics)
            if depth.min() < 0.5 or uv.min() < 0 or (uv >= [_SIZE_HW[1], _SIZE_HW[0]]).any():
                continue
            inner = (spread * box) @ turn.T + agent.center_m
            pixels, _ = project(apply(to_camera, np.vstack([agent.center_m, inner])), small.intrinsics)
            column, row = np.floor(pixels).astype(int).T
            # Whatever hides a part of the box is nearer than all of it.
            if (views.depth_m[v, row, column] < depth.min() - 0.05).any():
                continue
            seen, hits = seen + 1, hits + int(views.instance[v, row[0], column[0]] == i)
    return hits, seen


def _recount(dataroot: Path, version: str) -> tuple[int, int]:
    """Annotations whose ``num_lidar_pts`` equals what the devkit counts in the stored sweep."""
    nusc = open_dataroot(dataroot, version)
    equal = 0
    for sample in tqdm(nusc.sample, desc="recount", disable=None):
        data = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(str(Path(nusc.dataroot) / data["filename"])).points[:3]
        mount, pose = (
            nusc.get("calibrated_sensor", data["calibrated_sensor_token"]),
            nusc.get("ego_pose", data["ego_pose_token"]),
        )
        for token in sample["anns"]:
            box: Box = nusc.get_box(token)
            for frame in (pose, mount):
                box.translate(-np.array(frame["translation"]))
                box.rotate(Quaternion(frame["rotation"]).inverse)
            equal += int(points_in_box(box, points).sum()) == nusc.get("sample_annotation", token)["num_lidar_pts"]
    return equal, len(nusc.sample_annotation)
