"""Renders the city: cameras and LiDAR from one ray caster.

Shapes: V views, H W pixels, P hit pixels, A agents, N primitives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dwm.raycast import SKY, PinholeViews, Primitives, SphericalScan, cast
from dwm.scenes.proving_ground import materials
from dwm.scenes.proving_ground.city import City
from dwm.scenes.proving_ground.ground import ground_texture
from dwm.scenes.proving_ground.shading import shade
from dwm.scenes.proving_ground.shapes import shape_of
from dwm.scenes.proving_ground.weather import Weather
from dwm.scenes.types import Camera

VIEW_RANGE_M, LIDAR_RANGE_M = 170.0, 100.0
LIDAR_ELEVATIONS_RAD = np.deg2rad(np.linspace(-30.0, 10.0, 32))


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderAgent:
    """One agent at one moment, in the global frame."""

    detection_class: str
    center_m: NDArray[np.float64]  # [3]
    yaw_rad: float
    size_wlh_m: NDArray[np.float64]  # [3]
    seed: int  # picks its colour
    speed_mps: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedViews:
    """What the cameras see."""

    image: NDArray[np.uint8]  # [V, H, W, 3]
    depth_m: NDArray[np.float32]  # [V, H, W] z-depth, inf for sky
    instance: NDArray[np.int32]  # [V, H, W] index of the agent, -1 elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Primitives with what shading needs."""

    primitives: Primitives
    color_N3: Tensor
    material_N: Tensor  # codes of ``materials``
    seed_N: Tensor
    agent_N: Tensor  # index of the agent, -1 for the city

    def select(self, index: Tensor) -> Geometry:
        return Geometry(
            primitives=self.primitives.select(index), color_N3=self.color_N3[index], material_N=self.material_N[index],
            seed_N=self.seed_N[index], agent_N=self.agent_N[index],
        )  # fmt: skip

    @staticmethod
    def concatenate(a: Geometry, b: Geometry) -> Geometry:
        return Geometry(
            primitives=Primitives.concatenate([a.primitives, b.primitives]), color_N3=torch.cat([a.color_N3, b.color_N3]),
            material_N=torch.cat([a.material_N, b.material_N]), seed_N=torch.cat([a.seed_N, b.seed_N]),
            agent_N=torch.cat([a.agent_N, b.agent_N]),
        )  # fmt: skip


