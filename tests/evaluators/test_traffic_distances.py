"""Distances between logged and simulated traffic in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from evaluators.traffic import UNITS, bumper_gaps, compare, group_of, traffic_samples
from tests.factories import key_times, make_agent, make_scene


def samples(shift: float, count: int = 200) -> dict:
    return {name: np.linspace(0.0, 1.0, count) + shift for name in UNITS}


def test_the_distance_of_a_shifted_distribution_is_the_shift():
    found = compare([samples(0.0)] * 3, [samples(0.25)] * 3)
    assert [d.quantity for d in found] == list(UNITS)
    for d in found:
        assert d.wasserstein == pytest.approx(0.25) and d.interval == pytest.approx((0.25, 0.25))
        assert d.ks == pytest.approx(0.25, abs=0.01) and d.count == (600, 600)
        assert d.mean == pytest.approx((0.5, 0.75))


def test_equal_parts_are_no_distance_apart_and_scenes_that_differ_widen_the_interval():
    same = compare([samples(0.0)], [samples(0.0)])
    assert max(d.wasserstein for d in same) == 0.0 and max(d.ks for d in same) == 0.0
    mixed = compare([samples(0.0)] * 4, [samples(s) for s in (0.0, 0.0, 1.0, 1.0)])[0]
    assert mixed.wasserstein == pytest.approx(0.5, abs=0.01) and mixed.interval[0] < 0.3 and mixed.interval[1] > 0.7


def test_a_quantity_without_samples_is_left_out():
    empty = {**samples(0.0), "cycle speed": np.zeros(0)}
    assert "cycle speed" not in [d.quantity for d in compare([empty], [samples(0.0)])]


def test_gaps_are_from_bumper_to_bumper_in_the_own_lane_and_direction():
    xy = np.array([[0.0, 0.0], [20.0, 0.5], [12.0, 3.5], [40.0, 0.0], [10.0, 0.0]])
    yaw = np.array([0.0, 0.1, 0.0, 0.0, np.pi])
    gaps = bumper_gaps(xy, yaw, np.array([[1.9, 4.0], [1.9, 6.0], [1.9, 4.0], [2.5, 10.0], [1.9, 4.0]]))
    assert gaps[0] == pytest.approx(20.0 - 5.0) and np.isinf(gaps[2]) and np.isinf(gaps[4])
    assert gaps[3] == np.inf


def test_groups_follow_the_category():
    assert [group_of(c) for c in ("vehicle.car", "vehicle.bicycle", "human.pedestrian.adult", "movable_object.barrier")] == [
        "vehicle", "cycle", "pedestrian", None,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    keys = key_times(11)
    agents = [make_agent("leader", lambda t: (30.0 + 9.0 * t, 0.0, 0.0), keys, attribute="vehicle.moving")]
    agents.append(make_agent("behind", lambda t: (-15.0 + 9.0 * t, 0.0, 0.0), keys, attribute="vehicle.moving"))
    agents.append(make_agent("parked", lambda t: (50.0, -3.5, 0.0), keys, attribute="vehicle.parked"))
    result = build_scenario(make_scene(key_frames=11, agents=agents, ego_speed_mps=9.0), BASELINE, 0, duration_s=10.0)
    assert isinstance(result, Scenario)
    return result


def test_samples_of_the_log_are_those_of_its_boxes(scenario: Scenario):
    logged = traffic_samples(scenario, simulated=False)
    assert logged["vehicle speed"] == pytest.approx(np.full(22, 9.0), abs=0.05)
    assert logged["ego speed"] == pytest.approx(np.full(11, 9.0), abs=0.2)
    # The leader has nobody ahead; the one behind has the ego, whose centre is 1 m ahead of its rear axle.
    assert logged["gap to the leader"] == pytest.approx(np.full(11, 16.0 - (4.6 + 4.08) / 2), abs=1e-3)
    assert logged["moving vehicles within 50 m"].tolist() == [2.0] * 11
    assert np.abs(logged["lateral acceleration"]).max() < 1e-6


def test_logged_and_simulated_frames_do_not_mix_and_halves_add_up(scenario: Scenario):
    simulated, end = traffic_samples(scenario, simulated=True), scenario.log_end_index
    assert len(simulated["ego speed"]) == scenario.is_key_frame[end:].sum() == 9
    halves = [traffic_samples(scenario, simulated=False, last=30), traffic_samples(scenario, simulated=False, first=30)]
    assert sum(len(h["vehicle speed"]) for h in halves) == 22
    none = traffic_samples(scenario, simulated=False, first=end)
    assert all(len(none[name]) == 0 for name in UNITS)


def test_traffic_that_is_twice_as_fast_is_found_out(scenario: Scenario):
    logged = traffic_samples(scenario, simulated=False)
    fast = {**logged, "vehicle speed": logged["vehicle speed"] * 2}
    found = {d.quantity: d for d in compare([logged], [fast])}
    assert found["vehicle speed"].wasserstein == pytest.approx(9.0, abs=0.01) and found["vehicle speed"].ks == 1.0
    assert found["ego speed"].wasserstein == 0.0
