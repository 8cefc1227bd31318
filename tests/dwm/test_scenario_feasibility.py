"""Each limit is broken on purpose and named."""

from __future__ import annotations

import numpy as np
import pytest

from dwm.geometry import transform_from_xy_yaw
from dwm.scenario.feasibility import (
    Limits,
    RoadDistance,
    check_collision,
    check_drivable,
    check_kinematics,
    overlaps,
    smoothed,
)
from dwm.scenario.types import AgentBoxes
from tests.factories import make_map

FPS = 12.0
T = np.arange(120) / FPS


def along_x(x, yaw=0.0, y=0.0):
    return transform_from_xy_yaw(x, np.full_like(x, y), np.full_like(x, yaw))


def boxes(xy, yaw=0.0, size=(2.0, 4.0, 1.5), frames=1) -> AgentBoxes:
    centers = np.zeros((1, frames, 3))
    centers[0, :, :2] = xy
    there = np.ones((1, frames), dtype=bool)
    return AgentBoxes(
        instance_tokens=("a",), detection_classes=("car",), categories=("vehicle.car",), sizes_wlh_m=np.array([size]),
        centers_m=centers, yaws_rad=np.full((1, frames), yaw), velocities_mps=np.zeros((1, frames, 2)), present=there,
        label_sources=np.zeros((1, frames), dtype=np.int8), num_lidar_pts=np.zeros((1, frames), dtype=np.int32),
        attributes=(("",) * frames,),
    )  # fmt: skip


def test_a_steady_drive_is_accepted_with_noise_of_a_centimetre():
    rng = np.random.default_rng(0)
    poses = along_x(10 * T)
    poses[:, :2, 3] += rng.normal(0, 0.01, (len(T), 2))
    assert check_kinematics(poses, FPS) is None


@pytest.mark.parametrize(
    ("acceleration", "word"),
    [(3.5, "acceleration 3.50 m/s^2 exceeds 3 m/s^2"), (-7.5, "deceleration 7.50 m/s^2 exceeds 7 m/s^2")],
)
def test_too_much_longitudinal_acceleration_is_told_with_number_and_limit(acceleration, word):
    start = 5.0 if acceleration > 0 else 80.0
    found = check_kinematics(along_x(start * T + acceleration * T**2 / 2), FPS)
    assert found is not None and found.reason == "kinematics" and word in found.detail


def test_accelerations_just_inside_the_limits_are_accepted():
    assert check_kinematics(along_x(5 * T + 2.9 * T**2 / 2), FPS) is None
    assert check_kinematics(along_x(80 * T - 6.9 * T**2 / 2), FPS) is None


@pytest.mark.parametrize(("speed", "radius", "word"), [(14.0, 40.0, "lateral acceleration 4.9"), (2.0, 4.0, "curvature 0.2")])
def test_circles_that_are_too_fast_or_too_tight_are_refused(speed, radius, word):
    angle = speed * T / radius
    poses = transform_from_xy_yaw(radius * np.sin(angle), radius * (1 - np.cos(angle)), angle)
    found = check_kinematics(poses, FPS)
    assert found is not None and found.detail.startswith(word)
    assert check_kinematics(poses, FPS, Limits(lateral_acceleration_mps2=5.5, curvature_per_m=0.3)) is None


def test_a_speed_jump_is_jerk_and_frames_before_the_first_do_not_count():
    x = np.where(T < 2, 10 * T, 20 + 16 * (T - 2))
    found = check_kinematics(along_x(x), FPS)
    assert found is not None and found.reason == "kinematics"
    assert check_kinematics(along_x(x), FPS, first=60) is None


def test_leaving_the_drivable_area_is_refused_and_its_edge_is_tolerated():
    road = RoadDistance(make_map())
    # The road ends at y = -4: half a car width plus the tolerance beyond it.
    assert check_drivable(along_x(10 * T, y=-4.0 + 0.925 - 0.2), road, FPS)[0] is None
    found, _ = check_drivable(along_x(10 * T, y=-5.0), road, FPS)
    assert (
        found is not None
        and found.reason == "off_road"
        and "1.75 m off the drivable area at 0.00 s, exceeds 0.30" in found.detail
    )


def test_one_frame_off_the_road_is_one_too_many_unless_the_log_was_there():
    road, logged = RoadDistance(make_map()), along_x(10 * T, y=-3.0)
    logged[60:66, 1, 3] = -5.0
    found, _ = check_drivable(logged, road, FPS)
    assert found is not None and "at 5.00 s" in found.detail
    assert check_drivable(logged, road, FPS, first=66)[0] is None
    assert check_drivable(logged, road, FPS, logged=logged)[0] is None
    # Elsewhere the log allows nothing.
    assert check_drivable(along_x(10 * T, y=-5.0), road, FPS, logged=logged)[0] is not None


