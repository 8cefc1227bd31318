"""Lane changes and crossings on small hand-made roads."""

from __future__ import annotations

import numpy as np
import pytest

from dwm.scenes.lane_graph import LaneGraph
from dwm.traffic import idm
from dwm.traffic.lane_changes import MOBIL, worth
from dwm.traffic.routes import network_of
from dwm.traffic.simulate import Simulation, simulate
from dwm.traffic.types import AgentSpec, Rules
from tests.factories import make_road, straight_lane

FPS = 12
CHANGES = Rules(lane_changes=True)
YIELDS = Rules(stop_at_crossings=True)


def times(seconds: float):
    return np.round(np.arange(int(seconds * FPS)) * 1e6 / FPS).astype(np.int64)


def car(token="car", x=0.0, y=0.0, speed=10.0, desired=10.0, **fields) -> AgentSpec:
    defaults = dict(
        token=token, category="vehicle.car", detection_class="car", size_wlh_m=(1.9, 4.5, 1.7), x_m=x, y_m=y, yaw_rad=0.0,
        speed_mps=speed, behaviour="lane", desired_speed_mps=desired,
    )  # fmt: skip
    return AgentSpec(**{**defaults, **fields})


def walker(x, y, yaw) -> AgentSpec:
    person = dict(category="human.pedestrian.adult", size_wlh_m=(0.7, 0.7, 1.8), behaviour="pedestrian", yaw_rad=yaw)
    return car("walker", x, y, 1.2, 1.2, **person)


def drive(specs, seconds, rules=CHANGES, graph=None, seed=0):
    return simulate(graph or make_road(), specs, times(seconds), np.random.default_rng(seed), rules=rules)


def test_a_change_is_worth_it_above_the_threshold_and_less_so_when_it_slows_others():
    assert worth(MOBIL.threshold_mps2 + 1e-9, 0.0, 0.0) and not worth(MOBIL.threshold_mps2, 0.0, 0.0)
    assert not worth(1.0, -0.7 / MOBIL.politeness - 1e-9, 0.0) and worth(1.0, -0.7 / MOBIL.politeness + 1e-9, 0.0)
    assert worth(0.0, 0.0, MOBIL.threshold_mps2 / MOBIL.politeness + 1e-9)


def test_a_fast_car_passes_a_slow_one_on_the_other_lane_and_without_the_rule_it_stays_behind():
    specs = [car("slow", 60.0, speed=4.0, desired=4.0), car("fast", 20.0, speed=11.0, desired=12.0)]
    passed, stayed = drive(specs, 25), drive(specs, 25, Rules())
    assert passed.xy_m[1, -1, 0] > passed.xy_m[0, -1, 0] + 20.0 and passed.xy_m[1, -1, 1] == pytest.approx(3.5, abs=0.3)
    assert passed.speed_mps[1, -1] > 11.0
    assert stayed.xy_m[1, -1, 0] < stayed.xy_m[0, -1, 0] and np.abs(stayed.xy_m[1, :, 1]).max() < 0.3


def test_a_lane_change_takes_three_to_six_seconds_and_is_gentle_sideways():
    log = drive([car("slow", 60.0, speed=4.0, desired=4.0), car("fast", 20.0, speed=11.0, desired=12.0)], 25)
    y = log.xy_m[1, :, 1]
    between = np.flatnonzero((y > 0.35) & (y < 3.15))
    assert 2.0 < len(between) / FPS < 6.0 and np.all(np.diff(between) == 1)
    sideways = np.diff(y, 2) * FPS**2
    assert np.abs(sideways).max() < 1.8
    step = np.diff(log.xy_m[1], axis=0)
    # It points where it goes.
    assert np.abs(np.arctan2(step[:, 1], step[:, 0]) - (log.yaw_rad[1, 1:] + log.yaw_rad[1, :-1]) / 2).max() < 0.02


def test_nobody_changes_into_a_lane_whose_follower_would_have_to_brake_hard():
    specs = [car("slow", 45.0, speed=4.0, desired=4.0), car("stuck", 30.0, speed=5.0, desired=12.0)]
    close = car("close", 20.0, 3.5, speed=13.0, desired=13.0)
    pushed = idm.acceleration(13.0, 13.0, 5.0, 5.5)
    assert pushed < -MOBIL.safe_deceleration_mps2
    log = drive([*specs, close], 1.5)
    assert np.abs(log.xy_m[1, :, 1]).max() < 0.1
    assert drive(specs, 6.0).xy_m[1, -1, 1] > 1.0