class Renderer:
    """A city ready to be looked at. The same arguments give the same pixels and points."""

    def __init__(self, city: City, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._statics = _city_geometry(city, self.device)
        self._ground = ground_texture(city.surface, city.metres_per_pixel, city.seed, self.device)

    def render(
        self,
        cameras: Sequence[Camera],
        ego_to_global: NDArray[np.float64],  # [V, 4, 4] at each camera's own time
        agents: Sequence[RenderAgent],
        weather: Weather,
        seed: int,
    ) -> RenderedViews:
        """Images of all cameras (one size) at one moment. ``seed`` draws rain and sensor noise."""
        with torch.inference_mode():
            camera_to_global = np.stack([e @ c.camera_to_ego for e, c in zip(ego_to_global, cameras, strict=True)])
            views = PinholeViews(
                torch.from_numpy(camera_to_global).float().to(self.device),
                torch.from_numpy(np.stack([c.intrinsics for c in cameras])).float().to(self.device),
                cameras[0].height_px, cameras[0].width_px,
            )  # fmt: skip
            geometry = self._around(ego_to_global[0, :2, 3], agents, VIEW_RANGE_M, shadows=True)
            hits = cast(views, geometry.primitives, VIEW_RANGE_M)
            image = shade(views, hits, geometry, self._ground, weather, ego_to_global[0], seed)
            # A shadow is dark ground, not a part of its agent.
            agent = torch.where(geometry.material_N == materials.SHADOW, -1, geometry.agent_N)
            index = hits.index_VHW
            instance = torch.where(index >= 0, agent[index.clamp(min=0)] if len(agent) else index, -1)
            depth = torch.where(index == SKY, torch.inf, hits.distance_VHW)
        return RenderedViews(
            image=image.cpu().numpy(), depth_m=depth.cpu().numpy(), instance=instance.to(torch.int32).cpu().numpy()
        )

    def scan(
        self,
        lidar_to_global: NDArray[np.float64],  # [4, 4]
        agents: Sequence[RenderAgent],
        weather: Weather,
        seed: int,
        n_azimuths: int = 1080,
    ) -> NDArray[np.float32]:
        """One LiDAR sweep: points [N, 5] of x, y, z in the LiDAR frame, intensity 0..255 and ring."""
        with torch.inference_mode():
            sensor = SphericalScan(
                torch.from_numpy(lidar_to_global).float().to(self.device),
                torch.from_numpy(LIDAR_ELEVATIONS_RAD).float().to(self.device), n_azimuths,
            )  # fmt: skip
            geometry = self._around(lidar_to_global[:2, 3], agents, LIDAR_RANGE_M, shadows=False)
            hits = cast(sensor, geometry.primitives, min(LIDAR_RANGE_M, 1.2 * weather.visibility_m))
            index, distance = hits.index_VHW[0], hits.distance_VHW[0]
            ring, column = ((index != SKY) & (distance < LIDAR_RANGE_M)).nonzero(as_tuple=True)
            local = sensor.directions_VHW3[0, ring, column] @ sensor.sensor_to_global[:3, :3]
            points = local * distance[ring, column, None]
            hit = index[ring, column]
            color = torch.where((hit >= 0)[:, None], geometry.color_N3[hit.clamp(min=0)], torch.full_like(points, 0.25))
            table = torch.cat([points, (color.mean(1, keepdim=True) * 200).round(), ring[:, None].float()], dim=1)
        noise = np.random.default_rng(seed).normal(0.0, 0.01, len(table)).astype(np.float32)
        out = table.cpu().numpy()
        out[:, :3] *= 1 + noise[:, None] / np.linalg.norm(out[:, :3], axis=1, keepdims=True)
        return out

    def _around(self, xy_m: NDArray[np.float64], agents: Sequence[RenderAgent], range_m: float, shadows: bool) -> Geometry:
        center = torch.from_numpy(np.asarray(xy_m)).float().to(self.device)
        statics = self._statics.primitives
        distance = (statics.center_N3[:, :2] - center).norm(dim=1) - statics.half_N3[:, :2].norm(dim=1)
        near = self._statics.select((distance < range_m).nonzero()[:, 0])
        if not agents:
            return near
        return Geometry.concatenate(near, _agent_geometry(agents, self.device, shadows))


def _city_geometry(city: City, device: torch.device) -> Geometry:
    rows = city.statics
    code = {"facade": materials.FACADE, "plain": materials.PLAIN, "lamp": materials.LAMP}
    material = [materials.FOLIAGE if r.kind == "canopy" else code.get(r.material, materials.PLAIN) for r in rows]
    return Geometry(
        primitives=Primitives(
            center_N3=torch.tensor(np.array([r.center_m for r in rows]), dtype=torch.float32, device=device),
            half_N3=torch.tensor(np.array([r.half_extents_m for r in rows]), dtype=torch.float32, device=device),
            yaw_N=torch.tensor([r.yaw_rad for r in rows], dtype=torch.float32, device=device),
            ellipsoid_N=torch.tensor([r.kind == "canopy" for r in rows], device=device),
        ),
        color_N3=torch.tensor(np.array([r.color_rgb for r in rows]), dtype=torch.float32, device=device),
        material_N=torch.tensor(material, device=device),
        seed_N=torch.tensor([r.seed % 65536 for r in rows], device=device),
        agent_N=torch.full((len(rows),), -1, device=device),
    )


@lru_cache(maxsize=512)
def _shape(detection_class: str, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Parts of an agent as numbers [K, 9] (centre, half extents, colour) and codes [K, 2] (ellipsoid, material)."""
    parts = shape_of(detection_class, seed)
    numbers = np.array([(*part.center, *part.half, *part.color) for part in parts], dtype=np.float32)
    return numbers, np.array([(part.ellipsoid, part.material) for part in parts], dtype=np.int64)


def _agent_geometry(agents: Sequence[RenderAgent], device: torch.device, shadows: bool) -> Geometry:
    shapes = [_shape(agent.detection_class, agent.seed) for agent in agents]
    owners = np.repeat(np.arange(len(agents)), [len(codes) for _, codes in shapes])
    numbers, codes = np.concatenate([n for n, _ in shapes]), np.concatenate([c for _, c in shapes])
    scale = np.stack([agent.size_wlh_m for agent in agents])[:, [1, 0, 2]] / 2
    centers = np.stack([agent.center_m for agent in agents])
    yaws = np.array([agent.yaw_rad for agent in agents])
    local, half, color = numbers[:, :3] * scale[owners], np.maximum(numbers[:, 3:6] * scale[owners], 0.01), numbers[:, 6:]
    if shadows:
        every = np.arange(len(agents))
        flat = np.stack([np.zeros(len(agents)), np.zeros(len(agents)), 0.015 - centers[:, 2]], axis=1)
        local, owners = np.concatenate([local, flat]), np.concatenate([owners, every])
        half = np.concatenate([half, np.column_stack([scale[:, :2] * [1.06, 1.12], np.full(len(agents), 0.01)])])
        color = np.concatenate([color, np.zeros((len(agents), 3))])
        codes = np.concatenate([codes, np.tile([0, materials.SHADOW], (len(agents), 1))])
    cos, sin = np.cos(yaws)[owners], np.sin(yaws)[owners]
    turned = np.stack([cos * local[:, 0] - sin * local[:, 1], sin * local[:, 0] + cos * local[:, 1], local[:, 2]], axis=1)

    def tensor(values: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=dtype)

    seeds = np.array([agent.seed % 65536 for agent in agents])
    return Geometry(
        primitives=Primitives(
            center_N3=tensor(centers[owners] + turned, torch.float32), half_N3=tensor(half, torch.float32),
            yaw_N=tensor(yaws[owners], torch.float32), ellipsoid_N=tensor(codes[:, 0], torch.bool),
        ),
        color_N3=tensor(color, torch.float32), material_N=tensor(codes[:, 1], torch.long),
        seed_N=tensor(seeds[owners], torch.long), agent_N=tensor(owners, torch.long),
    )  # fmt: skip
