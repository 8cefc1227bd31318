"""Where the cells of the bird's-eye-view grid lie: in the images, and in the grid of the frame before.

The quirks of the public code are part of what its weights were trained on, and are kept.

Shapes: B batch, V cameras, Q cells of the grid (row by row, rows along y, columns along x), Z heights, D width,
H W pixels, R rows, K columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from evaluators.vad.config import VadConfig

MIN_DEPTH_M = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Which cameras see which points above the cells."""

    places_BVQZ2: Tensor  # x, y as shares of the padded image; beyond [0, 1] outside of it
    visible_BVQ: Tensor  # bool: at least one of the heights is in the image


def cell_centers(bev_hw: tuple[int, int]) -> Tensor:
    """Centres [Q, 2] as x, y in shares of the range."""
    h, w = bev_hw
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def pillar_points(config: VadConfig) -> Tensor:
    """Points [Q, Z, 3] in metres in the LiDAR frame above the cell centres, the outer heights 0.5 m within the range."""
    low, high = torch.tensor(config.range_m[:3]), torch.tensor(config.range_m[3:])
    height_m = config.range_m[5] - config.range_m[2]
    z = torch.linspace(0.5, height_m - 0.5, config.pillar_points) / height_m
    xy = cell_centers(config.bev_hw)
    shares = torch.cat([xy[:, None].expand(-1, len(z), -1), z[None, :, None].expand(len(xy), -1, -1)], dim=-1)
    return low + shares * (high - low)


def look_up(points_QZ3: Tensor, lidar_to_image_BV44: Tensor, image_hw: tuple[int, int]) -> Sight:
    """Project points into the cameras; ``image_hw`` is the padded size that the network sees."""
    matrix = lidar_to_image_BV44.to(points_QZ3.dtype)
    with torch.autocast(matrix.device.type, enabled=False):  # half precision is pixels off
        uvd = torch.einsum("bvij,qzj->bvqzi", matrix[:, :, :3, :3], points_QZ3) + matrix[:, :, None, None, :3, 3]
    depth = uvd[..., 2]
    size_wh = points_QZ3.new_tensor((image_hw[1], image_hw[0]))
    places = uvd[..., :2] / depth.clamp(min=MIN_DEPTH_M)[..., None] / size_wh
    inside = (depth > MIN_DEPTH_M) & (places > 0).all(-1) & (places < 1).all(-1)
    return Sight(places_BVQZ2=places, visible_BVQ=inside.any(-1))


def ego_shift(can_bus_B18: Tensor, config: VadConfig) -> Tensor:
    """How far the ego has moved since the frame before [B, 2]: to its right and forward, as shares of the range.

    From the global displacement (elements 0, 1) and the heading (element 16); zero on the first frame of a scene.
    """
    dx, dy, yaw = can_bus_B18[:, 0], can_bus_B18[:, 1], can_bus_B18[:, 16]
    distance, angle = torch.sqrt(dx**2 + dy**2), yaw - torch.atan2(dy, dx)
    low_x, low_y, _, high_x, high_y, _ = config.range_m
    return torch.stack([distance * angle.sin() / (high_x - low_x), distance * angle.cos() / (high_y - low_y)], dim=-1)


def rotate_grid(bev_BQD: Tensor, angle_deg_B: Tensor, config: VadConfig) -> Tensor:
    """Turn grids about ``rotation_center_xy``: the nearest cell, zeros where the turned grid has none.

    A cell at (x, y) from the centre, x along columns and y along rows, takes what lay at (x cos a - y sin a,
    x sin a + y cos a). As torchvision's ``rotate``, whose result the public code takes. There the centre is (100, 100) at
    either size: the middle of the 200 x 200 grid, and the last corner of the 100 x 100 grid.
    """
    h, w = config.bev_hw
    angle = torch.deg2rad(angle_deg_B.to(bev_BQD.dtype))[:, None, None]
    center = bev_BQD.new_tensor(config.rotation_center_xy)
    size = bev_BQD.new_tensor((w, h))
    x, y = (cell_centers(config.bev_hw).to(bev_BQD) * size - center).unflatten(0, (h, w)).unbind(-1)
    source_x, source_y = x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()
    places = 2 * (torch.stack([source_x, source_y], dim=-1) + center) / size - 1
    plane = rearrange(bev_BQD, "b (r k) d -> b d r k", r=h)
    turned = F.grid_sample(plane, places, mode="nearest", padding_mode="zeros", align_corners=False)
    return rearrange(turned, "b d r k -> b (r k) d")
