"""A populated town over one minute."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from dwm.geometry import box_corners
from dwm.scenes.proving_ground.city import build_city
from dwm.scenes.types import DETECTION_CLASSES
from dwm.traffic.populate import KINDS, populate
from dwm.traffic.routes import network_of
from dwm.traffic.simulate import simulate


@pytest.fixture(scope="module")
def town():
    graph = build_city(0, size_m=260.0).lane_graph
    rng = np.random.default_rng(0)
    specs = populate(graph, rng, 16, 8, 9)
    stamps = np.round(np.arange(720) * 1e6 / 12).astype(np.int64)
    return graph, specs, simulate(graph, specs, stamps, rng)


def touching(specs, xy_m, yaw_rad):
    centers = np.concatenate([xy_m, np.zeros((len(specs), 1))], axis=1)
    corners = box_corners(centers, np.array([s.size_wlh_m for s in specs]), yaw_rad)[:, [0, 1, 5, 4], :2]
    boxes = shapely.polygons(corners)
    first, second = shapely.STRtree(boxes).query(boxes, predicate="intersects")
    return [(i, j) for i, j in zip(first, second, strict=True) if i < j]


def test_all_detection_classes_appear_with_sizes_near_the_mean(town):
    _, specs, _ = town
    assert {s.detection_class for s in specs} == set(DETECTION_CLASSES)
    for spec in specs:
        assert spec.size_wlh_m == pytest.approx(KINDS[spec.detection_class].size_wlh_m, rel=0.125)


def test_no_one_overlaps_at_the_start(town):
    _, specs, log = town
    assert touching(specs, log.xy_m[:, 0], log.yaw_rad[:, 0]) == []


def test_no_vehicle_touches_anyone_in_a_minute(town):
    _, specs, log = town
    vehicle = [s.behaviour == "lane" for s in specs]
    hits = [
        (t, i, j)
        for t in range(0, 720, 4)
        for i, j in touching(specs, log.xy_m[:, t], log.yaw_rad[:, t])
        if vehicle[i] or vehicle[j]
    ]
    assert hits == []


def test_traffic_keeps_flowing_and_stays_on_its_lanes(town):
    graph, specs, log = town
    vehicle = np.array([s.behaviour == "lane" for s in specs])
    assert log.speed_mps[vehicle].mean() > 3.5
    assert (log.speed_mps[vehicle][:, -240:].max(axis=1) > 0.5).all()
    assert network_of(graph).on_road(log.xy_m[vehicle].reshape(-1, 2), 0.0).all()


def test_standing_objects_stand_and_pedestrians_are_on_the_road_only_at_crossings(town):
    graph, specs, log = town
    static = np.array([s.behaviour == "static" for s in specs])
    walkers = np.array([s.behaviour == "pedestrian" for s in specs])
    assert np.ptp(log.xy_m[static], axis=1).max() == 0.0
    points = log.xy_m[walkers].reshape(-1, 2)
    network = network_of(graph)
    assert (network.on_road(points, -0.2) & ~network.on_crossing(points)).mean() < 0.01
