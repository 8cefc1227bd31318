from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dwm.models.dit import IMAGE_HW
from dwm.scenario.build import build_scenario
from dwm.scenario.types import Perturbation, Scenario
from dwm.scenes.clips import read_images
from dwm.scenes.nuscenes import nearest_frames, read_scene
from dwm.scenes.types import CAMERAS
from pipelines.logged_clip import logged_clip

SHIFT = Perturbation(name="lateral_offset", params={"offset_m": 0.3, "onset_s": 0.0, "ramp_s": 1.0}, severity=0.0)


@pytest.fixture
def shifted(pg_dataroot: Path) -> Scenario:
    scenario = build_scenario(read_scene(pg_dataroot, "v1.0-mini", "scene-0001"), SHIFT, 0, duration_s=1.0)
    assert isinstance(scenario, Scenario)
    return scenario


def _without(scenario: Scenario, channel: str, from_us: int) -> Scenario:
    """The scenario with the images of a channel gone from a time on."""
    gone = Path("gone.jpg")
    frames = tuple(
        dataclasses.replace(f, path=gone if f.timestamp_us >= from_us else f.path) for f in scenario.scene.frames[channel]
    )
    scene = dataclasses.replace(scenario.scene, frames={**scenario.scene.frames, channel: frames})
    return dataclasses.replace(scenario, scene=scene)


def test_it_shows_the_log_at_its_key_frames_whatever_the_clip_does(shifted: Scenario):
    log = logged_clip(shifted, IMAGE_HW)
    assert log is not None
    assert log.frames == (0, 6)
    assert log.scenario.ego_to_global[6] == pytest.approx(shifted.baseline_ego_to_global[6])
    assert np.abs(log.scenario.ego_to_global[6] - shifted.ego_to_global[6]).max() > 0.05
    nearest = nearest_frames(shifted.scene, shifted.timestamps_us[[6]])
    for v, channel in enumerate(CAMERAS):
        expected = read_images(shifted.scene, channel, nearest[channel].tolist(), log.images.shape[2:4])
        assert np.array_equal(log.images[1, v], expected[0])


def test_it_ends_before_the_first_key_frame_that_lacks_an_image(shifted: Scenario):
    log = logged_clip(_without(shifted, "CAM_BACK", int(shifted.timestamps_us[3])), IMAGE_HW)
    assert log is not None
    assert log.frames == (0,)
    assert log.images.shape == (1, 6, 128, 224, 3)


def test_without_any_image_there_is_no_reference(shifted: Scenario):
    assert logged_clip(_without(shifted, "CAM_BACK", 0), IMAGE_HW) is None
