"""Lifting image features to the bird's-eye view."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from einops import rearrange

from dwm.geometry import transform
from evaluators.detector.model import (
    FEATURE_STRIDE,
    BevDetector,
    DetectorConfig,
    Rigs,
    grid_points,
    lift,
    lift_slowly,
    lift_taps,
)

CONFIG = DetectorConfig(
    image_hw=(32, 64), half_range_m=12.8, cell_m=0.8, heights_m=(0.4, 1.2), image_channels=16, bev_channels=16
)
VIEWS = 6


def ring_rigs(batch: int, frames: int = 1, seed: int = 0) -> Rigs:
    """Six cameras around a car, each batch entry and frame turned a little."""
    rng = np.random.default_rng(seed)
    looks_forward = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    cameras = np.zeros((batch, frames, VIEWS, 4, 4))
    for index in np.ndindex(batch, frames, VIEWS):
        yaw = -index[2] * math.pi / 3 + rng.uniform(-0.1, 0.1)
        turn = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
        cameras[index] = transform(np.array([math.cos(yaw), math.sin(yaw), 1.5]), turn @ looks_forward)
    intrinsics = np.array([[48.0, 0, 32], [0, 48, 16], [0, 0, 1]])
    return Rigs(
        intrinsics_BFV33=torch.tensor(intrinsics).float().expand(batch, frames, VIEWS, 3, 3),
        camera_to_ego_BFV44=torch.tensor(cameras).float(),
    )


def test_fast_lift_equals_dense_grid_sample_in_value_and_gradient() -> None:
    rigs, points = ring_rigs(2, 2), grid_points(CONFIG)
    taps = lift_taps(points, rigs, CONFIG.image_hw)
    generator = torch.Generator().manual_seed(0)
    shape = (2 * 2 * VIEWS, 16, CONFIG.image_hw[0] // FEATURE_STRIDE, CONFIG.image_hw[1] // FEATURE_STRIDE)
    features = torch.randn(shape, generator=generator)
    fast, slow = features.clone().requires_grad_(), features.clone().requires_grad_()
    out_fast, out_slow = lift(fast, taps), lift_slowly(slow, points, rigs, CONFIG.image_hw)
    assert out_slow.abs().max() > 1
    torch.testing.assert_close(out_fast, out_slow, atol=1e-4, rtol=1e-4)
    probe = torch.randn(out_slow.shape, generator=generator)
    (out_fast * probe).sum().backward()
    (out_slow * probe).sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad, atol=1e-3, rtol=1e-3)


def test_one_lit_feature_pixel_lights_the_cells_on_its_ray_and_no_other() -> None:
    """The centre of feature cell (row 5, column 8) lies at pixel (34, 22): a ray that closed form follows to the ground."""
    rigs, points = ring_rigs(1, seed=3), grid_points(CONFIG)
    features = torch.zeros(VIEWS, 1, 8, 16)
    row, column = 5, 8
    features[0, 0, row, column] = 1.0
    lifted = lift(features, lift_taps(points, rigs, CONFIG.image_hw))[:, 0]
    camera = rigs.camera_to_ego_BFV44[0, 0, 0].double().numpy()
    pixel = np.array([(column + 0.5) * FEATURE_STRIDE, (row + 0.5) * FEATURE_STRIDE])
    ray = camera[:3, :3] @ np.array([(pixel[0] - 32) / 48, (pixel[1] - 16) / 48, 1.0])
    best = int(lifted.argmax())
    height = float(points[best, 2])
    hit = camera[:3, 3] + ray * (height - camera[2, 3]) / ray[2]
    spread = np.linalg.norm(points[:, :2].numpy() - hit[:2], axis=1)
    same_height = points[:, 2].numpy() == height
    lit = lifted.numpy() > 0.5
    assert lit.any()
    assert spread[lit & same_height].max() < 3 * CONFIG.cell_m
    nearest = np.where(same_height, spread, np.inf).argmin()
    assert lifted[nearest] > 0.4


def test_a_point_seen_by_two_cameras_gets_their_mean() -> None:
    rigs = ring_rigs(1)
    twice = Rigs(
        intrinsics_BFV33=rigs.intrinsics_BFV33[:, :, :2],
        camera_to_ego_BFV44=rigs.camera_to_ego_BFV44[:, :, :1].expand(1, 1, 2, 4, 4),
    )
    points = torch.tensor([[10.0, 0.3, 1.2]])
    features = torch.cat([torch.full((1, 1, 8, 16), 2.0), torch.full((1, 1, 8, 16), 6.0)])
    lifted = lift(features, lift_taps(points, twice, CONFIG.image_hw))
    assert lifted.item() == pytest.approx(4.0, abs=1e-5)


def test_the_past_frame_enters_through_its_own_cameras() -> None:
    config = DetectorConfig(**{**{k: getattr(CONFIG, k) for k in CONFIG.__dataclass_fields__}, "frames": 2})
    torch.manual_seed(0)
    model = BevDetector(config)
    images = torch.rand(1, 2, VIEWS, 3, 32, 64)
    with torch.no_grad():
        still = model(images, model.taps(ring_rigs(1, 2, seed=1)))["heatmap"]
        moved_rigs = ring_rigs(1, 2, seed=1)
        moved_rigs.camera_to_ego_BFV44[:, 1, :, 0, 3] -= 4.0
        moved = model(images, model.taps(moved_rigs))["heatmap"]
    assert still.shape == (1, 10, 32, 32)
    assert (still - moved).abs().max() > 1e-4


def test_points_are_ordered_by_x_then_y_then_height() -> None:
    points = rearrange(grid_points(CONFIG), "(x y z) c -> x y z c", x=32, y=32)
    torch.testing.assert_close(points[3, 7, 1], torch.tensor([-12.8 + 3.5 * 0.8, -12.8 + 7.5 * 0.8, 1.2]))
