"""One ray caster for cameras and LiDAR: upright boxes, ellipsoids and the ground plane z = 0, on CPU or GPU.

Every primitive is bounded by a rectangle of rays in each view; all (primitive, ray) pairs inside those rectangles are
intersected in one batch and the nearest hit wins. The same rays meet the same geometry whatever the sensor.

Shapes: V views, H W rays of a view (image rows and columns, or LiDAR rings and azimuths), N primitives, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

GROUND, SKY = -1, -2
_NEAR_M = 0.1
_EDGES = torch.tensor(
    [[0, 1], [1, 3], [3, 2], [2, 0], [4, 5], [5, 7], [7, 6], [6, 4], [0, 4], [1, 5], [2, 6], [3, 7]], dtype=torch.long
)
_SIGNS = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Primitives:
    """Upright boxes and ellipsoids in the global frame."""

    center_N3: Tensor  # float32 metres
    half_N3: Tensor  # half extents along the primitive's own axes, metres
    yaw_N: Tensor  # radians
    ellipsoid_N: Tensor  # bool

    def __len__(self) -> int:
        return len(self.yaw_N)

    def select(self, index: Tensor) -> Primitives:
        return Primitives(
            center_N3=self.center_N3[index], half_N3=self.half_N3[index],
            yaw_N=self.yaw_N[index], ellipsoid_N=self.ellipsoid_N[index],
        )  # fmt: skip

    def corners(self) -> Tensor:  # [N, 8, 3]
        local = _SIGNS.to(self.half_N3) * self.half_N3[:, None]
        cos, sin = self.yaw_N.cos()[:, None], self.yaw_N.sin()[:, None]
        x, y = cos * local[..., 0] - sin * local[..., 1], sin * local[..., 0] + cos * local[..., 1]
        return torch.stack([x, y, local[..., 2]], -1) + self.center_N3[:, None]

    @staticmethod
    def concatenate(parts: list[Primitives]) -> Primitives:
        return Primitives(
            center_N3=torch.cat([p.center_N3 for p in parts]), half_N3=torch.cat([p.half_N3 for p in parts]),
            yaw_N=torch.cat([p.yaw_N for p in parts]), ellipsoid_N=torch.cat([p.ellipsoid_N for p in parts]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangles:
    """Ray rectangles [u0, u1) x [v0, v1) of pairs (view, primitive). Columns may wrap where the sensor goes round."""

    view: Tensor
    primitive: Tensor
    u0: Tensor
    u1: Tensor
    v0: Tensor
    v1: Tensor


class Sensor(Protocol):
    """Rays of V views of H x W and the rectangles that bound primitives in them."""

    origins_V3: Tensor
    directions_VHW3: Tensor

    def rectangles(self, primitives: Primitives) -> Rectangles: ...


class PinholeViews:
    """Rays through pixel centres. Directions have camera depth 1, so a ray's distance is its z-depth."""

    def __init__(self, camera_to_global_V44: Tensor, intrinsics_V33: Tensor, height: int, width: int) -> None:
        self.camera_to_global, self.intrinsics = camera_to_global_V44.float(), intrinsics_V33.float()
        self.height, self.width = height, width
        device = self.camera_to_global.device
        v, u = torch.meshgrid(
            torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij"
        )
        k = self.intrinsics[:, :, :, None, None]
        x, y = (u - k[:, 0, 2]) / k[:, 0, 0], (v - k[:, 1, 2]) / k[:, 1, 1]
        directions = torch.stack([x, y, torch.ones_like(x)], dim=-1)
        self.directions_VHW3 = torch.einsum("vij,vhwj->vhwi", self.camera_to_global[:, :3, :3], directions).contiguous()
        self.origins_V3 = self.camera_to_global[:, :3, 3].contiguous()

    def rectangles(self, primitives: Primitives) -> Rectangles:
        rotation = self.camera_to_global[:, :3, :3]
        offset = primitives.corners()[None] - self.origins_V3[:, None, None]  # [V, N, 8, 3]
        points = torch.einsum("vnkj,vji->vnki", offset, rotation)
        a, b = points[:, :, _EDGES[:, 0]], points[:, :, _EDGES[:, 1]]
        denominator = b[..., 2] - a[..., 2]
        step = (_NEAR_M - a[..., 2]) / torch.where(denominator.abs() < 1e-9, torch.full_like(denominator, 1e-9), denominator)
        clipped = a + step[..., None] * (b - a)
        points = torch.cat([points, clipped], dim=2)  # corners, then where the edges pierce the near plane
        crosses = (a[..., 2] < _NEAR_M) != (b[..., 2] < _NEAR_M)
        valid = torch.cat([points[:, :, :8, 2] >= _NEAR_M, crosses], dim=2)
        k = self.intrinsics[:, None, None]
        z = points[..., 2].clamp(min=_NEAR_M * 0.5)
        u = k[..., 0, 0] * points[..., 0] / z + k[..., 0, 2]
        v = k[..., 1, 1] * points[..., 1] / z + k[..., 1, 2]
        big = 1e9
        low = [torch.where(valid, x, torch.full_like(x, big)).amin(2) for x in (u, v)]
        high = [torch.where(valid, x, torch.full_like(x, -big)).amax(2) for x in (u, v)]
        u0, v0 = ((x - 0.5).ceil().clamp(0, n).int() for x, n in zip(low, (self.width, self.height), strict=True))
        u1, v1 = (((x - 0.5).floor() + 1).clamp(0, n).int() for x, n in zip(high, (self.width, self.height), strict=True))
        keep = valid.any(2) & (u1 > u0) & (v1 > v0)
        view, index = keep.nonzero(as_tuple=True)
        return Rectangles(view=view, primitive=index, u0=u0[keep], u1=u1[keep], v0=v0[keep], v1=v1[keep])


