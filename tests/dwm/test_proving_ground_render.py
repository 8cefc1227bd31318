"""What the renderer promises: shapes fill their boxes, both sensors meet one world, weather looks like weather."""

from __future__ import annotations

import numpy as np
import pytest

from dwm.geometry import apply, invert, project, transform, transform_from_xy_yaw
from dwm.scenes.proving_ground.city import build_city
from dwm.scenes.proving_ground.render import RenderAgent, RenderedViews, Renderer
from dwm.scenes.proving_ground.shapes import shape_of
from dwm.scenes.proving_ground.weather import WEATHERS
from dwm.scenes.types import DETECTION_CLASSES, Camera

H, W = 96, 128
AXES = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # camera z forward, x right, y down, seen from the ego frame
SENSOR_M = np.array([0.0, 0.0, 1.8])


def camera(height: int = H, width: int = W) -> Camera:
    """Looks ahead from where the LiDAR stands, 90 degrees wide."""
    intrinsics = np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1.0]])
    mount = transform(SENSOR_M, AXES)
    return Camera(channel="CAM_FRONT", intrinsics=intrinsics, camera_to_ego=mount, width_px=width, height_px=height)


def car(x_m: float, y_m: float, yaw_rad: float) -> RenderAgent:
    size = np.array([1.9, 4.6, 1.7])
    return RenderAgent(detection_class="car", center_m=np.array([x_m, y_m, 0.85]), yaw_rad=yaw_rad, size_wlh_m=size, seed=5)


@pytest.fixture(scope="module")
def street() -> tuple[Renderer, np.ndarray]:
    """A renderer and an ego pose at the start of the longest lane, looking along it."""
    city = build_city(11, 200.0)
    lane = max(city.lane_graph.lanes.values(), key=lambda lane: lane.length_m)
    return Renderer(city), transform_from_xy_yaw(*lane.centerline[2])


def look(
    street: tuple[Renderer, np.ndarray], weather: str = "day", agents: tuple[RenderAgent, ...] = (), seed: int = 1
) -> RenderedViews:
    renderer, ego = street
    return renderer.render([camera()], ego[None], agents, WEATHERS[weather], seed)


def ahead(ego: np.ndarray, distance_m: float) -> RenderAgent:
    x, y, _ = apply(ego, np.array([[distance_m, 0.0, 0.0]]))[0]
    return car(x, y, float(np.arctan2(ego[1, 0], ego[0, 0])))


@pytest.mark.parametrize("name", DETECTION_CLASSES)
def test_every_part_lies_inside_the_box_and_the_boxs_centre_inside_a_part(name):
    for seed in range(6):
        parts = shape_of(name, seed)
        for part in parts:
            assert (np.abs(part.center) + np.array(part.half) <= 1 + 1e-9).all(), part
            assert min(part.half) > 0
        inside = [
            np.square(np.divide(p.center, p.half)).sum() <= 1 if p.ellipsoid else (np.abs(p.center) <= p.half).all()
            for p in parts
        ]
        assert any(inside)


@pytest.mark.parametrize("name", DETECTION_CLASSES)
def test_a_shape_stands_on_the_ground_as_high_as_its_box_and_reaches_half_way_to_every_side(name):
    parts = shape_of(name, 0)
    reach = np.array([np.add(p.center, sign * np.array(p.half)) for p in parts for sign in (-1, 1)])
    assert (reach.max(0) > [0.5, 0.5, 0.9]).all()
    assert (reach.min(0) < [-0.5, -0.5, -0.97]).all()


def test_lidar_returns_lie_on_the_surfaces_that_the_camera_sees(street):
    renderer, ego = street
    agents = [ahead(ego, 9.0)]
    view = camera(360, 480)
    depth = renderer.render([view], ego[None], agents, WEATHERS["day"], 1).depth_m[0]
    points = renderer.scan(ego @ transform(SENSOR_M, np.eye(3)), agents, WEATHERS["day"], 1)[:, :3]
    points = points[np.linalg.norm(points, axis=1) < 35].astype(np.float64)
    pixels, z = project(apply(invert(view.camera_to_ego), points + SENSOR_M), view.intrinsics)
    column, row = np.floor(pixels).T
    shown = (z > 1) & (column >= 0) & (column < 480) & (row >= 0) & (row < 360)
    seen = depth[row[shown].astype(int), column[shown].astype(int)]
    assert shown.sum() > 1000
    # A pixel's ray and a LiDAR ray differ by up to half a pixel: only at edges does that matter.
    error = np.abs(seen / z[shown] - 1)
    assert np.mean(error < 0.05) > 0.97
    on_car = np.abs(seen - z[shown])[
        (z[shown] > 6.0) & (z[shown] < 8.0) & (np.abs(points[shown, 1]) < 0.8) & (points[shown, 2] > -1.4)
    ]
    assert len(on_car) > 20  # the back of the car, 9 m less half its length ahead
    assert np.median(on_car) < 0.05


def test_lidar_ground_returns_lie_on_the_ground(street):
    renderer, ego = street
    points = renderer.scan(ego @ transform(SENSOR_M, np.eye(3)), [], WEATHERS["day"], 1)
    downward = points[points[:, 4] < 6]  # the lowest rings meet the road before anything else
    assert len(downward) > 5000
    assert abs(float(np.median(downward[:, 2])) + SENSOR_M[2]) < 0.01


def test_the_same_seed_gives_the_same_image_and_another_seed_other_noise_only(street):
    agents = (ahead(street[1], 9.0),)
    a, b, c = (look(street, agents=agents, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.image, b.image)
    difference = np.abs(a.image.astype(int) - c.image.astype(int))
    assert 0 < difference.max() <= 10
    np.testing.assert_array_equal(a.depth_m, c.depth_m)
    np.testing.assert_array_equal(a.instance, c.instance)


def test_night_is_darker_than_dusk_and_dusk_than_day(street):
    day, dusk, night = (float(look(street, name).image.mean()) for name in ("day", "dusk", "night"))
    assert night < 0.6 * dusk
    assert dusk < 0.95 * day


def test_fog_hides_what_is_far_and_not_what_is_near(street):
    clear, fog = look(street, "day"), look(street, "fog")
    np.testing.assert_array_equal(clear.depth_m, fog.depth_m)
    depth = clear.depth_m[0]
    far, near = (depth > 80) & np.isfinite(depth), depth < 8
    assert far.sum() > 50
    assert near.sum() > 500
    haze = np.array(WEATHERS["fog"].sky_horizon) ** 0.8 * 255
    distance = np.abs(fog.image[0].astype(float) - haze).mean(-1)
    assert distance[far].mean() < 20  # less than a quarter of the surface shines through
    assert distance[near].mean() > 40
    assert fog.image[0][far].std() < 0.5 * clear.image[0][far].std()


def test_a_shadow_darkens_the_ground_and_is_no_part_of_its_agent(street):
    without, with_car = look(street), look(street, agents=(ahead(street[1], 7.0),))
    own = with_car.instance[0] == 0
    changed = np.abs(with_car.image[0].astype(int) - without.image[0]).max(-1) > 12
    shadow = changed & ~own
    assert own.sum() > 200
    assert (without.instance == -1).all()
    assert shadow.sum() > 10
    assert (with_car.image[0][shadow].astype(int).sum(-1) < without.image[0][shadow].astype(int).sum(-1)).all()
    # It lies on the ground, the car stands in front of it.
    np.testing.assert_allclose(with_car.depth_m[0][shadow], without.depth_m[0][shadow], rtol=0.05)
    assert (with_car.depth_m[0][own] <= without.depth_m[0][own] + 1e-3).all()
