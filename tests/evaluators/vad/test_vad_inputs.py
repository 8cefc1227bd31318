"""Every rule of the input pipeline, with numbers made by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dwm.geometry import rotation_from_yaw, transform, transform_from_xy_yaw
from dwm.scenes.types import CAMERAS, CameraFrame
from evaluators.vad.config import CAMERA_ORDER, COMMANDS, CONFIGS
from evaluators.vad.inputs import (
    can_bus_vector,
    can_motion,
    drive_command,
    for_scaled,
    key_frame,
    lidar_to_images,
    network_images,
    path_motion,
    since,
)
from tests.evaluators.vad.vad_factories import TINY
from tests.factories import make_scene

PUBLIC = replace(TINY, image_hw=(2, 4), pixel_mean_bgr=(103.53, 116.28, 123.675), pixel_std_bgr=(1.0, 1.0, 1.0))
# Camera at the ego's origin looking forward, and a LiDAR there with x to the right.
FORWARD_CAMERA = transform([0, 0, 0], [[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
LIDAR = transform([0, 0, 0], [[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
INTRINSICS = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])


def test_published_sizes_scale_and_normalise_as_their_weights_were_trained():
    for name, scale in (("vad_tiny", 0.4), ("vad_base", 0.8)):
        config = CONFIGS[name]
        assert config.image_hw == (round(900 * scale), round(1600 * scale))
        assert config.pixel_mean_bgr == (103.53, 116.28, 123.675) and config.pixel_std_bgr == (1.0, 1.0, 1.0)


def test_images_are_bgr_less_the_mean_scaled_then_padded_right_and_below():
    images = np.zeros((1, 4, 8, 3), np.uint8)
    images[..., 0] = 8 * np.arange(8)  # red grows by 8 from column to column
    images[..., 1], images[..., 2] = 20, 30
    found = network_images(images, PUBLIC)
    assert found.shape == (1, 3, 32, 32)
    np.testing.assert_allclose(found[0, 0, :2, :4], 30 - 103.53, atol=1e-4)
    np.testing.assert_allclose(found[0, 1, :2, :4], 20 - 116.28, atol=1e-4)
    np.testing.assert_allclose(found[0, 2, :2, :4], np.tile([4, 20, 36, 52], (2, 1)) - 123.675, atol=1e-4)
    assert float(found[:, :, 2:].abs().max()) == 0 and float(found[:, :, :, 4:].abs().max()) == 0


def test_published_images_are_padded_to_whole_strides():
    images = np.zeros((1, 9, 16, 3), np.uint8)
    assert network_images(images, CONFIGS["vad_tiny"]).shape == (1, 3, 384, 640)
    assert network_images(images, CONFIGS["vad_base"]).shape == (1, 3, 736, 1280)


def test_pixels_follow_the_ego_between_the_lidars_and_the_cameras_time():
    """The ego drives 1 m on before the camera fires: 11 m before the LiDAR is 10 m before the camera."""
    start, later = transform_from_xy_yaw(5, 7, 0), transform_from_xy_yaw(6, 7, 0)
    point = np.array([1.0, 11.0, 0.5, 1.0])
    for pose, pixel in ((later, (60.0, 35.0)), (start, (50 + 100 / 11, 40 - 50 / 11))):
        matrix = lidar_to_images(INTRINSICS[None], FORWARD_CAMERA[None], pose[None], LIDAR, start)
        u, v, depth, one = matrix[0] @ point
        np.testing.assert_allclose([u / depth, v / depth, one], [*pixel, 1.0])


def test_projections_are_scaled_with_the_images():
    matrix = np.tile(np.arange(16.0).reshape(4, 4), (2, 1, 1))
    found = for_scaled(matrix, (900, 1600), CONFIGS["vad_tiny"])
    np.testing.assert_allclose(found, np.tile(np.diag([0.4, 0.4, 1, 1]) @ matrix[0], (2, 1, 1)))


def test_the_can_bus_vector_holds_pose_motion_and_a_heading_from_zero_to_a_full_turn():
    pose = transform([100.0, 200.0, 3.0], rotation_from_yaw(-math.pi / 2))
    motion = np.arange(1.0, 10.0)
    half = math.sqrt(0.5)
    wanted = [100, 200, 3, half, 0, 0, -half, *range(1, 10), 1.5 * math.pi, 270]
    np.testing.assert_allclose(can_bus_vector(pose, motion), wanted, atol=1e-9)
    np.testing.assert_allclose(can_bus_vector(pose)[7:16], 0)


def test_position_and_degrees_are_since_the_frame_before_and_zero_on_the_first():
    before = can_bus_vector(transform_from_xy_yaw(10, 20, math.radians(350)))
    now = can_bus_vector(transform_from_xy_yaw(13, 24, math.radians(10)), np.ones(9))
    first = since(now, None)
    np.testing.assert_allclose(first[[0, 1, 2, 17]], 0)
    np.testing.assert_allclose(first[3:17], now[3:17])
    np.testing.assert_allclose(since(now, before)[[0, 1, 2, 17]], [3, 4, 0, -340], atol=1e-9)
    np.testing.assert_allclose(since(now, before)[3:17], now[3:17])
    assert now[0] == 13


def test_motion_is_that_of_the_message_after_the_frame_or_the_last():
    messages = [
        {"utime": t, "accel": [t, 1, 2], "rotation_rate": [3, 4, 5], "vel": [6, 7, 8], "pos": [0, 0, 0]} for t in (10, 20, 30)
    ]
    for timestamp_us, found in ((0, 10), (10, 20), (19, 20), (30, 30), (99, 30)):
        np.testing.assert_allclose(can_motion(messages, timestamp_us), [found, 1, 2, 3, 4, 5, 6, 7, 8])


@pytest.mark.parametrize(("right_m", "name"), [(2.0, "right"), (1.99, "straight"), (-1.99, "straight"), (-2.0, "left")])
def test_two_metres_sideways_are_a_turn(right_m, name):
    assert COMMANDS[drive_command(right_m)] == name


def test_a_key_frame_has_its_cameras_in_the_order_of_the_checkpoints():
    scene = make_scene(key_frames=3)
    pose = scene.ego.at(scene.key_timestamps_us[1:2])[0]

    def shot(channel: str, key: bool, x_m: float) -> CameraFrame:
        return CameraFrame(
            channel=channel, path=Path("nowhere"), timestamp_us=0, ego_to_global=transform_from_xy_yaw(x_m, 0, 0),
            sample_data_token="", sample_token="", is_key_frame=key,
        )  # fmt: skip

    frames = {c: (shot(c, True, 0), shot(c, False, 99), shot(c, True, i), shot(c, True, 0)) for i, c in enumerate(CAMERAS)}
    scene = replace(scene, frames=frames)
    images = np.zeros((6, 4, 8, 3), np.uint8) + np.arange(6, dtype=np.uint8)[:, None, None, None]
    found = key_frame(scene, 1, images, PUBLIC)
    order = [0, 1, 5, 3, 4, 2]
    assert [CAMERAS[i] for i in order] == list(CAMERA_ORDER)
    np.testing.assert_allclose(found.images_V3hw[:, 0, 0, 0], np.array(order) - 103.53, atol=1e-4)
    for view, ring_index in enumerate(order):
        camera = scene.cameras[ring_index].resized(4, 2)
        wanted = lidar_to_images(
            camera.intrinsics[None], camera.camera_to_ego[None], transform_from_xy_yaw(ring_index, 0, 0)[None],
            scene.lidar_to_ego, pose,
        )  # fmt: skip
        torch.testing.assert_close(found.lidar_to_image_V44[view], torch.from_numpy(wanted[0]).float())
    np.testing.assert_allclose(found.can_bus_18, can_bus_vector(pose))


def test_a_path_says_what_its_can_bus_would():
    """A left turn of 0.2 rad/s, ever faster by 2 m/s^2, driven backwards at first."""
    fps, turn = 12.0, 0.2
    fine = np.arange(0, 4, 1e-4)
    speeds, yaws = -3 + 2 * fine, 0.5 + turn * fine
    xy = np.cumsum(speeds * np.stack([np.cos(yaws), np.sin(yaws)]), axis=1) * 1e-4
    rows = np.round(np.arange(37) / fps * 1e4).astype(int)
    path = np.stack([transform_from_xy_yaw(xy[0, i], xy[1, i], yaws[i]) for i in rows])
    for k in (2, 18, 30):
        speed = speeds[rows[k]]
        wanted = [2.0, speed * turn, 9.81, 0, 0, turn, speed, 0, 0]
        np.testing.assert_allclose(path_motion(path, fps, k), wanted, atol=0.03)
    np.testing.assert_allclose(path_motion(path[:1], fps, 0), [0, 0, 9.81, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(path_motion(path, fps, 0)[5:], [turn, -3.0 + 1 / fps, 0, 0], atol=0.03)  # from the first two
