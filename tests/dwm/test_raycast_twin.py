"""The batched ray caster against a slow loop over every ray and primitive."""

import numpy as np
import pytest
import torch

from dwm.raycast import GROUND, SKY, PinholeViews, Primitives, SphericalScan, cast


def random_primitives(rng: np.random.Generator, n: int) -> Primitives:
    return Primitives(
        center_N3=torch.from_numpy(rng.uniform([-25, -25, 0.5], [25, 25, 4], (n, 3))).float(),
        half_N3=torch.from_numpy(rng.uniform(0.2, 3.0, (n, 3))).float(),
        yaw_N=torch.from_numpy(rng.uniform(-4, 4, n)).float(),
        ellipsoid_N=torch.from_numpy(rng.random(n) < 0.4),
    )


def looking(yaw: float, position: tuple[float, float, float]) -> torch.Tensor:
    """camera_to_global of an upright camera."""
    forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    right, down = np.array([np.sin(yaw), -np.cos(yaw), 0.0]), np.array([0.0, 0.0, -1.0])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.stack([right, down, forward], axis=1), position
    return torch.from_numpy(pose).float()


def slow_cast(sensor: PinholeViews | SphericalScan, primitives: Primitives, far: float) -> tuple[np.ndarray, np.ndarray]:
    """Every ray against every primitive, in float64 and without bounding anything."""
    direction = sensor.directions_VHW3.double().numpy()
    origin = sensor.origins_V3.double().numpy()[:, None, None]
    best, which = np.full(direction.shape[:3], far), np.full(direction.shape[:3], SKY)
    for n in range(len(primitives)):
        c, s = np.cos(float(primitives.yaw_N[n])), np.sin(float(primitives.yaw_N[n]))
        to_local = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        half = primitives.half_N3[n].double().numpy()
        o = (origin - primitives.center_N3[n].double().numpy()) @ to_local.T / half
        d = direction @ to_local.T / half
        if primitives.ellipsoid_N[n]:
            a, b, k = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1
            hit = b * b >= a * k
            t = (-b - np.sqrt(np.maximum(b * b - a * k, 0))) / a
        else:
            t0, t1 = (-1 - o) / d, (1 - o) / d
            t = np.minimum(t0, t1).max(-1)
            hit = t <= np.maximum(t0, t1).min(-1)
        nearer = hit & (t > 1e-4) & (t < best)
        best, which = np.where(nearer, t, best), np.where(nearer, n, which)
    ground = np.where(direction[..., 2] < -1e-6, -origin[..., 2] / np.minimum(direction[..., 2], -1e-6), np.inf)
    on_ground = ground < best
    return np.where(on_ground, ground, best), np.where(on_ground, GROUND, which)


def sensors() -> list[PinholeViews | SphericalScan]:
    intrinsics = torch.tensor([[20.0, 0, 16], [0, 20.0, 9], [0, 0, 1]]).repeat(2, 1, 1)
    poses = torch.stack([looking(0.3, (0.0, 0.0, 1.5)), looking(2.5, (3.0, -2.0, 1.6))])
    lidar = torch.eye(4)
    lidar[:3, 3] = torch.tensor([1.0, 2.0, 1.8])
    return [PinholeViews(poses, intrinsics, 18, 32), SphericalScan(lidar, torch.deg2rad(torch.linspace(-30, 10, 12)), 60)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("sensor", sensors(), ids=["cameras", "lidar"])
def test_every_ray_meets_what_a_slow_loop_finds(sensor: PinholeViews | SphericalScan, seed: int) -> None:
    primitives = random_primitives(np.random.default_rng(seed), 40)
    hits = cast(sensor, primitives, 59.0)
    distance, index = slow_cast(sensor, primitives, 59.0)
    same = hits.index_VHW.numpy() == index
    assert same.mean() > 0.998  # rays along an edge may fall to either side in float32
    both = same & (index != SKY)
    assert (index >= 0).sum() > 50
    np.testing.assert_allclose(hits.distance_VHW.numpy()[both], distance[both], rtol=2e-4, atol=2e-3)


def test_depth_of_a_wall_ahead_is_its_distance() -> None:
    wall = Primitives(
        center_N3=torch.tensor([[11.0, 0.0, 5.0]]), half_N3=torch.tensor([[1.0, 50.0, 5.0]]),
        yaw_N=torch.zeros(1), ellipsoid_N=torch.zeros(1, dtype=torch.bool),
    )  # fmt: skip
    intrinsics = torch.tensor([[[20.0, 0, 16], [0, 20.0, 9], [0, 0, 1]]])
    hits = cast(PinholeViews(looking(0.0, (0.0, 0.0, 1.5))[None], intrinsics, 18, 32), wall, 100.0)
    top = hits.distance_VHW[0, :9]  # above the horizon
    assert torch.allclose(top[hits.index_VHW[0, :9] == 0], torch.tensor(10.0))
    assert int((hits.index_VHW[0, 3:9] == 0).sum()) == 6 * 32


def test_nothing_in_sight_is_sky_above_and_ground_below() -> None:
    empty = Primitives(
        center_N3=torch.zeros(0, 3),
        half_N3=torch.zeros(0, 3),
        yaw_N=torch.zeros(0),
        ellipsoid_N=torch.zeros(0, dtype=torch.bool),
    )
    intrinsics = torch.tensor([[[20.0, 0, 16], [0, 20.0, 9], [0, 0, 1]]])
    hits = cast(PinholeViews(looking(0.0, (0.0, 0.0, 1.5))[None], intrinsics, 18, 32), empty, 100.0)
    assert (hits.index_VHW[0, :9] == SKY).all()
    assert (hits.index_VHW[0, 10:] == GROUND).all()
    # Row 17's centre looks down 8.5/20 per metre: 1.5 m of height last 1.5 / (8.5 / 20) m.
    assert float(hits.distance_VHW[0, 17, 0]) == pytest.approx(1.5 * 20 / 8.5, rel=1e-5)
