import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dwm.errors import InputError
from dwm.geometry import quaternion_from_yaw, rotation_from_quaternion, transform_from_xy_yaw, yaw_from_rotation
from dwm.scenario.types import AgentBoxes, LabelSource, Perturbation, Scenario
from dwm.scenes.clips import read_images
from dwm.scenes.interpolation import boxes_at
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.proving_ground.build import WORLD_FILE
from dwm.scenes.proving_ground.counterfactual import open_counterfactual
from dwm.scenes.types import Scene

SIZE_HW = (32, 56)


def _scenario(scene: Scene, timestamp_us: int, shift_m: float = 0.0) -> Scenario:
    """One frame of a scene's log, the ego moved to the left."""
    boxes = boxes_at(scene, timestamp_us)
    count = len(boxes.agent_indices)
    agents = [scene.agents[i] for i in boxes.agent_indices]
    ego = scene.ego.at(np.array([timestamp_us]))
    return Scenario(
        scene=scene, perturbation=Perturbation(name="shift", params={}, severity=0.0), seed=0, fps=12.0,
        timestamps_us=np.array([timestamp_us]), ego_to_global=ego @ transform_from_xy_yaw(0.0, shift_m, 0.0)[None],
        baseline_ego_to_global=ego, is_key_frame=np.array([True]), log_end_index=1, prompt="",
        agents=AgentBoxes(
            instance_tokens=tuple(a.instance_token for a in agents), detection_classes=tuple(a.detection_class for a in agents),
            categories=tuple(a.category for a in agents), sizes_wlh_m=boxes.sizes_wlh_m, centers_m=boxes.centers_m[:, None],
            yaws_rad=yaw_from_rotation(rotation_from_quaternion(boxes.rotations_wxyz))[:, None],
            velocities_mps=boxes.velocities_mps[:, None], present=np.ones((count, 1), bool),
            label_sources=np.full((count, 1), LabelSource.LOG, np.int8), num_lidar_pts=np.full((count, 1), -1, np.int32),
            attributes=(("",),) * count,
        ),
    )  # fmt: skip


def _error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def test_an_unmoved_path_shows_the_logged_images_and_a_moved_path_does_not(pg_dataroot: Path) -> None:
    scene = read_scene(pg_dataroot, "v1.0-mini", "scene-0002")
    world = open_counterfactual(scene)
    assert world is not None
    for camera in scene.cameras:
        index = [i for i, f in enumerate(scene.frames[camera.channel]) if f.is_key_frame][1]
        time = scene.frames[camera.channel][index].timestamp_us
        logged = read_images(scene, camera.channel, [index])[0]
        alone = replace(scene, cameras=(camera,))  # filmed alone, a camera draws the log's own noise
        same = world.views(_scenario(alone, time), 0, SIZE_HW).image[0]
        moved = world.views(_scenario(alone, time, shift_m=2.0), 0, SIZE_HW).image[0]
        # JPEG and the 2 Hz interpolation of the agents leave a little.
        assert _error(same, logged) < 3.0
        assert _error(moved, logged) > 2 * _error(same, logged)


def test_the_same_frame_is_rendered_bit_for_bit_again(pg_dataroot: Path) -> None:
    scene = read_scene(pg_dataroot, "v1.0-mini", "scene-0001")
    scenario = _scenario(scene, int(scene.key_timestamps_us[1]), shift_m=1.0)
    images = [w.views(scenario, 0, SIZE_HW).image for w in (open_counterfactual(scene), open_counterfactual(scene)) if w]
    np.testing.assert_array_equal(*images)


def test_an_agent_keeps_its_looks_when_others_leave(pg_dataroot: Path) -> None:
    scene = read_scene(pg_dataroot, "v1.0-mini", "scene-0001")
    world = open_counterfactual(scene)
    assert world is not None
    full = _scenario(scene, int(scene.key_timestamps_us[1]))
    views = world.views(full, 0, SIZE_HW)
    counts = np.bincount(views.instance[views.instance >= 0])
    kept = int(np.argmax(counts))
    present = np.zeros_like(full.agents.present)
    present[kept] = True
    alone = world.views(replace(full, agents=replace(full.agents, present=present)), 0, SIZE_HW)
    both = (views.instance == kept) & (alone.instance == 0)
    assert both.sum() >= 0.9 * counts[kept] > 0
    assert _error(views.image[both], alone.image[both]) < 2.0


def test_a_dataroot_without_a_world_file_has_no_counterfactual(pg_dataroot: Path, tmp_path: Path) -> None:
    scene = read_scene(pg_dataroot, "v1.0-mini", "scene-0001")
    assert open_counterfactual(replace(scene, dataroot=tmp_path)) is None


def test_a_damaged_world_file_is_named(pg_dataroot: Path, tmp_path: Path) -> None:
    scene = replace(read_scene(pg_dataroot, "v1.0-mini", "scene-0001"), dataroot=tmp_path)
    shutil.copy(pg_dataroot / WORLD_FILE, tmp_path)
    facts = json.loads((tmp_path / WORLD_FILE).read_text())
    del facts["scenes"]["scene-0001"]["weather"]
    (tmp_path / WORLD_FILE).write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"proving_ground\.json.*scene-0001.*weather"):
        open_counterfactual(scene)


def test_yaws_survive_the_tables(pg_dataroot: Path) -> None:
    scene = read_scene(pg_dataroot, "v1.0-mini", "scene-0001")
    yaw = yaw_from_rotation(rotation_from_quaternion(scene.agents[0].rotations_wxyz))
    np.testing.assert_allclose(np.abs(np.sum(quaternion_from_yaw(yaw) * scene.agents[0].rotations_wxyz, axis=1)), 1.0)
