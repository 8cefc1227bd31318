"""Occlusion, truncation, visibility and LiDAR counts in closed form, and which labels a clip keeps."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dwm.conditioning.layout import LayoutCaster
from dwm.geometry import apply, transform_from_xy_yaw
from dwm.scenario.build import build_scenario
from dwm.scenario.labels import NOTHING, label_clip, labelled_frames
from dwm.scenario.lidar_counts import AZIMUTHS, RINGS_RAD, CountPairs, FillFactors, fill_factors, logged_counts, scan_rays
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.sight import Boxes3D, Wall, look, surface_points, visibility_level
from dwm.scenario.types import LabelSource, Perturbation, Scenario
from dwm.scenes.types import Scene
from tests.factories import make_agent, make_cameras, make_scene

EGO = np.eye(4)
FRONT = make_cameras()[:1]  # at x = 1 m, 1.5 m high, looking along +x with half an angle of 32 degrees


def thin(*rows: tuple[float, float, float, float]) -> Boxes3D:
    """Upright panels at x, y, of a width and height, centred at the camera's height."""
    return Boxes3D(
        centers_m=np.array([(x, y, 1.5) for x, y, _, _ in rows]), sizes_wlh_m=np.array([(w, 0.01, h) for _, _, w, h in rows]),
        yaws_rad=np.zeros(len(rows)),
    )  # fmt: skip


def test_a_panel_half_covered_by_a_nearer_one_is_half_occluded() -> None:
    # From the camera at x = 1, the near panel at 10 m covers the left half of the far one at 20 m.
    sight = look(FRONT, EGO, thin((21.0, 0.0, 4.0, 2.0), (11.0, 1.5, 3.0, 2.0)))
    assert sight.occlusion[0] == pytest.approx(0.5, abs=1 / 7)
    assert sight.occlusion[1] == 0 and (sight.truncation == 0).all()


@pytest.mark.parametrize("covered", [0.0, 0.3, 0.55, 0.8, 1.0])
def test_occlusion_and_level_follow_the_covered_width(covered: float) -> None:
    # A panel at half the distance needs half the width; it grows from one side.
    near = thin((21.0, 0.0, 7.0, 2.0), (11.0, 1.75 - 1.75 * covered, 3.5 * covered + 1e-4, 4.0))
    sight = look(FRONT, EGO, near)
    assert sight.occlusion[0] == pytest.approx(covered, abs=0.5 / 7 + 1e-6)
    assert visibility_level(np.array([1 - covered]))[0] == {0.0: 4, 0.3: 3, 0.55: 2, 0.8: 1, 1.0: 1}[covered]


def test_a_panel_half_outside_the_only_image_is_half_truncated_and_not_occluded() -> None:
    edge = 20.0 * 800 / (1600 * 0.79)  # of the image, 20 m ahead
    sight = look(FRONT, EGO, thin((21.0, edge, 4.0, 1.0), (21.0, edge + 3.0, 2.0, 1.0), (-20.0, 0.0, 2.0, 2.0)))
    assert sight.truncation[0] == pytest.approx(0.5, abs=1 / 7)
    assert sight.occlusion[0] == 0
    assert sight.truncation[1:].tolist() == [1, 1] and np.isnan(sight.occlusion[1:]).all()
    assert sight.visible.tolist() == [1, 0, 0]


def test_what_one_camera_misses_another_may_see() -> None:
    beside = thin((21.0, 20.0 * 800 / (1600 * 0.79), 4.0, 1.0))
    assert look(make_cameras(), EGO, beside).truncation[0] == 0


def test_a_box_does_not_hide_itself_and_a_farther_one_hides_nothing() -> None:
    cars = Boxes3D(centers_m=np.array([[15.0, 0, 0.8], [30.0, 0, 2.0]]), sizes_wlh_m=np.array([[1.9, 4.5, 1.6], [2.5, 9, 4]]),
                   yaws_rad=np.array([0.3, 0.0]))  # fmt: skip
    sight = look(FRONT, EGO, cars)
    assert sight.occlusion[0] == 0
    assert 0.2 < sight.occlusion[1] < 0.8


