from dataclasses import replace

import numpy as np
import pytest

from dwm.geometry import quaternion_from_yaw, transform_from_xy_yaw
from dwm.scenes.proving_ground.annotations import FILL, attribute_name, count_points, hull_area_px, visibility_level
from dwm.scenes.proving_ground.city import build_city
from dwm.scenes.proving_ground.render import RenderAgent, Renderer
from dwm.scenes.proving_ground.rig import make_rig
from dwm.scenes.proving_ground.tokens import appearance_seed, make_token
from dwm.scenes.proving_ground.weather import WEATHERS
from dwm.scenes.types import DETECTION_CLASSES
from dwm.traffic.types import AgentSpec

FRONT = make_rig((900, 1600))[0]


def _spec(detection_class: str, behaviour: str) -> AgentSpec:
    return AgentSpec(
        token="0", category="", detection_class=detection_class, size_wlh_m=(1.0, 1.0, 1.0), x_m=0.0, y_m=0.0, yaw_rad=0.0,
        speed_mps=0.0, behaviour=behaviour, desired_speed_mps=0.0,
    )  # fmt: skip


def test_the_hull_of_a_box_seen_head_on_is_its_near_face() -> None:
    center = np.array([FRONT.camera_to_ego[0, 3] + 10.5, 0.0, FRONT.camera_to_ego[2, 3]])
    area = hull_area_px(FRONT, FRONT.camera_to_ego, center, np.array([2.0, 1.0, 1.0]), 0.0)
    assert area == pytest.approx((2.0 * 126.6) * (1.0 * 126.6), rel=1e-4)


def test_the_hull_is_cut_at_the_image_edge_and_behind_the_camera() -> None:
    size, behind = np.array([2.0, 1.0, 1.0]), np.array([-10.0, 0.0, 1.5])
    assert hull_area_px(FRONT, FRONT.camera_to_ego, behind, size, 0.0) == 0.0
    around = np.array([FRONT.camera_to_ego[0, 3] + 1.0, 0.0, FRONT.camera_to_ego[2, 3]])
    assert hull_area_px(FRONT, FRONT.camera_to_ego, around, np.array([40.0, 3.0, 40.0]), 0.0) == pytest.approx(1600 * 900)


@pytest.mark.parametrize(("share", "level"), [(0.0, 1), (0.4, 1), (0.41, 2), (0.6, 2), (0.75, 3), (0.81, 4), (1.3, 4)])
def test_visibility_levels_follow_the_nuscenes_limits(share: float, level: int) -> None:
    assert visibility_level(share * 1000, 1000) == level
    assert visibility_level(5, 0) == 1


def test_attributes_fit_class_and_motion() -> None:
    assert attribute_name(_spec("car", "lane"), 3.0) == "vehicle.moving"
    assert attribute_name(_spec("car", "lane"), 0.0) == "vehicle.stopped"
    assert attribute_name(_spec("trailer", "static"), 0.0) == "vehicle.parked"
    assert attribute_name(_spec("bicycle", "lane"), 0.0) == "cycle.with_rider"
    assert attribute_name(_spec("pedestrian", "pedestrian"), 1.0) == "pedestrian.moving"
    assert attribute_name(_spec("barrier", "static"), 0.0) == ""


def test_points_are_counted_in_the_rotated_box_only() -> None:
    annotation = {"translation": [10.0, 5.0, 1.0], "size": [2.0, 4.0, 2.0], "rotation": quaternion_from_yaw(np.pi / 2).tolist()}
    pose = {"translation": [0.0, 5.0, 0.0], "rotation": [1.0, 0.0, 0.0, 0.0]}
    calibration = {"translation": [0.0, 0.0, 1.0], "rotation": [1.0, 0.0, 0.0, 0.0]}
    # The box's length of 4 m lies along y after the quarter turn.
    points = np.array([[10, 1.9, 0], [10, 2.1, 0], [10.9, 0, 0.9], [11.1, 0, 0], [10, 0, 1.1]], np.float32)
    assert count_points(points, annotation, pose, calibration) == 2


def test_fill_factors_match_what_the_renderer_draws() -> None:
    assert set(FILL) == set(DETECTION_CLASSES)
    city = build_city(0, 200.0)
    renderer, camera = Renderer(replace(city, statics=city.statics[:1])), make_rig((128, 224))[0]
    ego = transform_from_xy_yaw(10.0, 100.0, 0.0)
    for name, size in (("car", [1.95, 4.6, 1.73]), ("bus", [2.9, 11.0, 3.5]), ("pedestrian", [0.67, 0.73, 1.77])):
        agent = RenderAgent(
            detection_class=name, center_m=np.array([24.0, 100.0, size[2] / 2]), yaw_rad=0.6, size_wlh_m=np.array(size), seed=1
        )
        seen = (renderer.render((camera,), ego[None], [agent], WEATHERS["day"], 0).instance == 0).sum()
        hull = hull_area_px(camera, ego @ camera.camera_to_ego, agent.center_m, agent.size_wlh_m, agent.yaw_rad)
        assert seen / hull == pytest.approx(FILL[name], rel=0.2)


def test_tokens_are_32_hex_digits_and_carry_the_appearance() -> None:
    token = make_token(1, "instance", "scene-0001", 4)
    assert len(token) == 32
    assert token == make_token(1, "instance", "scene-0001", 4) != make_token(2, "instance", "scene-0001", 4)
    assert appearance_seed(token) == int(token[:8], 16)
    assert appearance_seed("not hex") == appearance_seed("not hex")
