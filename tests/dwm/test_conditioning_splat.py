"""Discs drawn into a camera: who hides whom, how large they look, and a slow twin that draws them one by one."""

import numpy as np
import torch

from dwm.conditioning.splat import BACK, LARGEST_PX, NEAR_M, SMALLEST_PX, Surfels, front
from dwm.scenes.types import Camera

H, W, FOCAL = 24, 32, 20.0
# Looks along x from the origin: x right is -y, y down is -z.
FORWARD = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
CAMERA = Camera(
    channel="CAM_FRONT", intrinsics=np.array([[FOCAL, 0, W / 2], [0, FOCAL, H / 2], [0, 0, 1]]), camera_to_ego=FORWARD,
    width_px=W, height_px=H,
)  # fmt: skip


def discs(xyz: np.ndarray, normal: tuple[float, float, float] = (0, 0, 0), radius: float = 0.1) -> Surfels:
    count = len(xyz)
    return Surfels(
        xyz_P3=torch.tensor(xyz).float(), normal_P3=torch.tensor(normal).float().repeat(count, 1), radius_P=torch.full((count,), radius),
        thing_P=torch.full((count,), -1), photo_P=torch.zeros(count, dtype=torch.long), detail_P=torch.ones(count),
    )  # fmt: skip


def wall(x: float, half: float, step: float) -> np.ndarray:
    """Points of a square across the camera's axis."""
    line = np.arange(-half, half + step / 2, step)
    y, z = np.meshgrid(line, line)
    return np.column_stack([np.full(y.size, x), y.ravel(), z.ravel()])


def test_a_wall_in_front_hides_the_wall_behind_it_and_only_there():
    near, far = wall(5.0, 1.0, 0.2), wall(10.0, 8.0, 0.2)
    seen = front(discs(np.concatenate([near, far]), (-1, 0, 0), 0.16), CAMERA, np.eye(4), H, W)
    assert (seen.index_HW >= 0).all()
    depth = seen.depth_HW
    # The near wall spans one metre to each side at 5 m: 20 / 5 = 4 pixels, and its discs reach 0.64 pixels further.
    middle = depth[H // 2 - 4 : H // 2 + 4, W // 2 - 4 : W // 2 + 4]
    torch.testing.assert_close(middle, torch.full_like(middle, 5.0))
    beside = depth.clone()
    beside[H // 2 - 5 : H // 2 + 5, W // 2 - 5 : W // 2 + 5] = 10.0
    torch.testing.assert_close(beside, torch.full_like(depth, 10.0))


def test_a_sparse_wall_lets_nothing_shine_through_when_its_discs_close_the_gaps_and_all_when_they_do_not():
    near, far = wall(4.0, 4.0, 0.5), wall(8.0, 8.0, 0.2)  # 2.5 pixels apart
    both = [discs(near, (-1, 0, 0), radius) for radius in (0.4, 0.02)]
    closed, open_ = (front(Surfels.concatenate([n, discs(far, (-1, 0, 0), 0.2)]), CAMERA, np.eye(4), H, W) for n in both)
    assert (closed.depth_HW == 4.0).all()
    assert 0.3 < float((open_.depth_HW == 8.0).float().mean()) < 0.95


def test_the_road_is_met_at_its_own_depth_everywhere_though_its_discs_are_large():
    grid = np.stack(np.meshgrid(np.arange(1.0, 30, 0.3), np.arange(-12, 12, 0.3)), -1).reshape(-1, 2)
    road = np.column_stack([grid, np.full(len(grid), -1.5)])
    seen = front(discs(road, (0, 0, 1), 0.3), CAMERA, np.eye(4), H, W)
    rows = np.arange(H // 2 + 2, H)
    expected = torch.tensor(1.5 * FOCAL / (rows + 0.5 - H / 2)).float()
    got = seen.depth_HW[H // 2 + 2 :, W // 2]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(seen.points_HW3[H // 2 + 2 :, W // 2, 2], torch.full((len(rows),), -1.5), atol=0.01, rtol=0)
    assert (seen.index_HW[: H // 2 - 1] == -1).all()  # nothing hangs above the horizon


def test_backs_are_not_seen():
    seen = front(discs(wall(5.0, 2.0, 0.2), (1, 0, 0)), CAMERA, np.eye(4), H, W)
    assert (seen.index_HW == -1).all()
    assert torch.isinf(seen.depth_HW).all()


def test_nothing_at_all_gives_an_empty_picture():
    seen = front(discs(np.zeros((0, 3))), CAMERA, np.eye(4), H, W)
    assert (seen.index_HW == -1).all()


def slow_twin(surfels: Surfels) -> np.ndarray:
    """The nearest disc of every pixel, disc by disc and pixel by pixel."""
    best, depth = np.full((H, W), -1), np.full((H, W), np.inf)
    for i in range(len(surfels)):
        local = FORWARD[:3, :3].T @ surfels.xyz_P3[i].double().numpy()
        normal = FORWARD[:3, :3].T @ surfels.normal_P3[i].double().numpy()
        line = local / np.linalg.norm(local)
        if local[2] <= NEAR_M or normal @ line >= BACK:
            continue
        u, v = FOCAL * local[:2] / local[2] + [W / 2, H / 2]
        half = []
        for axis in (0, 1):
            across = np.eye(3)[axis] - line * line[axis]
            lost = normal @ across / np.linalg.norm(across)
            share = np.sqrt(max(1 - lost**2, 0))
            half.append(np.clip(float(surfels.radius_P[i]) * FOCAL / local[2] * share, SMALLEST_PX, LARGEST_PX))
        for row in range(H):
            for column in range(W):
                covers = abs(column + 0.5 - u) <= half[0] and abs(row + 0.5 - v) <= half[1]
                if covers and local[2] < depth[row, column]:
                    best[row, column], depth[row, column] = i, local[2]
    return best


def test_the_fast_way_sees_the_same_discs_as_the_slow_one():
    rng = np.random.default_rng(0)
    xyz = rng.uniform((-2, -4, -3), (12, 4, 3), (120, 3))
    normals = rng.normal(size=(120, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normals[::3] = 0
    surfels = Surfels(
        xyz_P3=torch.tensor(xyz).float(), normal_P3=torch.tensor(normals).float(), radius_P=torch.tensor(rng.uniform(0.02, 0.8, 120)).float(),
        thing_P=torch.full((120,), -1), photo_P=torch.zeros(120, dtype=torch.long), detail_P=torch.ones(120),
    )  # fmt: skip
    seen, expected = front(surfels, CAMERA, np.eye(4), H, W), slow_twin(surfels)
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(seen.index_HW.numpy(), expected)