class SphericalScan:
    """A spinning LiDAR: one view, rings (rows, by elevation) x azimuths (columns). Directions are unit vectors."""

    def __init__(self, sensor_to_global_44: Tensor, elevations_rad: Tensor, n_azimuths: int) -> None:
        self.sensor_to_global = sensor_to_global_44.float()
        self.elevations, self.n_azimuths = elevations_rad.float(), n_azimuths
        azimuth = (torch.arange(n_azimuths, device=self.elevations.device) + 0.5) * (2 * torch.pi / n_azimuths) - torch.pi
        ce, se = self.elevations.cos()[:, None], self.elevations.sin()[:, None]
        local = torch.stack([ce * azimuth.cos(), ce * azimuth.sin(), se.expand(-1, n_azimuths)], dim=-1)
        self.directions_VHW3 = (local @ self.sensor_to_global[:3, :3].T)[None].contiguous()
        self.origins_V3 = self.sensor_to_global[None, :3, 3].contiguous()

    def rectangles(self, primitives: Primitives) -> Rectangles:
        # Bounds in the sensor's horizontal plane; the sensor is upright.
        offset = (primitives.center_N3 - self.origins_V3) @ self.sensor_to_global[:3, :3]
        radius = primitives.half_N3[:, :2].norm(dim=1)
        distance = offset[:, :2].norm(dim=1)
        inside = distance <= radius * 1.01
        half_angle = torch.where(inside, torch.pi, torch.asin((radius / distance).clamp(max=1.0)))
        azimuth = torch.atan2(offset[:, 1], offset[:, 0])
        per_column = 2 * torch.pi / self.n_azimuths
        u0 = ((azimuth - half_angle + torch.pi) / per_column - 0.5).ceil().int()
        u1 = (((azimuth + half_angle + torch.pi) / per_column - 0.5).floor() + 1).int()
        u1 = torch.minimum(u1, u0 + self.n_azimuths)
        near, far = (distance - radius).clamp(min=0.05), distance + radius
        low, high = offset[:, 2] - primitives.half_N3[:, 2], offset[:, 2] + primitives.half_N3[:, 2]
        lowest = torch.minimum(torch.atan2(low, near), torch.atan2(low, far))
        highest = torch.maximum(torch.atan2(high, near), torch.atan2(high, far))
        v0 = torch.searchsorted(self.elevations, lowest).int()
        v1 = torch.searchsorted(self.elevations, highest, right=True).int()
        index = ((u1 > u0) & (v1 > v0)).nonzero()[:, 0]
        zeros = torch.zeros_like(index)
        return Rectangles(view=zeros, primitive=index, u0=u0[index], u1=u1[index], v0=v0[index], v1=v1[index])


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """What each ray meets first. ``index``: a primitive, GROUND or SKY; ``distance`` in units of the ray's direction."""

    distance_VHW: Tensor
    index_VHW: Tensor


