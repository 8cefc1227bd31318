"""What the world model is told about a scenario, against closed forms."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from dwm.codec.autoencoder import Autoencoder, CodecConfig
from dwm.conditioning.build import (
    Given,
    ScenarioConditioner,
    camera_features,
    images_to_tensor,
    laid_over,
    tensor_to_images,
)
from dwm.conditioning.layout import LAYOUT_CHANNELS
from dwm.conditioning.things import Things
from dwm.geometry import transform_from_xy_yaw
from dwm.models.conditioning import CAMERA_SIZE, WAYPOINT_SIZE, camera_rays
from dwm.models.dit import IMAGE_HW
from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from dwm.scenes.types import DETECTION_CLASSES
from tests.factories import START_US, key_times, make_agent, make_cameras, make_scene


def make_scenario(**scene) -> Scenario:
    scenario = build_scenario(make_scene(**scene), BASELINE, 0, duration_s=2.0)
    assert isinstance(scenario, Scenario)
    return scenario


def on_a_circle(radius_m: float, speed_mps: float, start_yaw_rad: float) -> Scenario:
    """An ego turning left at constant speed."""
    scenario = make_scenario(agents=())
    seconds = (scenario.timestamps_us - scenario.timestamps_us[0]) * 1e-6
    yaw = start_yaw_rad + speed_mps / radius_m * seconds
    poses = transform_from_xy_yaw(100 + radius_m * np.sin(yaw), 50 - radius_m * np.cos(yaw), yaw)
    return replace(scenario, ego_to_global=poses)


def test_waypoints_of_a_straight_path_are_its_distance_and_speed():
    waypoints = ScenarioConditioner(make_scenario(ego_speed_mps=10.0)).waypoints(range(3, 11)).numpy()
    assert waypoints.shape == (8, WAYPOINT_SIZE)
    seconds = np.arange(8) / 12
    expected = np.stack([seconds, 0 * seconds, 0 * seconds, 1 + 0 * seconds, 1 + 0 * seconds, 0 * seconds], axis=-1)
    np.testing.assert_allclose(waypoints, expected, atol=2e-5)


def test_waypoints_of_a_circle_are_those_of_the_circle_wherever_it_starts():
    radius, speed = 30.0, 9.0
    # Through the jump of the heading at pi.
    rows = [ScenarioConditioner(on_a_circle(radius, speed, yaw)).waypoints([4, 5, 8, 16]).numpy() for yaw in (0.0, 2.9)]
    angle = speed / radius * np.array([0, 1, 4, 12]) / 12
    expected = np.stack([
        radius * np.sin(angle) / 10, radius * (1 - np.cos(angle)) / 10, np.sin(angle), np.cos(angle),
        np.full(4, speed / 10), np.full(4, speed / radius),
    ], axis=-1)  # fmt: skip
    for found in rows:
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_times_count_in_seconds_from_the_windows_first_frame():
    conditioner = ScenarioConditioner(make_scenario())
    np.testing.assert_allclose(conditioner.times([6, 12, 18]).numpy(), [0.0, 0.5, 1.0], atol=1e-6)


def test_camera_features_are_shares_of_the_image_and_the_mount():
    cameras = make_cameras(1600, 900)
    features = camera_features(cameras).numpy()
    assert features.shape == (6, CAMERA_SIZE)
    np.testing.assert_allclose(features[:, :4], np.tile([0.79, 0.79 * 1600 / 900, 0.5, 0.5], (6, 1)), rtol=1e-6)
    np.testing.assert_allclose(features[:, [7, 11, 15]], np.tile([0.1, 0.0, 0.15], (6, 1)), atol=1e-7)
    # Shares do not change with the image's size.
    np.testing.assert_allclose(camera_features([c.resized(224, 128) for c in cameras]).numpy(), features, rtol=1e-6)


def test_rays_of_the_features_point_where_the_cameras_look():
    rays = camera_rays(camera_features(make_cameras())[None], 5, 5)[0, :, 12, 2:5].numpy()  # the middle patch of each view
    yaws = np.degrees(np.arctan2(rays[:, 1], rays[:, 0]))
    np.testing.assert_allclose((yaws + 360) % 360, [0, 305, 250, 180, 110, 55], atol=1e-3)


def test_an_instances_identity_is_the_start_of_its_tokens_hash():
    keys = key_times(21)
    agents = [make_agent(token, lambda t: (30.0, 5.0, 0.0), keys) for token in ("leader", "other")]
    boxes = ScenarioConditioner(make_scenario(agents=agents)).boxes(0)
    expected = [int(hashlib.sha256(t.encode()).hexdigest()[:6], 16) / 0xFFFFFF for t in ("leader", "other")]
    assert boxes.identities.tolist() == expected
    again = ScenarioConditioner(make_scenario(agents=agents[::-1])).boxes(12)
    assert sorted(again.identities.tolist()) == sorted(expected)


def test_only_near_agents_of_known_classes_are_drawn():
    keys = key_times(21)
    agents = [
        make_agent("near", lambda t: (60.0, 5.0, 0.0), keys),
        make_agent("far", lambda t: (95.0, 5.0, 0.0), keys),
        make_agent("animal", lambda t: (30.0, 5.0, 0.0), keys, category="animal", detection_class=None),
        make_agent("late", lambda t: (40.0, 5.0, 0.0), START_US + np.array([1_000_000, 1_500_000])),
    ]
    scenario = make_scenario(agents=agents)
    conditioner = ScenarioConditioner(scenario)
    names = [[scenario.agents.instance_tokens[i] for i in conditioner.visible_agents(f)] for f in (0, 14)]
    assert sorted(names[0]) == ["near"]
    assert sorted(names[1]) == ["far", "late", "near"]  # after 1.2 s the ego is 11.7 m further
    assert set(conditioner.boxes(0).classes.tolist()) == {DETECTION_CLASSES.index("car")}


def test_pixels_survive_the_models_range():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    tensor = images_to_tensor(pixels)
    assert tensor.shape == (1, 3, 16, 16)
    assert (float(tensor.min()), float(tensor.max())) == (-1.0, 1.0)
    np.testing.assert_array_equal(tensor_to_images(tensor), pixels)
    np.testing.assert_array_equal(tensor_to_images(tensor * 1.2)[0, -1, -1], [255] * 3)


def test_a_window_says_what_it_holds_and_what_it_lacks():
    conditioner = ScenarioConditioner(make_scenario())
    codec = Autoencoder(CodecConfig()).eval()
    with torch.no_grad():
        bare = conditioner.window([0, 1], fps=12.0, codec=codec, layout=False).condition
        images = torch.zeros(6, 3, *IMAGE_HW)
        given = Given(frame=0, latents_VCHW=codec.encode(images), images_V3HW=images)
        full = conditioner.window([0, 6], fps=2.0, codec=codec, sources=[given]).condition
    assert (bool(bare.has_layout_B), bool(bare.has_memory_B), bare.layout_BTVCHW, bare.memory_BTVCHW) == (
        False,
        False,
        None,
        None,
    )
    assert (bool(full.has_layout_B), bool(full.has_memory_B), full.fps_B.tolist()) == (True, True, [2.0])
    assert full.layout_BTVCHW is not None
    assert full.memory_BTVCHW is not None
    assert full.memory_valid_BTV1HW is not None
    assert full.layout_BTVCHW.shape == (1, 2, 6, len(LAYOUT_CHANNELS), 32, 56)
    assert full.memory_BTVCHW.shape == (1, 2, 6, 16, 16, 28)
    share = full.memory_valid_BTV1HW[0, :, :, 0]
    assert float(share[0].mean()) > 0.999  # the source's own frame is covered
    assert 0.3 < float(share[1].mean()) < 0.999  # five metres on, not all of it
    assert full.times_BT[0].tolist() == pytest.approx([0.0, 0.5], abs=1e-6)


def test_an_agent_without_a_velocity_leaves_the_layout_finite():
    scenario = make_scenario()
    agents = scenario.agents
    unknown = replace(agents, velocities_mps=np.full_like(agents.velocities_mps, np.nan))
    conditioner = ScenarioConditioner(replace(scenario, agents=unknown))
    assert len(conditioner.visible_agents(0))
    assert np.array_equal(conditioner.boxes(0).speeds_mps, np.zeros(len(conditioner.visible_agents(0))))
    assert bool(torch.isfinite(conditioner.layout(0).maps_VCHW).all())


def test_on_boxes_a_window_shows_what_is_painted_and_beside_them_what_is_carried():
    conditioner, codec = ScenarioConditioner(make_scenario()), Autoencoder(CodecConfig()).eval()
    images = torch.zeros(6, 3, *IMAGE_HW)
    with torch.no_grad():
        given = Given(frame=0, latents_VCHW=codec.encode(images), images_V3HW=images)
        look = conditioner.appearance(0, torch.full_like(images, 0.5), Things.none())
        both = conditioner.window([0], fps=12.0, codec=codec, sources=[given], appearance=look)
        alone = conditioner.window([0], fps=12.0, codec=codec, sources=[given])
    box = (conditioner.layout(0).box_VHW >= 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert 50 < int(box.sum()) < box.numel() / 4
    assert both.shown_TVCHW is not None and alone.shown_TVCHW is not None
    torch.testing.assert_close(both.shown_TVCHW[0, :, 0][box], torch.full((int(box.sum()),), 0.5), atol=0.01, rtol=0)
    assert float(both.shown_TVCHW[0, :, 0][~box].abs().median()) < 1e-6
    assert float(alone.shown_TVCHW.abs().max()) < 1e-6


def test_on_boxes_that_nothing_is_painted_on_a_window_shows_what_is_carried(monkeypatch):
    conditioner, codec = ScenarioConditioner(make_scenario()), Autoencoder(CodecConfig()).eval()
    images = torch.full((6, 3, *IMAGE_HW), 0.5)
    with torch.no_grad():
        given = Given(frame=0, latents_VCHW=codec.encode(images), images_V3HW=images)
        look = conditioner.appearance(0, images, Things.none())
        nothing = (torch.zeros_like(images), torch.zeros(6, 1, 64, 112))
        monkeypatch.setattr(conditioner, "painted", lambda *_: nothing)
        both = conditioner.window([0], fps=12.0, codec=codec, sources=[given], appearance=look)
        alone = conditioner.window([0], fps=12.0, codec=codec, sources=[given])
    torch.testing.assert_close(both.condition.memory_valid_BTV1HW, alone.condition.memory_valid_BTV1HW)
    assert both.shown_TVCHW is not None and alone.shown_TVCHW is not None
    torch.testing.assert_close(both.shown_TVCHW, alone.shown_TVCHW)


def test_a_window_shows_memory_over_appearance_and_knows_what_either_covers():
    def pictures(value: float, share: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.full((2, 3, 4, 8), value), torch.full((2, 1, 2, 4), share))]

    images, known = laid_over(pictures(0.8, 0.25), pictures(-0.4, 0.5))
    assert images is not None
    assert known is not None
    assert images.shape == (1, 2, 3, 4, 8)
    torch.testing.assert_close(images, torch.full_like(images, 0.25 * 0.8 - 0.75 * 0.4))
    torch.testing.assert_close(known, torch.full_like(known, 0.25 + 0.75 * 0.5))
    alone, share = laid_over(None, pictures(-0.4, 0.5))
    assert alone is not None
    assert share is not None
    assert (float(alone.mean()), float(share.mean())) == (pytest.approx(-0.4), 0.5)
    assert laid_over(None, None) == (None, None)