def test_a_platoon_that_overtakes_touches_no_one():
    specs = [car("slow", 70.0, speed=3.5, desired=3.5)]
    specs += [car(f"r{i}", 50.0 - 12 * i, 0.0, 8.0, 9.0 + i) for i in range(5)]
    specs += [car(f"l{i}", 55.0 - 18 * i, 3.5, 8.0, 8.0 + i) for i in range(4)]
    simulation = Simulation(make_road(), np.random.default_rng(2), rules=CHANGES)
    for spec in specs:
        simulation.add(spec)
    for _ in range(40 * FPS):
        simulation.step(1 / FPS)
        xy, _, _, _ = simulation.state()
        apart = np.abs(xy[:, None] - xy[None]) + 1e3 * np.eye(len(xy))[..., None]
        assert ((apart[..., 0] > 4.5) | (apart[..., 1] > 1.9)).all()
    assert sum(driver.changes for driver in simulation.vehicles.drivers) >= 3


def test_no_one_changes_lanes_within_a_junction_or_where_it_begins_before_the_change_would_end():
    pairs = []
    for y, name, side, other in ((0.0, "r", "left", "l"), (3.5, "l", "right", "r")):
        at = dict(outgoing=(f"{name}j",))
        pairs.append(straight_lane(f"{name}a", (-30, y), (20, y), **at, **{side: f"{other}a"}))
        pairs.append(
            straight_lane(f"{name}j", (20, y), (60, y), is_connector=True, incoming=(f"{name}a",), outgoing=(f"{name}b",))
        )
        pairs.append(straight_lane(f"{name}b", (60, y), (500, y), incoming=(f"{name}j",), **{side: f"{other}b"}))
    graph = LaneGraph({lane.token: lane for lane in pairs})
    log = drive([car("slow", 12.0, speed=4.0, desired=4.0), car("fast", -12.0, speed=11.0, desired=12.0)], 40, graph=graph)
    x, y = log.xy_m[1].T
    began = x[np.argmax(y > 0.3)]
    assert began > 60.0 and y[log.present[1]][-1] > 3.0


def crossing_road() -> LaneGraph:
    return LaneGraph(make_road().lanes, (np.array([[48, -2.2], [52, -2.2], [52, 5.7], [48, 5.7]]),))


def test_lanes_know_where_their_crossings_are():
    spans = network_of(crossing_road()).crossing_spans
    (which, low, high), *rest = spans["right"]
    # The lane starts at x = -200; the crossing reaches from 48 to 52, widened by 0.3.
    assert which == 0 and not rest and 247.6 <= low <= 248.1 and 251.9 <= high <= 252.4


def test_a_car_stops_before_a_crossing_for_someone_who_waits_and_goes_on_after():
    specs = [walker(50.0, -4.0, np.pi / 2), car("car", 12.0, speed=8.0, desired=8.0)]
    log = drive(specs, 30, YIELDS, crossing_road())
    front = log.xy_m[1, :, 0] + 2.25
    y = log.xy_m[0, :, 1]
    in_lane = (y > -1.6) & (y < 1.6)
    assert in_lane.any() and front[in_lane].max() < 48.0 - 0.4
    slowest = int(np.argmin(log.speed_mps[1]))
    assert log.speed_mps[1, slowest] < 2.0 and front[-1] > 100.0
    # Without the rule the same car makes the pedestrian wait.
    hurried = drive(specs, 30, Rules(), crossing_road())
    passes, crosses = np.argmax(hurried.xy_m[1, :, 0] + 2.25 > 48.0), np.argmax(hurried.xy_m[0, :, 1] > -1.6)
    assert passes < crosses


def test_a_car_stands_at_the_line_as_long_as_someone_is_on_the_crossing():
    simulation = Simulation(crossing_road(), np.random.default_rng(0), rules=YIELDS)
    simulation.add(walker(50.0, 0.0, np.pi / 2))
    simulation.add(car("car", 0.0, speed=10.0))
    simulation.pedestrians.v[:] = simulation.pedestrians.desired[:] = 0.0
    for _ in range(25 * FPS):
        simulation.pedestrians.v[:] = 0.0
        simulation.step(1 / FPS)
    front = simulation.vehicles.poses()[0][0, 0] + 2.25
    # The standstill gap of the car-following model before the first lane point on the crossing.
    assert front == pytest.approx(48.0 - idm.IDM.standstill_gap_m, abs=0.3) and simulation.vehicles.v[0] < 0.05
    simulation.pedestrians.active[:] = False
    for _ in range(6 * FPS):
        simulation.step(1 / FPS)
    assert simulation.vehicles.poses()[0][0, 0] > 55.0


def test_a_car_too_close_to_stop_goes_on_and_the_pedestrian_waits():
    specs = [walker(50.0, -3.0, np.pi / 2), car("fast", 33.0, speed=12.0, desired=12.0)]
    log = drive(specs, 12, YIELDS, crossing_road())
    assert log.speed_mps[1, :18].min() > 9.0
    passed = log.xy_m[1, :, 0] > 50.0 + 2.3
    assert (log.xy_m[0, ~passed, 1] < -1.0).all() and log.xy_m[0, -1, 1] > 3.0