def cast(sensor: Sensor, primitives: Primitives, max_distance: float, ground: bool = True) -> Hits:
    """Nearest hit of every ray within ``max_distance`` (z-depth for pinhole views, range for LiDAR, metres)."""
    directions = sensor.directions_VHW3
    n_views, height, width, _ = directions.shape
    far = torch.tensor(max_distance, dtype=torch.float32, device=directions.device)
    best = _pack(far, torch.tensor(0, device=directions.device)).repeat(n_views * height * width)
    if len(primitives):
        ray, distance, index = _intersect_pairs(sensor, primitives, max_distance)
        best.scatter_reduce_(0, ray, _pack(distance, index), "amin")
    distance = (best >> 32).int().view(torch.float32).view(n_views, height, width)
    index = (best & 0xFFFFFFFF).view(n_views, height, width)
    hit = distance < max_distance
    index = torch.where(hit, index, torch.full_like(index, SKY))
    if ground:
        dz = directions[..., 2]
        below = -sensor.origins_V3[:, 2, None, None] / torch.where(dz < -1e-6, dz, torch.full_like(dz, -1e-6))
        on_ground = (dz < -1e-6) & (below < distance)
        distance = torch.where(on_ground, below, distance)
        index = torch.where(on_ground, torch.full_like(index, GROUND), index)
    return Hits(distance_VHW=distance, index_VHW=index)


def _pack(distance: Tensor, index: Tensor) -> Tensor:
    """Positive floats order like their bits: distance in the high half makes the minimum the nearest."""
    return (distance.contiguous().view(torch.int32).long() << 32) | index.long()


def _intersect_pairs(sensor: Sensor, primitives: Primitives, max_distance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Flat ray index, distance and primitive of every hit among the candidate pairs."""
    rect = sensor.rectangles(primitives)
    _, height, width, _ = sensor.directions_VHW3.shape
    columns = rect.u1 - rect.u0
    count = columns * (rect.v1 - rect.v0)
    pair = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    start = torch.cumsum(count, 0) - count
    offset = (torch.arange(len(pair), device=count.device) - start[pair]).int()
    row = torch.div(offset, columns[pair], rounding_mode="floor")
    column = (offset - row * columns[pair] + rect.u0[pair]) % width
    ray = rect.view[pair] * (height * width) + (row + rect.v0[pair]) * width + column

    # Per (view, primitive): the origin in the primitive's axes, scaled so that the primitive is the unit cube or sphere.
    yaw, half = primitives.yaw_N[rect.primitive], primitives.half_N3[rect.primitive]
    cos, sin = yaw.cos(), yaw.sin()
    o = sensor.origins_V3[rect.view] - primitives.center_N3[rect.primitive]
    origin = torch.stack([cos * o[:, 0] + sin * o[:, 1], -sin * o[:, 0] + cos * o[:, 1], o[:, 2]], -1) / half
    axes = torch.stack([cos / half[:, 0], sin / half[:, 0], -sin / half[:, 1], cos / half[:, 1], 1 / half[:, 2]], -1)
    dx, dy, dz = sensor.directions_VHW3.reshape(-1, 3)[ray].unbind(-1)
    a0, a1, a2, a3, a4 = axes[pair].unbind(-1)
    ox, oy, oz = origin[pair].unbind(-1)
    ux, uy, uz = a0 * dx + a1 * dy, a2 * dx + a3 * dy, a4 * dz
    distance, hit = _slab(ox, oy, oz, ux, uy, uz)
    round_ = primitives.ellipsoid_N[rect.primitive][pair].nonzero()[:, 0]
    if len(round_):
        components = [x[round_] for x in (ox, oy, oz, ux, uy, uz)]
        distance[round_], hit[round_] = _sphere(*components)
    hit &= distance < max_distance
    return ray[hit], distance[hit], rect.primitive[pair[hit]]


def _slab(ox: Tensor, oy: Tensor, oz: Tensor, ux: Tensor, uy: Tensor, uz: Tensor) -> tuple[Tensor, Tensor]:
    """Entry distance into the unit cube [-1, 1]^3; rays that start inside hit nothing."""
    enter = torch.full_like(ox, -1e30)
    leave = torch.full_like(ox, 1e30)
    for o, u in ((ox, ux), (oy, uy), (oz, uz)):
        inverse = 1.0 / torch.where(u.abs() < 1e-12, torch.full_like(u, 1e-12), u)
        middle, spread = -o * inverse, inverse.abs()
        enter, leave = torch.maximum(enter, middle - spread), torch.minimum(leave, middle + spread)
    return enter, (enter <= leave) & (enter > 1e-4)


def _sphere(ox: Tensor, oy: Tensor, oz: Tensor, ux: Tensor, uy: Tensor, uz: Tensor) -> tuple[Tensor, Tensor]:
    """Entry distance into the unit sphere."""
    a = ux * ux + uy * uy + uz * uz
    b = ox * ux + oy * uy + oz * uz
    c = ox * ox + oy * oy + oz * oz - 1.0
    discriminant = b * b - a * c
    enter = (-b - discriminant.clamp(min=0).sqrt()) / a
    return enter, (discriminant >= 0) & (enter > 1e-4)
