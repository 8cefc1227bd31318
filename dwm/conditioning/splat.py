"""Draws discs into cameras: which one every pixel sees, and where in space that is.

A disc becomes a rectangle of pixels as large as the disc looks from there; of all rectangles over a pixel the nearest wins.
Discs are a little larger than the gaps between them, so that what lies behind a surface does not shine through it.

Shapes: P discs, H W pixels, N discs that are in sight, M pairs of one of those with a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dwm.scenes.types import Camera

NEAR_M = 0.5
LARGEST_PX = 7.0  # half side of a disc's picture
SMALLEST_PX = 0.75
_SLANT = 0.35  # share of its depth by which a disc enlarged to SMALLEST_PX may reach further, seen at a slant
BACK = 0.1  # cosine to the line of sight from which on a disc shows its back


@dataclass(frozen=True, slots=True, kw_only=True)
class Surfels:
    """Discs in space."""

    xyz_P3: Tensor  # metres
    normal_P3: Tensor  # unit, towards who saw it; 0 where it may face anywhere
    radius_P: Tensor  # metres
    thing_P: Tensor  # int64: which thing it lies on, -1 for none
    photo_P: Tensor  # int64: the picture that shows it best
    detail_P: Tensor  # pixels per metre in that picture; 0 where there is none

    def __len__(self) -> int:
        return len(self.radius_P)

    def select(self, index: Tensor) -> Surfels:
        """Rows by number; ``index_select`` is several times faster than indexing."""
        return Surfels(**{name: getattr(self, name).index_select(0, index) for name in Surfels.__slots__})

    def part(self, first: int, last: int) -> Surfels:
        """Consecutive rows, without a copy."""
        return Surfels(**{name: getattr(self, name)[first:last] for name in Surfels.__slots__})

    def to(self, device: torch.device) -> Surfels:
        return Surfels(**{name: getattr(self, name).to(device) for name in Surfels.__slots__})

    @staticmethod
    def concatenate(parts: Sequence[Surfels]) -> Surfels:
        return Surfels(**{name: torch.cat([getattr(p, name) for p in parts]) for name in Surfels.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What each pixel of one camera sees first."""

    index_HW: Tensor  # int64, the disc; -1 for none
    depth_HW: Tensor  # z-depth of the place where the ray meets the disc's plane, metres; inf for none
    points_HW3: Tensor  # that place, global; the camera's own where there is none


def front(surfels: Surfels, camera: Camera, ego_to_global: NDArray[np.float64], height: int, width: int) -> Front:
    """The nearest discs in an image of ``height`` x ``width``."""
    device = surfels.xyz_P3.device
    k = camera.resized(width, height).intrinsics
    pose = torch.from_numpy(ego_to_global @ camera.camera_to_ego).float().to(device)
    index, uv, depth, half = _in_sight(surfels, pose, k, height, width)
    # Positive floats order like their bits: depth in the high half makes the minimum the nearest.
    packed = (depth.view(torch.int32).long() << 32) | index
    disc, pixel = _pairs(uv, half, height, width)
    nearest = torch.full((height * width,), _NOTHING, device=device).scatter_reduce_(
        0, pixel, packed.index_select(0, disc), "amin"
    )
    found = (nearest < _NOTHING).nonzero()[:, 0]
    index = torch.full_like(nearest, -1)
    index[found] = nearest[found] & 0xFFFFFFFF
    middle = (nearest.index_select(0, found) >> 32).int().view(torch.float32)
    rays = _rays(k, pose, height, width)
    depth = torch.full(nearest.shape, torch.inf, device=device)
    depth[found] = _on_plane(surfels, index[found], pose[:3, 3], rays.index_select(0, found), middle)
    points = pose[:3, 3].repeat(height * width, 1)
    points[found] += rays[found] * depth[found, None]
    return Front(
        index_HW=index.view(height, width), depth_HW=depth.view(height, width), points_HW3=points.view(height, width, 3)
    )


_NOTHING = int(torch.tensor(torch.inf).view(torch.int32)) << 32


