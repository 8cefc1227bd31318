"""Planted faults do what they say, and leave the given frame and the labels alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dwm.scenario.build import build_scenario
from dwm.scenario.types import Perturbation, Scenario
from dwm.scenes.types import CAMERAS
from evaluators.corruptions import IN_PICTURES, IN_WHAT_IS_FILMED, NOISE_GREY_LEVELS, STRANGERS, with_strangers, wrong_path
from tests.factories import make_scene

FPS = 12.0


def video(frames=30):
    rng = np.random.default_rng(0)
    return rng.integers(60, 190, (frames, 6, 8, 14, 3), np.uint8)


@pytest.mark.parametrize("name", IN_PICTURES)
def test_the_given_frame_stays_and_the_true_video_is_not_touched(name):
    true = video()
    before = true.copy()
    faulty = IN_PICTURES[name](true, FPS, 1)
    assert faulty.shape == true.shape and faulty.dtype == np.uint8
    assert np.array_equal(faulty[0], true[0]) and np.array_equal(true, before)
    assert not np.array_equal(faulty[-1], true[-1])


def test_pictures_change_as_told():
    true = video()
    left, right = CAMERAS.index("CAM_FRONT_LEFT"), CAMERAS.index("CAM_FRONT_RIGHT")
    swapped = IN_PICTURES["swapped cameras"](true, FPS, 1)
    assert np.array_equal(swapped[5, left], true[5, right]) and np.array_equal(swapped[5, right], true[5, left])
    assert np.array_equal(swapped[:, 0], true[:, 0])
    frozen = IN_PICTURES["frozen video"](true, FPS, 1)
    assert np.array_equal(frozen[:13], true[:13]) and (frozen[13:] == true[12]).all()
    assert np.array_equal(IN_PICTURES["left-right mirrored"](true, FPS, 1)[3, 2, :, 0], true[3, 2, :, -1])
    assert np.array_equal(IN_PICTURES["time-reversed"](true, FPS, 1)[1], true[-1])
    noise = IN_PICTURES["noise"](true, FPS, 1)[1:].astype(float) - true[1:]
    assert noise.std() == pytest.approx(NOISE_GREY_LEVELS, rel=0.02)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    move = Perturbation(name="lateral_offset", params={"offset_m": 1.5, "onset_s": 1.0, "ramp_s": 3.0}, severity=0.5)
    made = build_scenario(make_scene(), move, 0, duration_s=6.0)
    assert isinstance(made, Scenario)
    return made


def test_what_is_filmed_changes_and_the_labels_do_not(scenario):
    was = scenario.agents.present.copy()
    filmed = {name: fault(scenario) for name, fault in IN_WHAT_IS_FILMED.items()}
    assert np.array_equal(filmed["wrong path"].ego_to_global, scenario.baseline_ego_to_global)
    assert abs(filmed["wrong path"].ego_to_global[-1] - scenario.ego_to_global[-1]).max() == pytest.approx(1.5, abs=0.1)
    assert not filmed["missing agents"].agents.present.any()
    assert np.array_equal(scenario.agents.present, was) and was.any()


def test_strangers_are_cars_clear_of_everybody(scenario):
    agents, known = with_strangers(scenario).agents, len(scenario.agents.instance_tokens)
    count = len(agents.instance_tokens) - known
    assert 0 < count <= STRANGERS and set(agents.detection_classes[known:]) == {"car"}
    assert len(set(agents.instance_tokens)) == known + count
    spots = agents.centers_m[known:, 0, :2]
    path = scenario.ego_to_global[:, :2, 3]
    assert np.linalg.norm(spots[:, None] - path, axis=-1).min() >= 3.0
    others = scenario.agents.centers_m[scenario.agents.present][:, :2]
    assert np.linalg.norm(spots[:, None] - others, axis=-1).min() >= 5.0
    assert np.ptp(agents.centers_m[known:], axis=1).max() == 0.0
    assert all(
        len(field) == known + count for field in (agents.sizes_wlh_m, agents.present, agents.yaws_rad, agents.attributes)
    )


def test_the_wrong_path_of_an_unmoved_ego_is_the_right_one(scenario):
    still = replace(scenario, ego_to_global=scenario.baseline_ego_to_global)
    assert np.array_equal(wrong_path(still).ego_to_global, still.ego_to_global)