def test_turning_the_whole_world_changes_nothing_and_turning_one_box_does() -> None:
    rng = np.random.default_rng(3)
    boxes = Boxes3D(
        centers_m=np.column_stack([rng.uniform(-25, 25, (30, 2)), np.full(30, 1.0)]), sizes_wlh_m=rng.uniform(0.8, 5.0, (30, 3)),
        yaws_rad=rng.uniform(-3, 3, 30),
    )  # fmt: skip
    turn = transform_from_xy_yaw(400.0, -90.0, 1.1)
    turned = replace(boxes, centers_m=apply(turn, boxes.centers_m), yaws_rad=boxes.yaws_rad + 1.1)
    here, there = look(make_cameras(), EGO, boxes), look(make_cameras(), turn, turned)
    assert 0.1 < np.nanmean(here.occlusion) < 0.9
    assert np.allclose(here.occlusion, there.occlusion, equal_nan=True) and np.allclose(here.truncation, there.truncation)
    wrong = look(make_cameras(), turn, replace(turned, yaws_rad=boxes.yaws_rad))
    assert not np.allclose(here.occlusion, wrong.occlusion, atol=0.05, equal_nan=True)


def test_patches_of_a_far_box_add_up_to_the_solid_angle_of_its_front() -> None:
    points, weight = surface_points(thin((40.0, 0.0, 2.0, 3.0)), np.array([0.0, 0.0, 1.5]))
    assert weight.sum() == pytest.approx(6.0 / 40.0**2, rel=2e-3)
    assert np.allclose(points[0, weight[0] > 0, 0], 40.0, atol=0.006)


def test_the_wall_hides_only_what_it_may_and_what_lies_behind_it() -> None:
    boxes = thin((21.0, 0.0, 2.0, 2.0), (21.0, 6.0, 2.0, 2.0), (8.0, 0.0, 0.5, 0.5))
    depth = np.full((1, 10), 12.0)
    sight = look(FRONT, EGO, boxes, Wall(depth_VW=depth, hides_A=np.array([True, False, True])))
    assert sight.behind_wall.tolist() == [1, 0, 0]
    assert sight.visible[0] == 0 and sight.visible[1] == 1


def test_the_wall_of_two_image_rows_is_the_wall_of_the_whole_image() -> None:
    scene = make_scene()
    caster, ego = LayoutCaster(scene.map), transform_from_xy_yaw(100.0, 0.0, 0.2)
    low, whole = (caster.cast(scene.cameras, ego, NOTHING, rows, 40).wall_depth_VW.numpy() for rows in (2, 24))
    assert np.allclose(low, whole, rtol=1e-4)
    assert whole.min() < 20 < whole.max()


def test_a_scan_meets_a_panel_with_as_many_rays_as_fit_into_its_angles() -> None:
    lidar = np.eye(4)
    lidar[2, 3] = 1.5
    boxes = thin((10.0, 0.0, 4.0, 2.0), (20.0, 0.0, 7.9, 3.9))
    rays = scan_rays(lidar, EGO, boxes)
    azimuth = (np.arange(AZIMUTHS) + 0.5) * 2 * np.pi / AZIMUTHS - np.pi
    front = 10.0 - 0.005
    columns = azimuth[np.abs(front * np.tan(azimuth)) < 2.0]
    columns = columns[np.abs(columns) < 1]
    assert rays[0] == sum(int((np.abs(front * np.tan(RINGS_RAD) / np.cos(a)) < 1.0).sum()) for a in columns)
    assert rays[1] == 0  # the near panel covers it


def test_scan_rays_do_not_depend_on_where_on_the_map_the_scene_lies() -> None:
    boxes = thin((10.0, 0.0, 4.0, 2.0), (14.0, 5.0, 2.0, 2.0))
    far = np.array([1835.7, 2620.3, 0.0])
    ego = np.eye(4)
    ego[:3, 3] = far
    lidar = np.eye(4)
    lidar[2, 3] = 1.84
    assert (scan_rays(lidar, EGO, boxes) == scan_rays(lidar, ego, replace(boxes, centers_m=boxes.centers_m + far))).all()


def test_fill_factors_are_class_medians_and_rare_classes_take_that_of_all() -> None:
    pairs = CountPairs(
        keys=("car",) * 6 + ("bus",) * 2, instance_tokens=("x",) * 8,
        rays=np.array([10, 20, 40, 10, 100, 2, 50, 50]), points=np.array([5, 10, 20, 5, 90, 2, 10, 10]),
    )  # fmt: skip
    factors = fill_factors(pairs)
    assert factors.points_per_ray == {"car": 0.5} and factors.overall == 0.5
    assert factors.counts(("car", "bus"), np.array([9, 3])).tolist() == [4, 2]
    assert factors.missing(("car", "bus")) == ("bus",)
    empty = fill_factors(replace(pairs, points=np.zeros(8, np.int64)))
    assert empty == FillFactors(points_per_ray={}, overall=1.0)


