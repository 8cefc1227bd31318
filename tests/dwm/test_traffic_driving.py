"""Car following, curves, junctions and pedestrians on small hand-made roads."""

from __future__ import annotations

import numpy as np
import pytest

from dwm.geometry import transform_from_xy_yaw
from dwm.scenes.lane_graph import LaneGraph, LanePoint
from dwm.traffic import idm
from dwm.traffic.junctions import Request, Reservations
from dwm.traffic.obstacles import box_discs, find_blockers
from dwm.traffic.routes import network_of, straight_path
from dwm.traffic.simulate import drive_ego, simulate
from dwm.traffic.types import AgentSpec
from tests.factories import arc_lane, make_road, straight_lane

FPS = 12


def times(seconds: float):
    return np.round(np.arange(int(seconds * FPS)) * 1e6 / FPS).astype(np.int64)


def car(token="car", x=0.0, y=0.0, yaw=0.0, speed=10.0, behaviour="lane", desired=10.0, **fields) -> AgentSpec:
    return AgentSpec(
        token=token, category=fields.pop("category", "vehicle.car"), detection_class="car",
        size_wlh_m=fields.pop("size", (1.9, 4.5, 1.7)), x_m=x, y_m=y, yaw_rad=yaw, speed_mps=speed, behaviour=behaviour,
        desired_speed_mps=desired, **fields,
    )  # fmt: skip


def walker(x, y, yaw) -> AgentSpec:
    size = (0.7, 0.7, 1.8)
    return car("walker", x, y, yaw, 1.2, "pedestrian", 1.2, category="human.pedestrian.adult", size=size)


def crossroads() -> LaneGraph:
    """Two single lanes that cross at the origin, each through a connector of 16 m."""
    lanes = [
        straight_lane("w", (-150, 0), (-8, 0), outgoing=("we",)),
        straight_lane("we", (-8, 0), (8, 0), is_connector=True, incoming=("w",), outgoing=("e",)),
        straight_lane("e", (8, 0), (300, 0), incoming=("we",)),
        straight_lane("s", (0, -150), (0, -8), outgoing=("sn",)),
        straight_lane("sn", (0, -8), (0, 8), is_connector=True, incoming=("s",), outgoing=("n",)),
        straight_lane("n", (0, 8), (0, 300), incoming=("sn",)),
    ]
    return LaneGraph({lane.token: lane for lane in lanes})


def test_idm_is_at_rest_at_its_equilibrium_gap():
    gap = idm.equilibrium_gap_m(8.0, 12.0)
    assert gap == pytest.approx((2.0 + 8.0 * 1.4) / np.sqrt(1 - (8 / 12) ** 4))
    assert idm.acceleration(8.0, 12.0, 8.0, gap) == pytest.approx(0.0, abs=1e-12)


def test_idm_closes_in_when_the_gap_is_wider_and_brakes_when_it_is_narrower():
    gap = idm.equilibrium_gap_m(8.0, 12.0)
    assert idm.acceleration(8.0, 12.0, 8.0, gap * 1.2) > 0.1
    assert idm.acceleration(8.0, 12.0, 8.0, gap * 0.8) < -0.1


def test_idm_never_brakes_harder_than_tyres_can():
    assert idm.acceleration(20.0, 20.0, 0.0, 0.5) == -8.0


def test_a_follower_settles_at_the_equilibrium_gap():
    specs = [car("leader", 60.0, desired=6.0, speed=6.0), car("follower", 0.0, speed=10.0, desired=12.0)]
    log = simulate(make_road(), specs, times(60), np.random.default_rng(0))
    gap = log.xy_m[0, -1, 0] - log.xy_m[1, -1, 0] - 4.5
    assert gap == pytest.approx(idm.equilibrium_gap_m(6.0, 12.0), abs=0.15)
    assert log.speed_mps[1, -1] == pytest.approx(6.0, abs=0.05)


def test_a_car_stops_before_a_stopped_obstacle_and_not_far_before_it():
    specs = [car("wall", 120.0, behaviour="static", speed=0.0), car("moving", 0.0)]
    log = simulate(make_road(), specs, times(40), np.random.default_rng(0))
    assert log.speed_mps[1, -1] < 0.05
    assert 1.5 < log.xy_m[0, -1, 0] - log.xy_m[1, -1, 0] - 4.5 < 3.0
    assert np.ptp(log.xy_m[0], axis=0).max() == 0.0


def test_a_car_ignores_a_parked_car_beside_its_lane():
    specs = [car("parked", 120.0, -2.85, behaviour="static", speed=0.0), car("moving", 0.0)]
    log = simulate(make_road(), specs, times(20), np.random.default_rng(0))
    assert log.xy_m[1, -1, 0] > 180.0


