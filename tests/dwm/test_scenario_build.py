"""Scenarios of hand-made scenes: labels, continuation, reactions, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dwm.errors import InputError
from dwm.geometry import yaw_from_rotation
from dwm.scenario.agents import default_attribute
from dwm.scenario.build import build_scenario, key_frames
from dwm.scenario.feasibility import overlaps
from dwm.scenario.perturbations import BASELINE, FAMILIES, sample_perturbation
from dwm.scenario.reaction import FRONT_M
from dwm.scenario.types import LabelSource, Perturbation, Rejection, Scenario
from dwm.scenes.types import EgoTrack
from tests.factories import START_US, default_agents, key_times, make_agent, make_scene

OFFSET = Perturbation(name="lateral_offset", params={"offset_m": 2.0, "onset_s": 1.0, "ramp_s": 4.0}, severity=0.6)
BRAKE = Perturbation(name="hard_brake", params={"decel_mps2": 5.0, "onset_s": 2.0, "hold_s": 3.0}, severity=0.75)
SLOWER = Perturbation(name="speed_scale", params={"factor": 0.7, "onset_s": 1.0, "ramp_s": 3.0}, severity=0.7)
FASTER = Perturbation(name="speed_scale", params={"factor": 1.4, "onset_s": 0.5, "ramp_s": 3.0}, severity=1.0)


def built(scene, perturbation=BASELINE, seed=0, **options) -> Scenario:
    result = build_scenario(scene, perturbation, seed, **options)
    assert isinstance(result, Scenario), result
    return result


@pytest.fixture(scope="module")
def minute() -> Scenario:
    return built(make_scene(key_frames=21), duration_s=25.0)


def row(scenario: Scenario, token: str) -> int:
    return scenario.agents.instance_tokens.index(token)


def test_the_timeline_starts_at_a_key_frame_and_marks_two_a_second(minute):
    assert len(minute.timestamps_us) == 300 and minute.timestamps_us[0] == START_US
    assert np.array_equal(np.flatnonzero(minute.is_key_frame), np.arange(0, 300, 6))
    assert minute.timestamps_us[6] - START_US == 500_000
    # The last key frame, at 10 s, is frame 120.
    assert minute.log_end_index == 121
    assert np.flatnonzero(key_frames(20, 10.0)).tolist() == [0, 5, 10, 15]
    assert np.flatnonzero(key_frames(10, 3.0)).tolist() == [0, 2, 3, 5, 6, 8, 9]


def test_a_later_start_begins_at_the_nearest_key_frame():
    scenario = built(make_scene(), duration_s=1.0, start_s=3.1)
    assert scenario.timestamps_us[0] == START_US + 3_000_000
    assert scenario.ego_to_global[0, 0, 3] == pytest.approx(30.0)


def test_the_baseline_is_the_log_inside_the_log(minute):
    logged = minute.scene.ego.at(minute.timestamps_us[:121])
    assert np.array_equal(minute.ego_to_global[:121], logged)
    assert np.array_equal(minute.ego_to_global, minute.baseline_ego_to_global)


def test_the_continuation_has_no_jump_in_position_heading_or_speed():
    scene = make_scene(key_frames=11, ego_xy_m=(0.0, 1.0), agents=())
    scenario = built(scene, duration_s=15.0)
    step = np.diff(scenario.ego_to_global[:, :2, 3], axis=0)
    speed, yaw = np.linalg.norm(step, axis=1) * 12, yaw_from_rotation(scenario.ego_to_global)
    assert np.abs(np.diff(speed)).max() < 0.15
    assert np.abs(np.diff(yaw)).max() < 0.02
    assert speed.min() > 9.0 and abs(scenario.ego_to_global[-1, 1, 3]) < 0.25


def test_boxes_are_those_of_the_devkit_and_know_their_source(minute):
    boxes = minute.agents
    i = row(minute, "walker")
    t = np.arange(121) / 12
    assert boxes.centers_m[i, :121, 0] == pytest.approx(20.0 + 1.2 * t, abs=1e-5)
    assert boxes.label_sources[i, 12] == LabelSource.LOG and boxes.label_sources[i, 13] == LabelSource.INTERPOLATED
    assert boxes.num_lidar_pts[i, 12] == 7 and boxes.num_lidar_pts[i, 13] == -1
    assert boxes.velocities_mps[i, 30] == pytest.approx([1.2, 0.0], abs=1e-4)
    assert boxes.attributes[i][30] == "pedestrian.moving"
    assert set(boxes.label_sources[i, 121:].tolist()) == {LabelSource.SIMULATED}
    assert (boxes.num_lidar_pts[:, 121:] == -1).all()


def test_a_turning_box_is_turned_the_short_way_between_key_frames():
    turning = make_agent("turning", lambda t: (30.0, 3.5, np.pi - 0.2 + 0.8 * t), key_times(3))
    scenario = built(make_scene(key_frames=3, agents=[turning]), duration_s=0.9)
    yaw = np.unwrap(scenario.agents.yaws_rad[0])
    assert yaw - yaw[0] == pytest.approx(0.8 * np.arange(11) / 12, abs=1e-5)


def test_nothing_jumps_where_the_log_ends(minute):
    there = minute.agents.present[:, 120] & minute.agents.present[:, 121]
    step = np.linalg.norm(minute.agents.centers_m[:, 121] - minute.agents.centers_m[:, 120], axis=1)[there]
    before = np.linalg.norm(minute.agents.centers_m[:, 120] - minute.agents.centers_m[:, 119], axis=1)[there]
    assert there.sum() >= 3 and np.abs(step - before).max() < 0.05


def test_parked_cars_and_cones_stay_and_far_ones_vanish(minute):
    for token in ("parked", "cone"):
        i = row(minute, token)
        seen = minute.agents.present[i]
        assert np.ptp(minute.agents.centers_m[i, seen], axis=0).max() < 1e-12
        away = np.abs(minute.agents.centers_m[i, 0, 0] - minute.ego_to_global[:, 0, 3])
        assert not seen[(np.arange(300) > 121) & (away > 103)].any()
        assert seen[:121].all()
    assert minute.agents.attributes[row(minute, "cone")][5] == ""
    assert minute.agents.attributes[row(minute, "parked")][5] == "vehicle.parked"


def test_an_empty_street_is_filled_up_to_the_logs_density_with_new_tokens():
    agents = [make_agent(f"car{i}", lambda t, i=i: (-80.0 + 30 * i + 10 * t, 3.5, 0.0), key_times(5)) for i in range(6)]
    scenario = built(make_scene(key_frames=5, agents=agents, ego_speed_mps=3.0), duration_s=25.0)
    entered = [t for t in scenario.agents.instance_tokens if not t.startswith("car")]
    assert entered and all(len(t) == 32 for t in entered) and len(set(entered)) == len(entered)
    assert scenario.agents.present[:, -1].sum() >= 3
    first = [int(np.argmax(scenario.agents.present[row(scenario, t)])) for t in entered]
    distance = [
        np.linalg.norm(scenario.agents.centers_m[row(scenario, t), k, :2] - scenario.ego_to_global[k, :2, 3])
        for t, k in zip(entered, first, strict=True)
    ]
    assert min(distance) > 55.0 and max(distance) < 100.0


def test_a_moved_ego_marks_the_logs_boxes_as_transformed():
    scenario = built(make_scene(), OFFSET, duration_s=8.0)
    sources = scenario.agents.label_sources
    moved = np.abs(scenario.ego_to_global - scenario.baseline_ego_to_global).max(axis=(1, 2)) > 1e-6
    assert not moved[:12].any() and moved[20:].all()
    assert (sources[:, moved] == LabelSource.TRANSFORMED).all()
    assert set(sources[:, ~moved].ravel().tolist()) == {LabelSource.LOG, LabelSource.INTERPOLATED}
    assert scenario.ego_to_global[-1, 1, 3] == pytest.approx(2.0, abs=1e-9)


def test_the_same_arguments_give_the_same_arrays_and_another_seed_other_traffic():
    scene = make_scene(key_frames=5)
    a, b, c = (built(scene, SLOWER, seed, duration_s=12.0) for seed in (1, 1, 2))
    assert np.array_equal(a.ego_to_global, b.ego_to_global)
    assert np.array_equal(a.agents.centers_m, b.agents.centers_m) and a.agents.instance_tokens == b.agents.instance_tokens
    assert not np.array_equal(a.ego_to_global, c.ego_to_global)


def test_a_logged_follower_brakes_for_an_ego_that_brakes():
    follower = make_agent("follower", lambda t: (-18.0 + 10.0 * t, 0.0, 0.0), key_times(21), attribute="vehicle.moving")
    scene = make_scene(agents=[follower])
    scenario = built(scene, BRAKE, duration_s=20.0)
    boxes = scenario.agents
    i = row(scenario, "follower")
    rear = scenario.ego_to_global[:, 0, 3] + 1.0 - 2.04
    gap = rear - (boxes.centers_m[i, :, 0] + 2.3)
    assert gap[boxes.present[i]].min() > 0.5
    logged = -18.0 + 10.0 * np.arange(120) / 12
    assert boxes.centers_m[i, 100, 0] < logged[100] - 5.0
    assert boxes.label_sources[i, 100] == LabelSource.TRANSFORMED
    assert any("follower brakes" in note for note in scenario.notes)
    # Without the reaction it would have been hit.
    still = overlaps(
        scenario.ego_to_global[:120], np.stack([logged, np.zeros(120)], -1)[None], np.zeros((1, 120)), np.array([[1.95, 4.6, 1.7]]),
        np.ones((1, 120), dtype=bool),
    )  # fmt: skip
    assert still.any()


def test_a_move_that_begins_after_the_log_is_a_rejection_and_not_a_baseline_under_its_name():
    late = Perturbation(name="hard_brake", params={"decel_mps2": 4.0, "onset_s": 6.0, "hold_s": 1.0}, severity=0.5)
    refused = build_scenario(make_scene(key_frames=5), late, 0, duration_s=12.0)
    assert isinstance(refused, Rejection) and refused.reason == "after_log" and "from 6.1 s of the clip on" in refused.detail


def test_running_into_someone_is_a_rejection_with_the_reason():
    leader = make_agent("leader", lambda t: (15.0 + 10.0 * t, 0.0, 0.0), key_times(21))
    result = build_scenario(make_scene(agents=[leader]), FASTER, 0, duration_s=10.0)
    assert isinstance(result, Rejection) and result.reason == "collision" and "leader" in result.detail
    assert result.perturbation == FASTER and result.scene == "scene-0001"


def test_leaving_the_road_is_a_rejection_with_the_reason():
    off = replace(OFFSET, params={**OFFSET.params, "offset_m": -6.0})
    result = build_scenario(make_scene(agents=()), off, 0, duration_s=10.0)
    assert isinstance(result, Rejection) and result.reason == "off_road" and "exceeds 0.30 m" in result.detail


def test_an_overlap_that_the_log_itself_has_is_no_collision():
    inside = make_agent("touching", lambda t: (1.0 + 10.0 * t, 1.8, 0.0), key_times(3))
    scenario = built(make_scene(key_frames=3, agents=[inside]), duration_s=0.9)
    assert scenario.agents.present.all()


def test_a_parked_ego_drives_on_where_there_is_a_lane_and_stays_where_there_is_none():
    parked = make_scene(key_frames=5, ego_speed_mps=0.0, agents=())
    scenario = built(parked, duration_s=12.0)
    assert np.array_equal(scenario.ego_to_global[:25], parked.ego.at(scenario.timestamps_us[:25]))
    assert scenario.ego_to_global[-1, 0, 3] > 20.0
    alone = built(make_scene(key_frames=5, ego_speed_mps=0.0, agents=(), lane_graph=False), duration_s=12.0)
    assert np.ptp(alone.ego_to_global[:, :3, 3], axis=0).max() < 1e-9
    refused = build_scenario(
        make_scene(key_frames=5, ego_speed_mps=0.0, agents=(), lane_graph=False), OFFSET, 0, duration_s=12.0
    )
    assert isinstance(refused, Rejection) and refused.reason == "no_effect"


def test_without_lanes_the_turn_rate_decays_and_the_notes_say_so():
    scene = make_scene(key_frames=5, agents=(), lane_graph=False, drivable=False)
    t = (scene.ego.timestamps_us - START_US) * 1e-6
    poses = scene.ego.ego_to_global.copy()
    yaw, rate, v = 0.1 * t, 0.1, 10.0
    poses[:, 0, 3], poses[:, 1, 3] = v / rate * np.sin(yaw), v / rate * (1 - np.cos(yaw))
    from dwm.geometry import rotation_from_yaw

    poses[:, :3, :3] = rotation_from_yaw(yaw)
    scene = replace(scene, ego=EgoTrack(timestamps_us=scene.ego.timestamps_us, ego_to_global=poses))
    scenario = built(scene, duration_s=10.0)
    # The linear decay over 3 s turns by half of rate x 3 s.
    assert yaw_from_rotation(scenario.ego_to_global[-1]) == pytest.approx(0.2 + 0.15, abs=2e-3)
    speed = np.linalg.norm(np.diff(scenario.ego_to_global[30:, :2, 3], axis=0), axis=1) * 12
    assert speed == pytest.approx(10.0, abs=0.05)
    assert any("turn rate" in note for note in scenario.notes) and any("not checked" in note for note in scenario.notes)


@pytest.mark.parametrize("name", [BASELINE.name, *FAMILIES])
@pytest.mark.parametrize(
    "scene",
    [
        make_scene(key_frames=41, ego_speed_mps=0.0), make_scene(key_frames=2), make_scene(key_frames=1), make_scene(ego_xy_m=(0.0, 60.0)), make_scene(ego_xy_m=(1e5, 1e5)),
        make_scene(agents=[make_agent("once", lambda t: (30.0, 3.5, 0.0), key_times(21)[3:4])]),
        make_scene(key_frames=2, agents=default_agents(2, 0.0), ego_speed_mps=0.0, lane_graph=False),
    ],
)  # fmt: skip
def test_degenerate_logs_give_a_scenario_or_a_rejection(scene, name):
    result = build_scenario(scene, sample_perturbation(name, 0.5, np.random.default_rng(0)), 3, duration_s=4.0)
    if isinstance(result, Rejection):
        assert any(c.isdigit() for c in result.detail) and name != BASELINE.name
    else:
        assert len(result.ego_to_global) == 48 and np.isfinite(result.ego_to_global).all()
        assert np.isfinite(result.agents.centers_m).all()


def test_an_agent_annotated_once_appears_from_the_frame_before_as_in_the_devkit():
    once = make_agent("once", lambda t: (30.0, 3.5, 0.0), key_times(21)[3:4])
    present = built(make_scene(agents=[once]), duration_s=5.0).agents.present[0]
    assert np.flatnonzero(present).tolist() == list(range(13, 19))


@pytest.mark.parametrize("duration_s", [0.0, -1.0, 0.01])
def test_a_clip_without_frames_is_an_input_error(duration_s):
    with pytest.raises(InputError, match="scenario has zero length"):
        build_scenario(make_scene(key_frames=2), BASELINE, 0, duration_s=duration_s)


def test_a_start_beyond_the_log_is_an_input_error():
    with pytest.raises(InputError, match=r"not within the log of 0.5 s"):
        build_scenario(make_scene(key_frames=2), BASELINE, 0, start_s=5.0)


def test_attributes_follow_the_speed():
    assert (
        default_attribute("vehicle.car", 0.1) == "vehicle.stopped" and default_attribute("vehicle.car", 0.3) == "vehicle.moving"
    )
    assert default_attribute("human.pedestrian.adult", 0.0) == "pedestrian.standing"
    assert default_attribute("vehicle.bicycle", 3.0) == "cycle.with_rider"
    assert default_attribute("movable_object.barrier", 0.0) == ""


def test_on_its_new_line_the_ego_slows_down_for_a_slower_car():
    slow = make_agent("slow", lambda t: (45.0 + 5 * t, 3.5, 0.0), key_times(21))
    move = Perturbation(name="lane_change", params={"side": 1.0, "onset_s": 1.0, "duration_s": 4.0}, severity=0.5)
    found = build_scenario(make_scene(agents=(slow,)), move, 0, duration_s=10.0)
    assert isinstance(found, Scenario)
    assert found.ego_to_global[-1, 1, 3] == pytest.approx(3.5, abs=0.01)  # the lane is changed all the same
    assert "the ego slows down for slow" in found.notes
    gap = found.agents.centers_m[0, :, 0] - 2.3 - FRONT_M - found.ego_to_global[:, 0, 3]
    assert gap.min() > 1.0 and np.diff(found.ego_to_global[:, 0, 3])[-1] * 12 == pytest.approx(5.0, abs=1.0)


def test_slowing_down_does_not_help_against_a_car_that_comes_towards_the_ego():
    oncoming = make_agent("oncoming", lambda t: (100.0 - 10 * t, 3.5, np.pi), key_times(21))
    move = Perturbation(name="lane_change", params={"side": 1.0, "onset_s": 1.0, "duration_s": 4.0}, severity=0.5)
    found = build_scenario(make_scene(agents=(oncoming,)), move, 0, duration_s=10.0)
    assert isinstance(found, Rejection) and found.reason == "collision" and "oncoming" in found.detail
