import numpy as np
import pytest

from dwm.geometry import apply, invert, project
from dwm.scenes.proving_ground.rig import LIDAR_TO_EGO, frame_times_us, make_rig
from dwm.scenes.types import CAMERAS


def test_cameras_come_in_ring_order_and_look_where_they_are_mounted() -> None:
    rig = make_rig()
    assert tuple(c.channel for c in rig) == CAMERAS
    forward = np.array([c.camera_to_ego[:3, 2] for c in rig])
    yaw = np.rad2deg(np.arctan2(forward[:, 1], forward[:, 0]))
    np.testing.assert_allclose(np.abs(yaw), [0, 55, 110, 180, 110, 55], atol=1e-9)
    assert (np.sign(np.round(yaw[[1, 2, 4, 5]])) == [-1, -1, 1, 1]).all()


def test_a_point_ahead_left_and_high_lands_left_of_and_above_the_image_centre() -> None:
    camera = make_rig((128, 224))[0]
    point = np.array([[1.70 + 10.0, 1.0, 1.51 + 0.5]])
    uv, depth = project(apply(invert(camera.camera_to_ego), point), camera.intrinsics)
    assert depth[0] == pytest.approx(10.0)
    np.testing.assert_allclose(uv[0], [112 - 1266 * 224 / 1600 / 10, 64 - 1266 * 128 / 900 * 0.05])


def test_neighbouring_cameras_see_a_common_direction() -> None:
    rig = make_rig()
    for a, b in zip(rig, (*rig[1:], rig[0]), strict=True):
        reach = [np.arctan2(c.width_px / 2, c.intrinsics[0, 0]) for c in (a, b)]
        assert np.arccos(a.camera_to_ego[:3, 2] @ b.camera_to_ego[:3, 2]) < sum(reach)


def test_the_lidar_has_x_to_the_right_and_y_forward() -> None:
    np.testing.assert_allclose(LIDAR_TO_EGO[:3, 0], [0, -1, 0], atol=1e-12)
    np.testing.assert_allclose(LIDAR_TO_EGO[:3, 1], [1, 0, 0], atol=1e-12)


def test_every_sixth_frame_lies_exactly_on_half_a_second() -> None:
    np.testing.assert_array_equal(frame_times_us(10**15, 241)[::6] - 10**15, np.arange(41) * 500_000)