def test_a_map_without_drivable_area_is_noted_and_not_refused():
    for poses in (along_x(10 * T), along_x(10 * T + 1e6)):
        found, notes = check_drivable(poses, RoadDistance(make_map(drivable=False)), FPS)
        assert found is None and "not checked" in notes[0]


def test_beyond_the_map_that_was_read_nothing_is_judged_and_the_notes_say_from_when():
    road = RoadDistance(make_map())
    found, notes = check_drivable(along_x(1250 + 10 * T), road, FPS)
    assert found is None and notes == ("the ego leaves the map that was read at 4.8 s: not checked there",)
    found, _ = check_drivable(along_x(1250 + 10 * T, y=-6.0), road, FPS)
    assert found is not None and "at 0.00 s" in found.detail


def test_the_distance_to_the_road_is_that_to_its_edge():
    road = RoadDistance(make_map())
    # The edge is at y = 8, and these are centres of half-metre pixels.
    assert road.of(np.array([[0.0, 0.0], [0.0, 8.25], [0.0, 11.25], [1e6, 0.0]])) == pytest.approx(
        [0.0, 0.25, 3.25, np.nan], nan_ok=True
    )


def test_smoothing_takes_a_jolt_out_of_a_path_and_keeps_the_manoeuvre():
    x = np.where(T < 5, 10 * T, 50 + 7.0 * (T - 5))
    poses = along_x(x)
    assert check_kinematics(poses, FPS) is not None
    smooth, moved = smoothed(poses, FPS, first=30)
    assert check_kinematics(smooth, FPS) is None
    assert 0.02 < moved < 0.35 and np.array_equal(smooth[:31], poses[:31])
    assert np.abs(smooth[:, 0, 3] - x).max() == pytest.approx(moved)


def test_smoothing_leaves_a_cubic_as_it_is():
    poses = along_x(5 * T + 0.4 * T**2 - 0.02 * T**3)
    assert smoothed(poses, FPS)[0] == pytest.approx(poses, abs=1e-9)


@pytest.mark.parametrize(
    ("xy", "yaw", "hit"),
    [((5.03, 0.0), 0.0, True), ((5.05, 0.0), 0.0, False), ((1.0, 1.92), 0.0, True), ((1.0, 1.93), 0.0, False),
     ((1.0, 2.9), np.pi / 2, True), ((1.0, 2.93), np.pi / 2, False), ((4.4, 2.4), np.pi / 4, False), ((3.9, 1.9), np.pi / 4, True)],
)  # fmt: skip
def test_overlap_is_that_of_rotated_rectangles(xy, yaw, hit):
    a = boxes(xy, yaw)
    found = overlaps(along_x(np.zeros(1)), a.centers_m, a.yaws_rad, a.sizes_wlh_m, a.present)
    assert bool(found[0, 0]) is hit


def test_overlaps_agree_with_polygons():
    import shapely

    from dwm.geometry import box_corners

    rng = np.random.default_rng(1)
    n = 300
    xy, yaw, ego_yaw = rng.uniform(-5, 5, (n, 2)), rng.uniform(-4, 4, n), rng.uniform(-4, 4, n)
    poses = transform_from_xy_yaw(np.zeros(n), np.zeros(n), ego_yaw)
    size = np.array([[2.0, 4.0, 1.5]])
    centers = np.concatenate([xy, np.zeros((n, 1))], axis=1)
    fast = overlaps(poses, centers[None], yaw[None], size, np.ones((1, n), dtype=bool))[0]
    ego = np.stack([np.cos(ego_yaw), np.sin(ego_yaw), np.zeros(n)], axis=-1)
    pick = [0, 1, 5, 4]
    ours = shapely.polygons(box_corners(ego, np.tile([1.85, 4.08, 1.6], (n, 1)), ego_yaw)[:, pick, :2])
    theirs = shapely.polygons(box_corners(centers, np.tile(size, (n, 1)), yaw)[:, pick, :2])
    assert np.array_equal(fast, shapely.intersects(ours, theirs))
    assert 0.2 < fast.mean() < 0.9


def test_a_collision_names_the_agent_and_ignored_frames_do_not_count():
    poses, agents = along_x(10 * T), boxes((50.0, 0.0), frames=len(T))
    found = check_collision(poses, agents, FPS)
    assert found is not None and found.reason == "collision" and "vehicle.car a" in found.detail
    assert check_collision(poses, agents, FPS, ignored=np.ones((1, len(T)), dtype=bool)) is None
