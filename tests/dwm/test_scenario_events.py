"""Newcomers in the ego's way on a straight road, and an ego that gives way."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dwm.geometry import transform_from_xy_yaw
from dwm.scenario.build import ScenarioBuilder, build_scenario
from dwm.scenario.events import SLOWEST_EGO_MPS, VEHICLE_APPEARS_M
from dwm.scenario.feasibility import ego_boxes, overlaps
from dwm.scenario.paths import at_times
from dwm.scenario.reaction import FRONT_M, Line, Moving, give_way
from dwm.scenario.types import LabelSource, Perturbation, Rejection, Scenario
from dwm.scenes.types import EgoTrack
from tests.factories import key_times, make_agent, make_scene

FPS = 12
STAMPS = np.round(np.arange(241) * 1e6 / FPS).astype(np.int64)
SECONDS = STAMPS * 1e-6
CAR = np.array([1.95, 4.6, 1.73])


def straight(speed_mps=10.0) -> EgoTrack:
    s = speed_mps * SECONDS
    return EgoTrack(timestamps_us=STAMPS, ego_to_global=transform_from_xy_yaw(s, 0 * s, 0 * s))


def standing(x, y=0.0) -> Moving:
    return Moving(xy_m=np.tile([x, y], (len(SECONDS), 1)), yaw_rad=np.zeros(len(SECONDS)), size_wlh_m=CAR)


def build(name, *, scene=None, clip_s=10.0, **params):
    scene = make_scene(agents=()) if scene is None else scene
    return build_scenario(scene, Perturbation(name=name, params=params, severity=0.5), 0, duration_s=clip_s)


def newcomer(scenario: Scenario) -> int:
    known = {a.instance_token for a in scenario.scene.agents}
    (index,) = [i for i, token in enumerate(scenario.agents.instance_tokens) if token not in known]
    return index


def test_nobody_in_the_way_changes_nothing():
    assert give_way(straight(), SECONDS, []) == pytest.approx(SECONDS, abs=1e-9)
    assert give_way(straight(), SECONDS, [standing(100.0, y=4.0)]) == pytest.approx(SECONDS, abs=1e-9)


def test_the_ego_stops_behind_whoever_stands_in_its_way():
    track = straight()
    poses = at_times(track, give_way(track, SECONDS, [standing(100.0)]), SECONDS)
    gap = 100.0 - 2.3 - FRONT_M - poses[:, 0, 3]
    speed = np.diff(poses[:, 0, 3]) * FPS
    assert speed[-1] < 0.3 and 1.0 < gap[-1] < 4.0
    assert np.diff(speed).min() * FPS > -6.1
    assert (np.diff(poses[:, 0, 3]) >= -1e-9).all()


def test_the_ego_takes_up_its_pace_again_when_the_road_is_clear():
    track, blocker = straight(), standing(60.0)
    blocker.xy_m[120:, 1] = 50.0
    warped = give_way(track, SECONDS, [blocker])
    speed = np.diff(at_times(track, warped, SECONDS)[:, 0, 3]) * FPS
    assert speed[100] < 2.0 and speed[-1] == pytest.approx(10.0, abs=0.1)
    assert (warped <= SECONDS + 1e-9).all() and (np.diff(warped) > -1e-9).all()


def test_somebody_who_vanishes_is_no_longer_in_the_way():
    track, blocker = straight(), standing(60.0)
    blocker.xy_m[60:] = np.nan
    warped = give_way(track, SECONDS, [blocker])
    assert np.isfinite(warped).all() and np.diff(warped)[-1] == pytest.approx(1 / FPS, abs=1e-5)


def test_the_ego_follows_a_slower_car_at_the_models_distance():
    slow = Moving(xy_m=np.stack([40 + 5 * SECONDS, 0 * SECONDS], -1), yaw_rad=0 * SECONDS, size_wlh_m=CAR)
    poses = at_times(straight(), give_way(straight(), SECONDS, [slow]), SECONDS)
    gap = slow.xy_m[:, 0] - 2.3 - FRONT_M - poses[:, 0, 3]
    assert np.diff(poses[:, 0, 3])[-1] * FPS == pytest.approx(5.0, abs=0.5)
    # Intelligent driver model: (2 m + 1.4 s * 5 m/s) / sqrt(1 - (5/10)^4); foreseeing 1.5 s does not shorten it.
    assert gap[-1] == pytest.approx(9.3, abs=1.5)


def test_a_line_finds_its_own_points_again():
    angle = SECONDS / 4
    line = Line(transform_from_xy_yaw(40 * np.sin(angle), 40 * (1 - np.cos(angle)), angle))
    points, yaw = line.at(np.array([3.0, 20.0]), np.array([1.0, -2.0]))
    along, left = line.locate(points[:, :2], 0.0, 40.0)
    # A metre of a circle of 40 m radius is a chord to a few millimetres.
    assert along == pytest.approx([3.0, 20.0], abs=0.1) and left == pytest.approx([1.0, -2.0], abs=0.02)
    assert yaw == pytest.approx([3 / 40, 0.5], abs=1e-3)
    assert line.at(np.array(line.length_m + 7.0))[0][:2] != pytest.approx(line.at(np.array(line.length_m))[0][:2])


def test_a_stopped_vehicle_is_there_from_the_start_and_the_ego_stops_behind_it():
    found = build("stopped_vehicle", reach_s=6.0, hold_s=100.0)
    assert isinstance(found, Scenario)
    i = newcomer(found)
    assert found.agents.centers_m[i, :, 0] == pytest.approx(60.0 + FRONT_M + 2.3) and found.agents.present[i].all()
    assert (found.agents.label_sources[i] == LabelSource.SIMULATED).all()
    assert found.agents.centers_m[i, 0, 2] == pytest.approx(1.73 / 2)
    speed = np.diff(found.ego_to_global[:, 0, 3]) * FPS
    assert speed[0] == pytest.approx(10.0, abs=0.2) and speed[-1] < 0.7
    assert not overlaps(
        found.ego_to_global, found.agents.centers_m, found.agents.yaws_rad, found.agents.sizes_wlh_m, found.agents.present
    ).any()


def test_a_pedestrian_crosses_and_the_ego_waits():
    found = build("crossing_pedestrian", side=1.0, reach_s=6.0, ttc_s=2.5, speed_mps=2.0)
    assert isinstance(found, Scenario)
    walker = found.agents.centers_m[newcomer(found)]
    assert walker[:, 0] == pytest.approx(60.0 + FRONT_M + 0.5)
    # From beyond the left kerb at y = 8 to beyond the right one at y = -4.
    assert walker[0, 1] > 8.0 and walker[-1, 1] < walker[0, 1] - 5 and (np.diff(walker[:, 1]) <= 1e-9).all()
    at_entry = np.interp(-(0.925 + 0.5), -walker[:, 1], np.arange(len(walker)) / FPS)
    assert at_entry == pytest.approx(6.0 - 2.5, abs=0.05)
    behind = found.baseline_ego_to_global[:, 0, 3] - found.ego_to_global[:, 0, 3]
    assert behind.max() > 3.0


def test_a_car_cuts_in_from_the_next_lane_at_the_gap_asked():
    found = build("cut_in", side=1.0, onset_s=6.0, duration_s=2.5, gap_m=12.0, speed_factor=0.8)
    assert isinstance(found, Scenario)
    car = found.agents.centers_m[newcomer(found)]
    assert car[0, 1] == pytest.approx(3.5, abs=1e-6) and car[-1, 1] == pytest.approx(0.0, abs=0.4)
    assert car[0, 0] - 2.3 - FRONT_M == pytest.approx(VEHICLE_APPEARS_M)
    assert car[72, 0] - 2.3 - 60.0 - FRONT_M == pytest.approx(12.0, abs=0.1)
    gap = car[:, 0] - 2.3 - FRONT_M - found.ego_to_global[:, 0, 3]
    assert gap.min() > 2.0 and found.ego_to_global[-1, 0, 3] < found.baseline_ego_to_global[-1, 0, 3] - 1.0


def moved_over(agent, **params) -> Scenario | Rejection:
    params = dict(side=1.0, onset_s=4.0, duration_s=3.0, gap_m=12.0, speed_factor=0.8) | params
    return build("cut_in", scene=make_scene(agents=(agent,)), **params)


def test_a_car_of_the_log_beside_the_ego_cuts_in_and_stays_itself():
    found = moved_over(make_agent("near", lambda t: (16.0 + 10 * t, 3.3, 0.02), key_times(15)))  # annotated for 7 s
    assert isinstance(found, Scenario)
    assert found.agents.instance_tokens == ("near",)
    car, yaw, sources = found.agents.centers_m[0], found.agents.yaws_rad[0], found.agents.label_sources[0]
    assert car[:48, 0] == pytest.approx(16 + 10 * np.arange(48) / FPS, abs=1e-3) and car[:48, 1] == pytest.approx(3.3)
    assert yaw[47:50] == pytest.approx(0.02, abs=0.02) and np.abs(np.diff(yaw)).max() < 0.03
    assert car[-1, 1] == pytest.approx(0.0, abs=0.05) and found.agents.present[0].all()
    speed = np.diff(car[:, 0]) * FPS
    assert speed[-1] == pytest.approx(8.0, abs=0.1) and np.abs(np.diff(speed)).max() * FPS < 1.875 * 1.2 + 0.3
    assert (sources[48:] == LabelSource.TRANSFORMED).all()
    assert "cut_in at 4.0 s: near leaves its logged path" in found.notes
    gap = car[:, 0] - 2.3 - FRONT_M - found.ego_to_global[:, 0, 3]
    assert gap.min() > 2.0 and found.ego_to_global[-1, 0, 3] < found.baseline_ego_to_global[-1, 0, 3] - 1.0


def test_a_parked_car_pulls_out():
    car = make_agent("parked", lambda t: (45.0, 3.0, 0.0), key_times(21))
    found = build(
        "cut_in",
        scene=make_scene(agents=(car,), ego_speed_mps=5.0),
        side=1.0,
        onset_s=4.0,
        duration_s=3.0,
        gap_m=12.0,
        speed_factor=0.8,
    )
    assert isinstance(found, Scenario)
    car = found.agents.centers_m[0]
    assert car[:48, 0] == pytest.approx(45.0) and car[-1, 1] < 1.0 and car[-1, 0] > 52
    assert not overlaps(
        found.ego_to_global, found.agents.centers_m, found.agents.yaws_rad, found.agents.sizes_wlh_m, found.agents.present
    ).any()


@pytest.mark.parametrize(
    "pose_at",
    [
        lambda t: (16.0 + 10 * t, 3.3, np.pi),  # faces the other way
        lambda t: (16.0 + 10 * t, -3.3, 0.0),  # on the other side
        lambda t: (5.0 + 10 * t, 3.3, 0.0),  # alongside
        lambda t: (60.0 + 10 * t, 3.3, 0.0),  # too far ahead
        lambda t: (16.0 + 10 * t, 0.0, 0.0),  # in the ego's own lane
    ],
)
def test_only_a_car_beside_the_line_ahead_can_cut_in(pose_at):
    found = moved_over(make_agent("other", pose_at, key_times(21)))
    if isinstance(found, Rejection):
        assert found.reason == "event_blocked"  # a newcomer has no room
    else:
        assert not any("leaves its logged path" in note for note in found.notes)
        assert len(found.agents.instance_tokens) == 2


def test_a_car_does_not_cut_in_before_the_egos_leader():
    far, leader = (lambda t: (30.0 + 10 * t, 3.3, 0.0)), (lambda t: (16.0 + 10 * t, 0.0, 0.0))
    cars = (make_agent("far", far, key_times(21)), make_agent("leader", leader, key_times(21)))
    params = dict(side=1.0, onset_s=4.0, duration_s=3.0, gap_m=12.0, speed_factor=0.8)
    alone = build("cut_in", scene=make_scene(agents=cars[:1]), **params)
    assert isinstance(alone, Scenario) and "cut_in at 4.0 s: far leaves its logged path" in alone.notes
    behind = build("cut_in", scene=make_scene(agents=cars), **params)
    assert isinstance(behind, Rejection) or not any("leaves its logged path" in note for note in behind.notes)


def test_a_car_of_the_log_does_not_drive_through_another_one():
    cars = (
        make_agent("near", lambda t: (12.0 + 10 * t, 3.3, 0.0), key_times(21)),
        make_agent("leader", lambda t: (47.0 + 5 * t, 0.0, 0.0), key_times(21)),
    )
    found = build("cut_in", scene=make_scene(agents=cars), side=1.0, onset_s=5.7, duration_s=3.0, gap_m=12.0, speed_factor=1.0)
    assert isinstance(found, Rejection) and found.reason == "event_blocked" and "leader" in found.detail


def test_debris_is_passed_beside_with_room():
    found = build("debris", left_m=0.3, reach_s=5.0)
    assert isinstance(found, Scenario)
    cone = found.agents.centers_m[newcomer(found), 0]
    centre, _ = ego_boxes(found.ego_to_global)
    beside = np.argmin(np.abs(centre[:, 0] - cone[0]))
    assert centre[beside, 1] == pytest.approx(0.3 - (1.85 + 0.41) / 2 - 0.5, abs=0.02)
    assert centre[-1, 1] == pytest.approx(0.0, abs=0.01)


def test_the_way_round_stays_on_the_road():
    # To the right the road ends 0.6 m beside the ego.
    found = build("debris", scene=make_scene(agents=(), ego_xy_m=(0.0, -2.4)), left_m=0.3, reach_s=5.0)
    assert isinstance(found, Scenario) and found.ego_to_global[:, 1, 3].max() > -1.0


@pytest.mark.parametrize(
    ("name", "speed_mps", "params", "reason"),
    [
        ("stopped_vehicle", 4.0, dict(reach_s=2.0, hold_s=3.0), "too_near"),
        ("stopped_vehicle", 10.0, dict(reach_s=9.8, hold_s=3.0), "after_log"),
        ("cut_in", 10.0, dict(side=-1.0, onset_s=6.0, duration_s=2.5, gap_m=12.0, speed_factor=0.8), "no_lane"),
        ("cut_in", 4.0, dict(side=1.0, onset_s=3.0, duration_s=3.0, gap_m=12.0, speed_factor=0.8), "too_near"),
    ],
)
def test_events_without_room_are_rejected_with_the_reason(name, speed_mps, params, reason):
    found = build(name, scene=make_scene(agents=(), ego_speed_mps=speed_mps), **params)
    assert isinstance(found, Rejection) and found.reason == reason and any(c.isdigit() for c in found.detail)


def test_a_standing_ego_and_a_taken_place_are_reasons():
    slow = build(
        "stopped_vehicle",
        scene=make_scene(agents=(), ego_speed_mps=SLOWEST_EGO_MPS - 1, key_frames=61),
        clip_s=30.0,
        reach_s=25.0,
        hold_s=1.0,
    )
    assert isinstance(slow, Rejection) and slow.reason == "ego_too_slow"
    there = make_agent("there", lambda t: (87.0 + FRONT_M + 2.3, 0.5, 0.0), key_times(21))
    taken = build("stopped_vehicle", scene=make_scene(agents=(there,)), reach_s=8.7, hold_s=3.0)
    assert isinstance(taken, Rejection) and taken.reason == "event_blocked" and "there" in taken.detail


def test_an_event_waits_until_its_place_is_far_enough_ahead_and_free():
    found = build("stopped_vehicle", reach_s=2.0, hold_s=100.0)  # 45 m are driven after 4.5 s
    assert isinstance(found, Scenario) and "stopped_vehicle at 4.5 s: somebody new" in found.notes
    assert found.agents.centers_m[newcomer(found), 0, 0] == pytest.approx(45.0 + FRONT_M + 2.3)
    there = make_agent("there", lambda t: (60.0 + FRONT_M + 2.3, 2.4, np.pi), key_times(21))  # 0.45 m aside
    crosses = make_agent("crosses", lambda t: (60.0 + FRONT_M + 2.3, 20.0 - 4 * t, -np.pi / 2), key_times(21))  # there at 5 s
    for other, time_s in ((there, 6.0), (crosses, 6.5)):
        found = build("stopped_vehicle", scene=make_scene(agents=(other,)), reach_s=6.0, hold_s=100.0)
        assert isinstance(found, Scenario) and f"stopped_vehicle at {time_s} s: somebody new" in found.notes


def test_an_event_waits_until_the_ego_drives():
    keys = key_times(41)
    stands = make_scene(agents=(), key_frames=41, ego_speed_mps=0.0)
    along = 6.0 * np.maximum((keys - keys[0]) * 1e-6 - 8.0, 0.0)  # drives off after 8 s
    moves = dataclasses.replace(
        stands, ego=EgoTrack(timestamps_us=keys, ego_to_global=transform_from_xy_yaw(along, 0 * along, 0 * along))
    )
    found = build("debris", scene=moves, clip_s=20.0, left_m=0.3, reach_s=4.0)
    assert isinstance(found, Scenario)
    place = found.agents.centers_m[newcomer(found), 0, 0] - FRONT_M
    assert 25.0 <= place < 25.0 + 0.5 * 6.0


def test_logged_traffic_brakes_for_a_newcomer():
    leader = make_agent("leader", lambda t: (25.0 + 10.0 * t, 0.0, 0.0), key_times(21))
    found = build("stopped_vehicle", scene=make_scene(agents=(leader,)), reach_s=8.0, hold_s=100.0)
    assert isinstance(found, Scenario) and any("leader brakes for stopped_vehicle" in note for note in found.notes)
    i = found.agents.instance_tokens.index("leader")
    newcomers = found.agents.centers_m[newcomer(found), -1, 0]
    assert found.agents.centers_m[i, -1, 0] < newcomers - 4.6
    assert not overlaps(
        found.ego_to_global, found.agents.centers_m, found.agents.yaws_rad, found.agents.sizes_wlh_m, found.agents.present
    ).any()


def test_scenarios_of_one_builder_do_not_touch_each_other():
    scene = make_scene()
    shared = ScenarioBuilder(scene, 3, duration_s=14.0)
    changes = [
        Perturbation(name="hard_brake", params={"decel_mps2": 4.0, "onset_s": 1.0, "hold_s": 2.0}, severity=0.5),
        Perturbation(name="debris", params={"left_m": 0.3, "reach_s": 5.0}, severity=0.5),
        Perturbation(name="speed_scale", params={"factor": 1.2, "onset_s": 1.0, "ramp_s": 3.0}, severity=0.5),
    ]
    for change in (*changes, *changes):
        one, other = shared.build(change), build_scenario(scene, change, 3, duration_s=14.0)
        assert type(one) is type(other)
        if isinstance(one, Scenario) and isinstance(other, Scenario):
            assert np.array_equal(one.ego_to_global, other.ego_to_global)
            assert np.array_equal(one.agents.centers_m, other.agents.centers_m)
