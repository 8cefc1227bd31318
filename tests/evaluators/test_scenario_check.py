"""The second opinion agrees with what was emitted, and is not fooled by planted faults."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dwm.geometry import transform_from_xy_yaw
from dwm.scenario.build import build_scenario
from dwm.scenario.types import Perturbation, Scenario
from evaluators.scenario_check import RoadPolygons, motion_of, second_opinion
from tests.factories import make_scene

FPS = 12.0
T = np.arange(241) / FPS
OFFSET = Perturbation(name="lateral_offset", params={"offset_m": 1.5, "onset_s": 1.0, "ramp_s": 3.0}, severity=0.5)


@pytest.fixture(scope="module")
def scene():
    return make_scene()


@pytest.fixture(scope="module")
def scenario(scene) -> Scenario:
    made = build_scenario(scene, OFFSET, 0, duration_s=10.0)
    assert isinstance(made, Scenario)
    return made


def test_a_feasible_scenario_breaks_nothing(scenario, scene):
    found = second_opinion(scenario, RoadPolygons(scene))
    assert found.broken == () and found.collisions == 0 and found.off_road_m == 0.0
    # 10 m/s, 1.5 m aside in 3 s: the quintic's strongest bend is 5.77 times the offset over the square of the time.
    assert found.lateral_acceleration_mps2 == pytest.approx(5.77 * 1.5 / 9, rel=0.15)


def test_a_path_into_another_car_is_a_collision(scenario, scene):
    boxes = scenario.agents
    centers = boxes.centers_m.copy()
    i = boxes.instance_tokens.index("leader")
    # It touches the moved ego's left side, but would not have touched the log's.
    centers[i, 60:70, :2] = scenario.ego_to_global[60:70, :2, 3] + (1.0, 1.7)
    found = second_opinion(replace(scenario, agents=replace(boxes, centers_m=centers)), RoadPolygons(scene))
    assert found.broken == ("collisions",) and found.collisions == 10


def test_a_path_off_the_road_is_told_with_its_distance(scenario, scene):
    poses = scenario.ego_to_global.copy()
    poses[:, 1, 3] -= 6.5
    found = second_opinion(replace(scenario, ego_to_global=poses), RoadPolygons(scene))
    # The road ends at y = -4; the ego's right side is 0.925 m from its middle, and half a metre is tolerated.
    assert "off_road_m" in found.broken and found.off_road_m == pytest.approx(6.5 + 0.925 - 4.0 - 0.5, abs=0.15)


def test_a_jump_breaks_the_kinematic_limits(scenario, scene):
    poses = scenario.ego_to_global.copy()
    poses[60:, 0, 3] += 1.0
    assert "jerk_mps3" in second_opinion(replace(scenario, ego_to_global=poses), RoadPolygons(scene)).broken


def test_derivatives_are_those_of_closed_forms():
    angle = 8.0 * T / 40.0
    circle = motion_of(transform_from_xy_yaw(40 * np.sin(angle), 40 * (1 - np.cos(angle)), angle), FPS, 2.84)
    assert circle["lateral_acceleration_mps2"][24:-24] == pytest.approx(8.0**2 / 40, rel=1e-2)
    assert circle["curvature_per_m"][24:-24] == pytest.approx(1 / 40, rel=1e-2)
    assert circle["steering_rate_radps"][36:-36].max() < 1e-6
    faster = motion_of(transform_from_xy_yaw(5 * T + 0.5 * 1.5 * T**2, 0 * T, 0 * T), FPS, 2.84)
    assert faster["acceleration_mps2"][24:-24] == pytest.approx(1.5, rel=1e-3)
    assert faster["deceleration_mps2"].max() < 0.01 and faster["jerk_mps3"][24:-24].max() < 1e-6
    jerk = motion_of(transform_from_xy_yaw(30 * T - 2.0 * T**3 / 6, 0 * T, 0 * T), FPS, 2.84)
    assert jerk["jerk_mps3"][24:-24] == pytest.approx(2.0, rel=1e-3)


def test_where_the_map_knows_no_road_nothing_is_judged_off_it():
    scene = make_scene(ego_xy_m=(1e5, 1e5), agents=())
    made = build_scenario(scene, OFFSET, 0, duration_s=5.0)
    assert isinstance(made, Scenario) and second_opinion(made, RoadPolygons(scene)).broken == ()