def two_cars(**second: object) -> Scene:
    """One car 15 m ahead of a standing ego and one straight behind it, hidden by it from every camera."""
    keys = make_scene(key_frames=5).key_timestamps_us
    big: dict[str, Any] = dict(size_wlh_m=(3.0, 5.0, 4.0), category="vehicle.truck", detection_class="truck")
    agents = (
        make_agent("front", lambda t: (15.0, 0.0, 0.0), keys, **big),
        make_agent("back", lambda t: (40.0, 0.0, 0.0), keys),
    )
    return make_scene(key_frames=5, ego_speed_mps=0.0, agents=agents)


def built(scene: Scene, **kwargs: object) -> Scenario:
    scenario = build_scenario(scene, BASELINE, 0, **{"duration_s": 2.0, **kwargs})  # type: ignore[arg-type]
    assert isinstance(scenario, Scenario)
    return scenario


def without_counts(scene: Scene) -> Scene:
    return replace(scene, agents=tuple(replace(a, num_lidar_pts=0 * a.num_lidar_pts) for a in scene.agents))


def test_an_agent_that_nothing_ever_meets_is_not_seen_and_one_that_is_met_once_is() -> None:
    labels = label_clip(built(without_counts(two_cars())))
    assert labels.seen.tolist() == [True, False]
    assert (labels.occlusion[1] == 1).all() and (labels.visibility[1] == 1).all()
    # The same car steps out from behind the truck at the end.
    scene = two_cars()
    out = make_agent("back", lambda t: (40.0, 6.0 if t > 1.4 else 0.0, 0.0), scene.key_timestamps_us)
    labels = label_clip(built(without_counts(replace(scene, agents=(scene.agents[0], out)))))
    assert labels.seen.tolist() == [True, True]
    assert labels.visibility[1].tolist()[0] == 1 and labels.visibility[1].tolist()[-1] == 4


def test_an_annotation_with_logged_points_counts_as_seen_whatever_the_geometry_says() -> None:
    assert label_clip(built(two_cars())).seen.tolist() == [True, True]


def test_the_logs_own_rows_keep_its_numbers_and_moved_ones_are_measured() -> None:
    scene = make_scene(key_frames=21)
    levels = [replace(a, visibility=np.full(len(a.visibility), 1 + k % 4)) for k, a in enumerate(scene.agents)]
    scene = replace(scene, agents=tuple(levels))
    still = built(scene, duration_s=8.0)
    labels = label_clip(still)
    first = [a.instance_token for a in scene.agents].index(still.agents.instance_tokens[0])
    log = still.agents.label_sources[:, labels.frames] == LabelSource.LOG
    assert log.all() and labels.counted_in_log.all()
    assert (labels.visibility[0] == 1 + first % 4).all()
    assert (labels.num_lidar_pts[0] == np.arange(16) + 5).all()
    moved = build_scenario(scene, Perturbation(name="lateral_offset", params={"offset_m": 1.0, "onset_s": 0.5, "ramp_s": 3.0},
                                               severity=0.5), 0, duration_s=8.0)  # fmt: skip
    assert isinstance(moved, Scenario)
    again = label_clip(moved)
    assert not again.counted_in_log[:, -1].any()
    assert again.visibility[0, -1] == 4


def test_one_level_throughout_is_a_placeholder_and_is_recomputed() -> None:
    scene = two_cars()
    labels = label_clip(built(scene))  # the factory writes 4 everywhere
    assert labels.visibility[1, 0] == 1
    assert any("placeholder" in note for note in labels.notes)


def test_velocities_of_log_annotations_are_the_devkits() -> None:
    scene = two_cars()
    odd = replace(scene.agents[0], velocities_mps=np.full((5, 2), [np.nan, 3.5]))
    labels = label_clip(built(replace(scene, agents=(odd, scene.agents[1])), fps=12.0))
    assert np.isnan(labels.velocities_mps[0, :, 0]).all() and (labels.velocities_mps[0, :, 1] == 3.5).all()


@pytest.mark.parametrize(("hz", "expected"), [(2.0, [0, 6, 12, 18]), (4.0, list(range(0, 24, 3))), (12.0, list(range(24)))])
def test_labelled_frames_are_key_frames_or_denser_with_key_frames_among_them(hz: float, expected: list[int]) -> None:
    scenario = built(two_cars())
    assert labelled_frames(scenario, hz).tolist() == expected
    assert set(np.flatnonzero(scenario.is_key_frame)) <= set(expected)


def test_logged_counts_pair_every_annotation_with_its_rays() -> None:
    pairs = logged_counts(two_cars())
    assert len(pairs.keys) == 10 and set(pairs.keys) == {"truck", "car"}
    rays = dict(zip(pairs.instance_tokens, pairs.rays.tolist(), strict=True))
    assert rays["front"] > 100 and rays["back"] == 0