def test_a_vehicle_that_starts_off_the_lane_keeps_its_pose_and_returns_smoothly():
    log = simulate(make_road(), [car("moving", 0.0, 1.2, 0.1)], times(15), np.random.default_rng(0))
    assert log.xy_m[0, 0] == pytest.approx([0.0, 1.2], abs=1e-9)
    assert log.yaw_rad[0, 0] == pytest.approx(0.1, abs=1e-9)
    assert abs(log.xy_m[0, -1, 1]) < 0.25
    assert np.abs(np.diff(log.yaw_rad[0])).max() < 0.02


def test_speed_in_a_curve_keeps_the_lateral_acceleration_comfortable():
    into = straight_lane("in", (-100, -12), (0, -12), outgoing=("arc",))
    arc = arc_lane("arc", (0, 0), 12.0, -np.pi / 2, np.pi / 2, incoming=("in",), outgoing=("out",))
    out = straight_lane("out", (0, 12), (-200, 12), incoming=("arc",))
    graph = LaneGraph({lane.token: lane for lane in (into, arc, out)})
    log = simulate(graph, [car("moving", -90.0, -12.0)], times(22), np.random.default_rng(0))
    curve = (log.xy_m[0, :, 0] > 3.0) & log.present[0]
    assert curve.sum() > 20
    assert log.speed_mps[0, curve].max() < np.sqrt(2.0 * 12.0) + 0.4
    radius = np.linalg.norm(log.xy_m[0, curve], axis=1)
    assert np.abs(radius - 12.0).max() < 0.4


def test_a_vehicle_leaves_at_the_end_of_the_graph_unless_told_to_stop():
    graph = LaneGraph({"only": straight_lane("only", (0, 0), (100, 0))})
    specs = [car("gone", 50.0), car("stays", 0.0, stops_at_end=True)]
    log = simulate(graph, specs, times(30), np.random.default_rng(0))
    assert not log.present[0, -1] and log.present[0, 0]
    assert log.present[1, -1] and log.speed_mps[1, -1] < 0.1 and 90.0 < log.xy_m[1, -1, 0] < 98.0


def test_crossing_connectors_conflict_and_branches_of_one_lane_do_not():
    graph = crossroads()
    assert network_of(graph).conflicts == {"we": frozenset({"sn"}), "sn": frozenset({"we"})}
    lanes = dict(graph.lanes)
    lanes["wn"] = arc_lane("wn", (-8, 8), 8.0, -np.pi / 2, 0.0, is_connector=True, incoming=("w",), outgoing=("n",))
    conflicts = network_of(LaneGraph(lanes)).conflicts
    assert "we" not in conflicts["wn"] and "sn" in conflicts["wn"]


def test_reservations_go_to_who_came_first_and_wait_for_who_is_inside():
    book = Reservations({"a": frozenset({"b"}), "b": frozenset({"a"})})
    want = [Request(vehicle=i, connector=c, must_go=False, exit_free=True) for i, c in ((0, "a"), (1, "b"))]
    assert book.decide(want, set()) == {0}
    assert book.decide(want[1:], set()) == set()
    book.release(0, "a")
    assert book.decide(want[1:], {"a"}) == set()
    assert book.decide(want[1:], set()) == {1}


def test_two_streams_pass_a_junction_without_touching_and_without_deadlock():
    specs = [car(f"w{i}", -30.0 - 14 * i) for i in range(5)]
    specs += [car(f"s{i}", 0.0, -30.0 - 14 * i, np.pi / 2) for i in range(5)]
    log = simulate(crossroads(), specs, times(45), np.random.default_rng(0))
    assert (log.xy_m[:5, -1, 0] > 8).all() and (log.xy_m[5:, -1, 1] > 8).all()
    inside = np.abs(log.xy_m).max(axis=-1) < 3.2
    assert not (inside[:5].any(axis=0) & inside[5:].any(axis=0)).any()


def test_traffic_waits_for_an_ego_that_is_driven_from_outside():
    stamps = times(12)
    y = -26.0 + 4.0 * stamps * 1e-6
    ego = transform_from_xy_yaw(np.zeros_like(y), y, np.full_like(y, np.pi / 2))
    log = simulate(crossroads(), [car("w", -60.0)], stamps, np.random.default_rng(0), external_ego=ego)
    inside_ego, inside = np.abs(y + 1) < 4.0, np.abs(log.xy_m[0, :, 0]) < 3.2
    assert inside_ego.any() and not (inside_ego & inside).any()
    alone = simulate(crossroads(), [car("w", -60.0)], stamps, np.random.default_rng(0))
    assert alone.xy_m[0, -1, 0] > log.xy_m[0, -1, 0] + 10.0


def test_a_follower_stops_behind_a_standing_external_ego():
    stamps = times(25)
    ego = np.repeat(transform_from_xy_yaw(100.0, 0.0, 0.0)[None], len(stamps), axis=0)
    log = simulate(make_road(), [car("behind", 0.0)], stamps, np.random.default_rng(0), external_ego=ego)
    rear = 100.0 + 1.0 - 4.08 / 2
    assert 1.5 < rear - (log.xy_m[0, -1, 0] + 4.5 / 2) < 3.0


