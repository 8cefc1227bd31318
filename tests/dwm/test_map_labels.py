"""Map lines in the ego frame: placed, cut, resampled, and the same from vectors and raster."""

import numpy as np
import pytest

from dwm.geometry import transform_from_xy_yaw
from dwm.scenario.map_labels import clipped, global_lines, map_labels, resampled, seen_from
from dwm.scenes.lane_graph import LaneGraph
from dwm.scenes.types import MAP_LAYERS, MapLines, SceneMap
from tests.factories import ROAD_Y_M, make_map, straight_lane


def vector_map() -> SceneMap:
    """A road along +y at x = 100..108 with a divider in its middle, one crossing and one lane."""
    ring = np.array([[100.0, 50.0], [108.0, 50.0], [108.0, 54.0], [100.0, 54.0]])
    lines = MapLines(
        dividers=(np.array([[104.0, 0.0], [104.0, 200.0]]),),
        boundaries=(np.array([[100.0, 0.0], [100.0, 200.0]]), np.array([[108.0, 0.0], [108.0, 200.0]])),
    )
    graph = LaneGraph({"up": straight_lane("up", (106.0, 0.0), (106.0, 200.0))}, (ring,))
    return SceneMap(
        layers=np.zeros((len(MAP_LAYERS), 10, 10), np.uint8), origin_xy_m=np.zeros(2), metres_per_pixel=1.0, lane_graph=graph,
        lines=lines,
    )  # fmt: skip


NORTH = transform_from_xy_yaw(106.0, 60.0, np.pi / 2)


def test_lines_stand_in_the_ego_frame_and_end_at_the_window() -> None:
    seen = map_labels(vector_map(), NORTH)
    assert list(seen) == ["divider", "ped_crossing", "boundary", "centerline"]
    (divider,) = seen["divider"]
    assert np.allclose(divider, [[-30, 2], [30, 2]])  # heading north, x = 104 is 2 m to the left
    assert np.allclose(sorted(line[0, 1] for line in seen["boundary"]), [-2, 6])
    (lane,) = seen["centerline"]
    assert np.allclose(lane[[0, -1]], [[-30, 0], [30, 0]])  # cut, and still in driving direction
    (crossing,) = seen["ped_crossing"]
    assert len(crossing) == 5 and np.allclose(crossing[0], crossing[-1])
    assert np.allclose([crossing.min(0), crossing.max(0)], [[-10, -2], [-6, 6]])


def test_pitch_does_not_move_the_lines() -> None:
    tilted = NORTH.copy()
    tilted[:3, :3] = NORTH[:3, :3] @ np.array([[np.cos(0.05), 0, np.sin(0.05)], [0, 1, 0], [-np.sin(0.05), 0, np.cos(0.05)]])
    assert np.allclose(map_labels(vector_map(), tilted)["divider"][0], map_labels(vector_map(), NORTH)["divider"][0])


def test_a_ring_cut_by_the_window_is_one_open_line_however_it_was_numbered() -> None:
    ring = np.array([[0.0, -2], [20, -2], [20, 2], [0, 2], [0, -2]])
    for shift in range(4):
        turned = np.roll(ring[:-1], shift, axis=0)
        (piece,) = clipped(np.concatenate([turned, turned[:1]]), np.array([-10.0, -10]), np.array([10.0, 10]))
        assert np.allclose(sorted(piece[[0, -1], 1]), [-2, 2]) and np.allclose(piece[[0, -1], 0], 10)
        assert np.linalg.norm(np.diff(piece, axis=0), axis=1).sum() == pytest.approx(24)


def test_what_only_touches_or_misses_the_window_is_left_out() -> None:
    low, high = np.array([-1.0, -1]), np.array([1.0, 1])
    assert clipped(np.array([[-3.0, 1], [-1, 1], [-1, 3]]), low, high) == []
    assert clipped(np.array([[5.0, 5], [6, 6]]), low, high) == []
    assert clipped(np.array([[-3.0, 0.5], [0.5, -3]]), low, high) == []  # its bounds meet the window, it does not


def test_resampling_keeps_ends_and_spaces_points_evenly_along_a_bend() -> None:
    points = resampled(np.array([[0.0, 0], [3, 0], [3, 1]]), 5)
    assert np.allclose(points, [[0, 0], [1, 0], [2, 0], [3, 0], [3, 1]])


def test_without_vectors_the_boundary_is_traced_and_the_unknown_kinds_are_absent() -> None:
    town = make_map(lane_graph=False)
    assert list(global_lines(town)) == ["boundary"]
    seen = seen_from(global_lines(town), transform_from_xy_yaw(300.0, 0.0, 0.0))["boundary"]
    heights = sorted(float(line[:, 1].mean()) for line in seen)
    half_pixel = town.metres_per_pixel / 2
    assert np.allclose(heights, [ROAD_Y_M[0] + half_pixel, ROAD_Y_M[1] - half_pixel])


def test_the_border_of_the_raster_is_no_boundary() -> None:
    layers = np.zeros((len(MAP_LAYERS), 40, 60), np.uint8)
    layers[MAP_LAYERS.index("drivable"), 10:20] = 1  # a road across the whole raster
    town = SceneMap(layers=layers, origin_xy_m=np.zeros(2), metres_per_pixel=0.5, lane_graph=None)
    lines = global_lines(town)["boundary"]
    assert len(lines) == 2
    assert all(np.ptp(line[:, 1]) == 0 for line in lines)