def _in_sight(
    surfels: Surfels, pose_44: Tensor, k_33: NDArray[np.float64], height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the discs that face a camera and fall into its image: index [N], pixel [N, 2], z-depth [N], half extents [N, 2]."""
    rotation, centre = pose_44[:3, :3], pose_44[:3, 3]
    x, y, z = rotation.T @ (surfels.xyz_P3 - centre).T  # rows that lie together in memory
    # The image's borders are planes through the camera: no division before most discs are gone.
    (fx, fy), (cx, cy) = (k_33[[0, 1], [0, 1]].tolist(), k_33[:2, 2].tolist())
    inside = (z > NEAR_M) & (fx * x > (-LARGEST_PX - cx) * z) & (fx * x < (width + LARGEST_PX - cx) * z)
    inside &= (fy * y > (-LARGEST_PX - cy) * z) & (fy * y < (height + LARGEST_PX - cy) * z)
    index = inside.nonzero()[:, 0]
    local = torch.stack([axis.index_select(0, index) for axis in (x, y, z)], -1)
    line, normal = F.normalize(local, dim=-1), surfels.normal_P3.index_select(0, index) @ rotation
    facing = ((normal * line).sum(-1) < BACK).nonzero()[:, 0]
    index, local, line, normal = (a.index_select(0, facing) for a in (index, local, line, normal))
    z = local[:, 2].contiguous()
    focal, middle = (torch.tensor(n, device=z.device) for n in ((fx, fy), (cx, cy)))
    size = surfels.radius_P.index_select(0, index)[:, None] * focal / z[:, None]
    half = (size * _foreshortened(normal, line)).clamp(SMALLEST_PX, LARGEST_PX)
    return index, local[:, :2] / z[:, None] * focal + middle, z, half


def _foreshortened(normal_N3: Tensor, line_N3: Tensor) -> Tensor:
    """Half extents [N, 2] along the image's axes of unit discs seen along a line of sight."""
    out, cosine = [], (normal_N3 * line_N3).sum(-1)
    for axis in (0, 1):
        along = line_N3[:, axis]
        # The image's axis, made perpendicular to the line of sight; the normal's share of it is what the disc loses.
        lost = (normal_N3[:, axis] - cosine * along) ** 2 / (1 - along**2).clamp(min=1e-6)
        out.append((1 - lost).clamp(min=0).sqrt())
    return torch.stack(out, -1)


def _pairs(uv_N2: Tensor, half_N2: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """All pixels whose middle a rectangle covers: index of the rectangle [M], flat pixel [M]."""
    limit = torch.tensor([width, height], device=uv_N2.device, dtype=torch.int32)
    low = (uv_N2 - half_N2 - 0.5).ceil().int().clamp(min=0)
    high = torch.minimum((uv_N2 + half_N2 - 0.5).floor().int() + 1, limit)
    columns, rows = (high - low).clamp(min=0).T.contiguous()
    count = columns * rows
    disc = torch.repeat_interleave(count)
    nth = torch.arange(len(disc), device=count.device, dtype=torch.int32) - (
        torch.cumsum(count, 0, dtype=torch.int32) - count
    ).index_select(0, disc)
    columns, first = (a.index_select(0, disc) for a in (columns, low[:, 1] * width + low[:, 0]))
    row = torch.div(nth, columns, rounding_mode="floor")
    return disc, (first + nth + row * (width - columns)).long()


def _rays(k_33: NDArray[np.float64], pose_44: Tensor, height: int, width: int) -> Tensor:
    """Directions [H*W, 3] of the pixels' rays, with camera depth 1."""
    device = pose_44.device
    v, u = torch.meshgrid(torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij")
    local = torch.stack([(u - k_33[0, 2]) / k_33[0, 0], (v - k_33[1, 2]) / k_33[1, 1], torch.ones_like(u)], -1)
    return (local.float() @ pose_44[:3, :3].T).view(-1, 3)


def _on_plane(surfels: Surfels, index: Tensor, origin_3: Tensor, ray: Tensor, middle: Tensor) -> Tensor:
    """z-depths at which rays meet the planes of discs, not much further from the disc's own depth than it reaches."""
    normal = surfels.normal_P3.index_select(0, index)
    slope = (normal * ray).sum(-1)
    meets = (normal * (surfels.xyz_P3.index_select(0, index) - origin_3)).sum(-1) / torch.where(slope.abs() < 1e-4, 1e-4, slope)
    reach = 1.5 * surfels.radius_P.index_select(0, index) + _SLANT * middle
    within = torch.minimum(torch.maximum(meets, middle - reach), middle + reach).clamp(min=NEAR_M / 2)
    return torch.where((normal != 0).any(-1), within, middle)
