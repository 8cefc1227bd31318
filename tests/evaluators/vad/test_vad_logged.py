"""A logged scene as VAD reads it, against the devkit's own numbers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nuscenes import NuScenes

from dwm.errors import InputError
from dwm.scenes.clips import read_images
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.types import CAMERAS
from evaluators.boxes import boxes_of_agents, boxes_of_scene
from evaluators.vad.config import CONFIGS
from evaluators.vad.inputs import key_frame
from evaluators.vad.logged import logged_stretch
from tests.evaluators.vad.vad_factories import TINY


@pytest.fixture(scope="module")
def scene(pg_dataroot: Path):
    return read_scene(pg_dataroot, "v1.0-mini", "scene-0001")


def test_boxes_are_the_logs_annotations_and_seen_those_with_points(scene):
    stretch = logged_stretch(scene)
    assert len(stretch) == len(scene.sample_tokens) and stretch.given == 0
    for k in (0, len(stretch) - 1):
        own, true = (
            boxes_of_agents(stretch.drive.agents, k, stretch.drive.ego_to_global[k]),
            boxes_of_scene(scene, k, min_visibility=0),
        )
        np.testing.assert_allclose(own.centers_m, true.centers_m, atol=1e-9)
        np.testing.assert_allclose(own.sizes_wlh_m, true.sizes_wlh_m)
        np.testing.assert_allclose(np.cos(own.yaws_rad - true.yaws_rad), 1, atol=1e-9)
        np.testing.assert_array_equal(own.num_pts, true.num_pts)
        rows = stretch.drive.agents.present[:, k]
        np.testing.assert_array_equal(stretch.seen[k][rows], stretch.drive.agents.num_lidar_pts[rows, k] > 0)
        assert not stretch.seen[k][~rows].any()
    assert {line.class_name for line in stretch.lines[0]} >= {"divider", "boundary"}


def test_what_the_radar_alone_met_is_truth_and_what_no_sensor_met_is_not(scene):
    agents = [
        replace(a, num_lidar_pts=0 * a.num_lidar_pts, num_radar_pts=0 * a.num_radar_pts + (n == 0))
        for n, a in enumerate(scene.agents)
    ]
    seen = logged_stretch(replace(scene, agents=tuple(agents))).seen
    assert seen[:, 0].sum() == len(agents[0].timestamps_us) and not seen[:, 1:].any()


def test_a_frame_is_read_from_its_key_images_with_the_cars_motion(scene, pg_dataroot: Path):
    frame = logged_stretch(scene).frame(1, TINY)
    nusc = NuScenes("v1.0-mini", str(pg_dataroot), verbose=False)
    sample = nusc.get("sample", scene.sample_tokens[1])
    paths = [nusc.get_sample_data_path(sample["data"][channel]) for channel in CAMERAS]
    at = [next(i for i, f in enumerate(scene.frames[c]) if str(f.path) == str(p)) for c, p in zip(CAMERAS, paths, strict=True)]
    images = np.stack([read_images(scene, channel, [i])[0] for channel, i in zip(CAMERAS, at, strict=True)])
    messages = json.loads((pg_dataroot / "can_bus" / "scene-0001_pose.json").read_text())
    said = next(m for m in messages if m["utime"] > sample["timestamp"])
    expected = key_frame(scene, 1, images, TINY, np.concatenate([said[name] for name in ("accel", "rotation_rate", "vel")]))
    np.testing.assert_array_equal(frame.images_V3hw, expected.images_V3hw)
    np.testing.assert_allclose(frame.can_bus_18, expected.can_bus_18)
    assert abs(frame.can_bus_18[7:16]).max() > 0
    unread = logged_stretch(scene).frame(1, replace(TINY, can_motion=False)).can_bus_18
    assert not unread[7:16].any() and np.array_equal(unread[:7], frame.can_bus_18[:7])


def test_the_networks_that_were_trained_with_the_cars_motion_read_it():
    assert {name for name, config in CONFIGS.items() if config.can_motion} == {"vad_tiny", "vad_base"}


def test_without_a_can_bus_the_motion_is_zero_and_a_broken_one_is_told(scene, pg_dataroot: Path, tmp_path: Path):
    shutil.copytree(pg_dataroot / "maps", tmp_path / "maps")
    bare = replace(scene, dataroot=tmp_path)
    assert logged_stretch(bare).motion is None
    assert not logged_stretch(bare).frame(1, TINY).can_bus_18[7:16].any()
    (tmp_path / "can_bus").mkdir()
    for name in ("synth-1", "scene-0161"):  # the devkit takes no such name, and has no bus of that scene
        (tmp_path / "can_bus" / f"{name}_pose.json").write_text("[]")
        assert logged_stretch(replace(bare, name=name)).motion is None
    (tmp_path / "can_bus" / "scene-0001_pose.json").write_text('[{"utime": 1}]')
    with pytest.raises(InputError, match="cannot read its messages"):
        logged_stretch(bare)
    shutil.rmtree(tmp_path / "maps")
    with pytest.raises(InputError, match="no such map expansion"):
        logged_stretch(bare)
