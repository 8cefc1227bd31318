"""Driving along the drivable area, and who enters beyond the log."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dwm.scenario.build import build_scenario
from dwm.scenario.entrances import ENTRY_M, log_traffic
from dwm.scenario.feasibility import LIMITS, RoadDistance, check_kinematics, ego_boxes
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from dwm.scenes.types import MAP_LAYERS, SceneMap
from dwm.traffic.drivable import DrivableField, Habits, drivable_field
from tests.factories import key_times, make_agent, make_map, make_scene


def paint(shape_m: tuple[float, float], drivable, mpp: float = 0.25) -> SceneMap:
    """A map from the origin whose drivable points satisfy ``drivable(x, y)``."""
    rows, cols = round(shape_m[1] / mpp), round(shape_m[0] / mpp)
    x, y = np.meshgrid((np.arange(cols) + 0.5) * mpp, (np.arange(rows) + 0.5) * mpp)
    layers = np.zeros((len(MAP_LAYERS), rows, cols), np.uint8)
    layers[0] = drivable(x, y)
    return SceneMap(layers=layers, origin_xy_m=np.zeros(2), metres_per_pixel=mpp, lane_graph=None)


def habits(clearance: float, side: float = 1.0) -> Habits:
    return Habits(clearance_m=np.array([clearance]), side=np.array([side]), half_width_m=np.array([0.95]))


def straight_road() -> DrivableField:
    return DrivableField(paint((160.0, 40.0), lambda x, y: np.abs(y - 20.0) < 6.0))


def test_distances_to_the_edge_are_those_of_the_geometry_and_know_their_side():
    field = straight_road()
    points = np.array([[80.0, 20.0], [80.0, 16.0], [80.0, 25.0], [80.0, 30.0], [-50.0, 20.0]])
    assert field.edge_m(points) == pytest.approx([6.0, 2.0, 1.0, -4.0, -0.25], abs=0.5)
    east = np.column_stack([points[:3], np.zeros(3)])
    assert field.edge_side(east)[1:] == pytest.approx([1.0, -1.0], abs=0.05)
    assert field.edge_side(east[1] + [0, 0, np.pi]) == pytest.approx(-1.0, abs=0.05)


def test_a_path_keeps_its_distance_from_the_edge_on_its_side():
    for y, side in ((17.0, 1.0), (23.0, -1.0)):
        planned = straight_road().plan(np.array([[10.0, y, 0.0]]), np.zeros(1), habits(3.0, side), 100)
        assert np.abs(planned.points[0, :, 1] - y).max() < 0.7 and planned.length_m[0] == 100
        assert planned.points[0, -1, 0] == pytest.approx(110.0, abs=1.0)


def test_a_path_that_starts_on_the_wrong_side_moves_over():
    planned = straight_road().plan(np.array([[10.0, 23.0, 0.0]]), np.zeros(1), habits(3.0), 120)
    assert planned.points[0, -1, 1] < 19.0


def test_a_path_follows_a_bend_with_limited_steering():
    centre = np.array([40.0, 60.0])

    def bend(x, y):
        radius = np.hypot(x - centre[0], y - centre[1])
        return ((x < centre[0]) & (np.abs(y - 30.0) < 5.0)) | ((x >= centre[0]) & (np.abs(radius - 30.0) < 5.0) & (y < 62.0))

    field = DrivableField(paint((90.0, 90.0), bend))
    planned = field.plan(np.array([[5.0, 28.0, 0.0]]), np.zeros(1), habits(3.0), 75)
    points = planned.points[0]
    assert planned.length_m[0] == 75 and field.edge_m(points[:, :2]).min() > 1.2
    assert points[-1, 0] > 60.0 and points[-1, 1] > 40.0
    assert np.abs(np.diff(points[:, 2])).max() <= 0.17 + 1e-9 and np.abs(np.diff(points[:, 2], 2)).max() <= 0.02 + 1e-9


def test_a_path_ends_where_the_road_does():
    field = DrivableField(paint((160.0, 40.0), lambda x, y: (np.abs(y - 20.0) < 3.0) & (x < 100.0)))
    planned = field.plan(np.array([[50.0, 20.0, 0.0]]), np.zeros(1), habits(2.5), 80)
    assert 46 <= planned.length_m[0] <= 53  # it may curve a little before


def test_a_path_passes_what_stands_in_its_way():
    field = straight_road()
    boxes = np.array([[60.0, 17.0]]), np.zeros(1), np.array([[1.9, 4.5, 1.7]])
    obstacles = field.obstacles(*boxes, np.array([60.0, 17.0]))
    assert obstacles.distance_m(np.array([[60.0, 20.0], [300.0, 0.0]])) == pytest.approx([2.05, 1000.0], abs=0.5)
    start = np.array([[10.0, 17.0, 0.0]])
    planned = field.plan(start, np.zeros(1), habits(3.0), 90, obstacles)
    beside = np.abs(planned.points[0, :, 0] - 60.0) < 2.2
    assert planned.points[0, beside, 1].min() > 17.0 + 0.95 + 0.95
    ahead = field.plan(start, np.zeros(1), habits(3.0), 90)
    assert np.abs(ahead.points[0, beside, 1] - 17.0).max() < 0.7


def raster_scene(**options):
    return make_scene(key_frames=5, lane_graph=False, **options)


def built(scene, **options) -> Scenario:
    result = build_scenario(scene, BASELINE, 0, **options)
    assert isinstance(result, Scenario), result
    return result


def test_without_lanes_the_ego_follows_the_road_and_the_notes_say_so():
    scene = raster_scene(agents=())
    scenario = built(scene, duration_s=20.0)
    after = scenario.ego_to_global[scenario.log_end_index :]
    assert RoadDistance(scene.map).of_ego(after).max() == 0.0
    assert after[-1, 0, 3] > 20.0 + 9.0 * 17 and np.abs(after[:, 1, 3]).max() < 1.5
    assert check_kinematics(scenario.ego_to_global, 12.0, LIMITS) is None
    assert any("drivable area" in note for note in scenario.notes)


def test_without_lanes_the_ego_and_others_brake_gently_to_a_stop_where_the_road_ends():
    whole = make_map(lane_graph=False)
    layers = whole.layers.copy()
    layers[0, :, round((150.0 - whole.origin_xy_m[0]) / whole.metres_per_pixel) :] = 0
    leader = make_agent("leader", lambda t: (30.0 + 10.0 * t, 4.0, 0.0), key_times(5), attribute="vehicle.moving")
    scene = replace(raster_scene(agents=(leader,)), map=replace(whole, layers=layers))
    scenario = built(scene, duration_s=25.0)
    centre, _ = ego_boxes(scenario.ego_to_global)
    assert 140.0 < centre[-1, 0] < 150.0 and np.linalg.norm(centre[-1] - centre[-12]) < 0.05
    speed = np.linalg.norm(np.diff(centre, axis=0), axis=1) * 12
    assert np.diff(speed).min() * 12 > -4.0
    i = scenario.agents.instance_tokens.index("leader")
    assert scenario.agents.centers_m[i, -1, 0] < 150.0 and scenario.agents.present[i, -1]


def test_without_lanes_vehicles_that_cross_do_not_touch_the_ego():
    ego_y = 0.0
    plain = paint((400.0, 400.0), lambda x, y: (np.abs(y - 200.0) < 6.0) | (np.abs(x - 300.0) < 6.0), 0.5)
    world = replace(plain, origin_xy_m=np.array([-200.0, -200.0]))
    for delay in (0.0, 1.0, 2.0):
        crossing = make_agent("crossing", lambda t, d=delay: (102.0, -90.0 + 9.0 * (t + d), np.pi / 2), key_times(5))
        scene = replace(raster_scene(agents=(crossing,), ego_xy_m=(0.0, ego_y)), map=world)
        result = build_scenario(scene, BASELINE, 0, duration_s=20.0)
        assert isinstance(result, Scenario), result


def test_numbers_and_speeds_of_the_log_are_measured():
    keys = key_times(21)
    agents = [make_agent(f"m{i}", lambda t, i=i: (20.0 * i + 8.0 * t, 3.5, 0.0), keys) for i in range(3)]
    agents.append(make_agent("parked", lambda t: (30.0, -3.5, 0.0), keys, attribute="vehicle.parked"))
    agents.append(make_agent("waits", lambda t: (40.0, 3.5, 0.0), keys, attribute="vehicle.stopped"))
    log = log_traffic(make_scene(agents=agents, ego_speed_mps=8.0))
    # Four are never farther than 50 m from an ego that keeps up with three of them; as many are assumed beyond.
    assert log.count["human"] == 0 and log.count["vehicle"] in (7, 8)
    assert log.speeds_mps == pytest.approx([8.0] * 4, abs=1e-6)
    assert sum(log.shares.values()) == pytest.approx(1.0) and log.shares["car"] > 0.8


@pytest.mark.parametrize("lanes", [True, False])
def test_who_enters_appears_far_from_the_ego_and_keeps_the_numbers_of_the_log(lanes: bool):
    keys = key_times(11)
    walk = dict(category="human.pedestrian.adult", detection_class="pedestrian", size_wlh_m=(0.7, 0.7, 1.8))
    agents = [make_agent(f"m{i}", lambda t, i=i: (-20.0 + 25.0 * i + 9.0 * t, 3.5 * lanes, 0.0), keys) for i in (0, 2, 3)]
    agents += [make_agent(f"w{i}", lambda t, i=i: (12.0 * i + 1.3 * t, -6.0, 0.0), keys, **walk) for i in range(4)]
    scenario = built(make_scene(key_frames=11, agents=agents, lane_graph=lanes), duration_s=30.0)
    boxes, (centre, _) = scenario.agents, ego_boxes(scenario.ego_to_global)
    entered = [i for i, token in enumerate(boxes.instance_tokens) if len(token) == 32]
    assert len(entered) >= 4
    for i in entered:
        t = int(np.argmax(boxes.present[i]))
        assert t > scenario.log_end_index
        # It entered up to one frame earlier.
        assert np.linalg.norm(boxes.centers_m[i, t, :2] - centre[t]) > ENTRY_M[0] - 2.0
    walkers = np.array([c.startswith("human") for c in boxes.categories])
    assert boxes.present[walkers][:, -120:].sum(axis=0).mean() >= 3


def test_a_map_without_drivable_area_has_no_field_and_one_map_keeps_its_field():
    assert drivable_field(make_map(lane_graph=False, drivable=False)) is None
    scene_map = make_map(lane_graph=False)
    assert drivable_field(scene_map) is drivable_field(scene_map)
