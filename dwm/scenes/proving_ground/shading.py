"""Light on hit points: sun and ambient by weather, textured façades, lamps at night, fog, rain and sensor noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dwm.light import HEAD_LAMP, HEADLIGHT_TINT, RESPONSE, TAIL_LAMP, headlight_beam, wet_ground
from dwm.mipmap import Mipmap, pixel_footprint_m
from dwm.raycast import GROUND, SKY, Hits, PinholeViews
from dwm.scenes.proving_ground import materials
from dwm.scenes.proving_ground.weather import Weather

if TYPE_CHECKING:
    from dwm.scenes.proving_ground.render import Geometry


def shade(
    views: PinholeViews,
    hits: Hits,
    geometry: Geometry,
    ground: Mipmap,
    weather: Weather,
    ego_to_global: NDArray[np.float64],
    seed: int,
) -> Tensor:
    """Images [V, H, W, 3] uint8."""
    directions, index, distance = views.directions_VHW3, hits.index_VHW, hits.distance_VHW
    origin = views.origins_V3[:, None, None].expand_as(directions)
    points = origin + directions * distance[..., None]
    image = _sky(directions, weather)
    emission = torch.zeros_like(image)

    flat = index.flatten()
    on_ground = (flat == GROUND).nonzero()[:, 0]
    solid = (flat >= 0).nonzero()[:, 0]
    albedo, normal, glow = _solids(points.reshape(-1, 3)[solid], flat[solid], geometry, weather)
    shadow = geometry.material_N[flat[solid]] == materials.SHADOW
    dark = solid[shadow]
    grounded = torch.cat([on_ground, dark])
    ground_albedo = _ground_albedo(points, distance, views, ground, grounded)
    up = torch.zeros_like(ground_albedo)
    up[:, 2] = 1.0
    light = _light(weather, up, points.reshape(-1, 3)[grounded], ego_to_global)
    light[len(on_ground) :] *= 0.45
    colors = image.reshape(-1, 3)
    colors[solid] = albedo * _light(weather, normal, points.reshape(-1, 3)[solid], ego_to_global)
    colors[grounded] = ground_albedo * light
    if weather.wetness > 0:
        sight = torch.nn.functional.normalize(directions.reshape(-1, 3)[grounded], dim=1)
        mirrored = _sky(sight * sight.new_tensor([1.0, 1.0, -1.0]), weather)
        colors[grounded] = wet_ground(colors[grounded], mirrored, sight[:, 2].abs(), weather.wetness)
    emission.reshape(-1, 3)[solid] = glow
    image = _fog(image, distance, index, weather) + emission * torch.exp(-distance / (3 * weather.visibility_m))[..., None]
    if weather.rain:
        image = _rain(image, seed)
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(image.shape, dtype=np.float32))
    return ((image.clamp(0, 1) ** (1 / RESPONSE)) * 255 + 0.8 * noise.to(image)).round().clamp(0, 255).to(torch.uint8)


def _sky(directions: Tensor, weather: Weather) -> Tensor:
    elevation = (directions[..., 2] / directions.norm(dim=-1)).clamp(0, 1)[..., None] ** 0.6
    zenith, horizon = (torch.tensor(c, device=directions.device) for c in (weather.sky_zenith, weather.sky_horizon))
    return horizon + (zenith - horizon) * elevation


def _ground_albedo(points: Tensor, distance: Tensor, views: PinholeViews, ground: Mipmap, pixels: Tensor) -> Tensor:
    xyz, z_depth = points.reshape(-1, 3)[pixels], distance.flatten()[pixels]
    focal = views.intrinsics[:, 0, 0].mean()
    height = views.origins_V3[:, 2].mean()
    return ground.sample(xyz[:, 0], xyz[:, 1], pixel_footprint_m(z_depth, focal, height))


def _light(weather: Weather, normal: Tensor, points: Tensor, ego_to_global: NDArray[np.float64]) -> Tensor:
    device = normal.device
    sun_direction, sun, ambient = (
        torch.tensor(c, device=device) for c in (weather.sun_direction, weather.sun, weather.ambient)
    )
    light = ambient * (0.75 + 0.25 * normal[:, 2:]) + sun * (normal @ sun_direction).clamp(min=0)[:, None]
    if weather.lamps_on:
        ego = torch.from_numpy(ego_to_global).float().to(device)
        local = (points - ego[:3, 3]) @ ego[:3, :3]
        strength = 0.9 * (1 - min(1.0, sum(weather.ambient) / 1.5))
        light = light + strength * headlight_beam(local)[:, None] * torch.tensor(HEADLIGHT_TINT, device=device)
    return light


def _solids(points: Tensor, index: Tensor, geometry: Geometry, weather: Weather) -> tuple[Tensor, Tensor, Tensor]:
    """Albedo, normal and emitted light [P, 3] of hit points on primitives."""
    p = geometry.primitives
    cos, sin, half = p.yaw_N[index].cos(), p.yaw_N[index].sin(), p.half_N3[index]
    offset = points - p.center_N3[index]
    local = torch.stack([cos * offset[:, 0] + sin * offset[:, 1], -sin * offset[:, 0] + cos * offset[:, 1], offset[:, 2]], 1)
    unit = local / half
    face = unit.abs().argmax(dim=1)
    flat_normal = torch.zeros_like(unit).scatter_(1, face[:, None], unit.gather(1, face[:, None]).sign())
    round_normal = torch.nn.functional.normalize(unit / half, dim=1)
    normal = torch.where(p.ellipsoid_N[index][:, None], round_normal, flat_normal)
    normal = torch.stack([cos * normal[:, 0] - sin * normal[:, 1], sin * normal[:, 0] + cos * normal[:, 1], normal[:, 2]], 1)
    albedo, material, seed = geometry.color_N3[index].clone(), geometry.material_N[index], geometry.seed_N[index]
    glow = torch.zeros_like(albedo)
    facade = (material == materials.FACADE) & (face != 2)
    _facade(albedo, glow, local, half, face, seed, facade, weather)
    leaf = material == materials.FOLIAGE
    x, y, z = (local[leaf] / 0.5).floor().long().unbind(1)
    albedo[leaf] *= 0.75 + 0.5 * _hash(x, y, z, seed[leaf])[:, None]
    if weather.lamps_on:
        for code, color in (
            (materials.HEADLIGHT, HEAD_LAMP),
            (materials.TAILLIGHT, TAIL_LAMP),
            (materials.LAMP, (0.9, 0.75, 0.45)),
        ):
            glow[material == code] = torch.tensor(color, device=glow.device)
    return albedo, normal, glow


def _facade(
    albedo: Tensor, glow: Tensor, local: Tensor, half: Tensor, face: Tensor, seed: Tensor, mask: Tensor, weather: Weather
) -> None:
    """Windows in a grid that depends on the building: written in place where ``mask`` holds."""
    rows = mask.nonzero()[:, 0]
    if not len(rows):
        return
    side = face[rows]
    along = torch.where(side == 0, local[rows, 1], local[rows, 0])
    width = torch.where(side == 0, half[rows, 1], half[rows, 0])
    height = local[rows, 2] + half[rows, 2]
    pitch_u = 2.2 + 0.35 * (seed[rows] % 5).float()
    pitch_v = 2.8 + 0.3 * (seed[rows] % 4).float()
    column, storey = ((along + width) / pitch_u).floor(), (height / pitch_v).floor()
    u, v = (along + width) / pitch_u - column, height / pitch_v - storey
    band = (seed[rows] % 3) == 0  # every third building has ribbon windows
    window = ((u > 0.22) & (u < 0.78) | band) & (v > 0.32) & (v < 0.8)
    window &= (width - along.abs() > 0.5) & (2 * half[rows, 2] - height > 0.6) & (storey > 0)
    door = (storey == 0) & (u > 0.15) & (u < 0.85) & (v < 0.78)
    draw = _hash(column.long(), storey.long(), side, seed[rows])
    glass = torch.tensor([0.16, 0.21, 0.28], device=albedo.device) * (0.7 + 0.8 * draw[:, None])
    shop = torch.tensor([0.14, 0.13, 0.13], device=albedo.device) + 0.35 * draw[:, None] * albedo[rows]
    wall = albedo[rows] * (0.94 + 0.12 * _hash(storey.long(), side, side, seed[rows])[:, None])
    albedo[rows] = torch.where(window[:, None], glass, torch.where(door[:, None], shop, wall))
    if weather.lamps_on:
        lit = (window & (draw > 0.62) | door & (draw > 0.5)).float()[:, None]
        warm = torch.tensor([0.62, 0.5, 0.28], device=glow.device)
        glow[rows] = lit * warm * (1 - 0.8 * min(1.0, sum(weather.ambient) / 1.5))


def _hash(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """A fixed pseudo-random number in [0, 1) per integer quadruple."""
    h = (a * 73856093) ^ (b * 19349663) ^ (c * 83492791) ^ (d * 2654435761)
    h = (h ^ (h >> 13)) * 1274126177
    return ((h ^ (h >> 16)) & 0xFFFF).float() / 65536.0


def _fog(image: Tensor, distance: Tensor, index: Tensor, weather: Weather) -> Tensor:
    seen = torch.exp(-distance / weather.visibility_m)[..., None]
    haze = torch.tensor(weather.sky_horizon, device=image.device)
    return torch.where((index == SKY)[..., None], image, image * seen + haze * (1 - seen))


def _rain(image: Tensor, seed: int) -> Tensor:
    """Faint falling streaks, different in every frame."""
    views, height, width, _ = image.shape
    rng = np.random.default_rng((seed, 7))
    drops = torch.from_numpy((rng.random((views, height // 8 + 1, width), dtype=np.float32) > 0.985).astype(np.float32))
    streaks = drops.repeat_interleave(8, dim=1)[:, :height].to(image.device)[..., None]
    return image + 0.06 * streaks