def test_pedestrians_stay_off_the_road_without_a_crossing():
    log = simulate(make_road(), [walker(10.0, -4.0, np.pi / 2)], times(30), np.random.default_rng(1))
    assert log.xy_m[0, :, 1].max() < -1.75
    assert np.linalg.norm(log.xy_m[0, -1] - log.xy_m[0, 0]) > 2.0


def crossing_road() -> LaneGraph:
    return LaneGraph(make_road().lanes, (np.array([[48, -2.2], [52, -2.2], [52, 5.7], [48, 5.7]]),))


def test_pedestrians_cross_on_a_crossing_when_no_one_comes():
    log = simulate(crossing_road(), [walker(50.0, -5.0, np.pi / 2)], times(15), np.random.default_rng(1))
    assert log.xy_m[0, :, 1].max() > 5.7
    on_road = (log.xy_m[0, :, 1] > -1.7) & (log.xy_m[0, :, 1] < 5.2)
    assert (np.abs(log.xy_m[0, on_road, 0] - 50.0) < 2.0).all()


def test_a_pedestrian_waits_for_a_car_that_cannot_stop():
    specs = [walker(50.0, -3.0, np.pi / 2), car("fast", 20.0, speed=12.0, desired=12.0)]
    log = simulate(crossing_road(), specs, times(15), np.random.default_rng(1))
    passed = log.xy_m[1, :, 0] > 50.0 + 2.3
    assert (log.xy_m[0, ~passed, 1] < -1.0).all()
    assert log.xy_m[0, -1, 1] > 3.0


def test_a_car_stops_for_a_pedestrian_who_is_already_on_the_road():
    specs = [walker(80.0, -1.5, np.pi / 2), car("moving", 57.0, speed=8.0)]
    log = simulate(make_road(), specs, times(6), np.random.default_rng(1))
    assert log.speed_mps[1].min() < 5.0
    ahead = np.abs(log.xy_m[1, :, 0] - log.xy_m[0, :, 0]) < 2.6
    assert not (ahead & (np.abs(log.xy_m[0, :, 1]) < 1.3)).any()


def test_pedestrians_follow_a_walkway_to_its_end_and_turn_back():
    way = np.array([[0.0, -6.0], [20.0, -6.0]])
    log = simulate(make_road(), [walker(2.0, -6.0, 0.0)], times(35), np.random.default_rng(1), walkways=[way])
    assert log.xy_m[0, :, 0].max() > 18.5 and log.xy_m[0, -1, 0] < 10.0
    assert np.abs(log.xy_m[0, :, 1] + 6.0).max() < 0.8


def test_blockers_report_the_bumper_gap_and_ignore_other_lanes():
    path = straight_path(0.0, 0.0, 0.0).points[None]
    boxes = np.array([[30.0, 0.0], [20.0, 3.5], [-10.0, 0.0]])
    discs = box_discs(boxes, np.zeros(3), np.array([[1.9, 4.5, 1.7]] * 3), np.array([5.0, 5.0, 5.0]), 0.25, np.full(3, -1))
    found = find_blockers(path, np.zeros(1), np.zeros(1), np.array([1.9]), np.array([4.5]), discs)
    assert found.gap_m.min() == pytest.approx(30.0 - 4.5)
    assert (found.along_m > 25.0).all() and found.speed_mps[0] == pytest.approx(5.0)


def test_the_same_seed_gives_the_same_traffic_and_without_a_graph_cars_go_straight():
    specs = [car("a", 0.0), walker(10.0, -5.0, 0.3)]
    first, second = (simulate(make_road(), specs, times(5), np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first.xy_m, second.xy_m)
    free = simulate(None, [car("a", 0.0, yaw=0.5, speed=5.0, desired=5.0)], times(5), np.random.default_rng(3))
    assert free.xy_m[0, -1] == pytest.approx(5.0 * 59 / 12 * np.array([np.cos(0.5), np.sin(0.5)]), abs=1e-4)


def test_a_long_drive_has_no_jumps_where_the_path_is_sampled_anew():
    start = LanePoint(lane="right", s_m=10.0, lateral_m=0.0, heading_error_rad=0.0)
    poses, rest = drive_ego(make_road(), start, times(40), np.random.default_rng(0), 12.0)
    steps = np.linalg.norm(np.diff(poses[:, :2, 3], axis=0), axis=1) * FPS
    assert steps.min() > 11.0 and steps.max() < 12.1 and np.abs(np.diff(steps)).max() < 0.2
    assert rest.tokens == () and poses[0, 0, 3] == pytest.approx(-190.0 - 1.0)
