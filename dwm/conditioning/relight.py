"""Given frames in other light and air: night, rain and fog laid over logged images.

Surfaces take the light that a condition leaves them, the own head lights and the lamps of vehicles come on, wet ground
darkens and shines, and fog covers all by depth. What only the picture knows (albedo, shadows) stays. The constants are
fitted on the proving ground's training towns, where one frame can be filmed in every weather; see docs/methods.md.

Shapes: N leading frames, V views, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dwm.conditioning.build import ScenarioConditioner, images_to_tensor, tensor_to_images
from dwm.conditioning.layout import Layout, LayoutBoxes, LayoutCaster
from dwm.conditioning.sky import sky_mask
from dwm.geometry import invert
from dwm.light import HEAD_LAMP, HEADLIGHT_TINT, RESPONSE, TAIL_LAMP, WITH_LAMPS, headlight_beam, lamps, wet_ground
from dwm.scenario.conditions import Air, air_of, conditions_of, new_conditions
from dwm.scenario.types import Scenario
from dwm.scenes.prompts import daytime, weather
from dwm.scenes.types import Scene

Rgb = tuple[float, float, float]
_CLEAR_PER_M = 1 / 420  # extinction that a day's image has already
_NIGHT_PER_M = 1 / 260 - 1 / 420  # that a night adds
# What a condition of full share leaves of the day's light, on the ground and on what stands on it.
_GROUND: dict[str, Rgb] = {"night": (0.126, 0.138, 0.195), "rain": (0.562, 0.580, 0.622), "fog": (0.669, 0.678, 0.691)}
_UPRIGHT: dict[str, Rgb] = {"night": (0.165, 0.179, 0.235), "rain": (0.727, 0.738, 0.739), "fog": (0.858, 0.853, 0.821)}
_NIGHT_SKY: Rgb = (0.074, 0.077, 0.130)  # of the brightness of the day's sky, whatever its colour
# Sky under clouds and in fog, at the horizon and overhead, in the light of day.
_HORIZON: dict[str, Rgb] = {"rain": (0.64, 0.66, 0.69), "fog": (0.76, 0.78, 0.80)}
_ZENITH: dict[str, Rgb] = {"rain": (0.50, 0.53, 0.57), "fog": (0.72, 0.74, 0.76)}
_DAY_HORIZON: Rgb = (0.76, 0.85, 0.95)
_NEAR_HORIZON = 0.12  # tangent of the elevation up to which the sky has the air's own colour
_DAYLIGHT = (1.06, 0.70)  # on ground and on upright surfaces, in units of albedo
_HEADLIGHT = 0.85  # in the same units, in full darkness
_NIGHT_AMBIENT = 0.27  # of the day's ambient light at night: what head lights have to stand out from
_LAMP_FACE = 0.95  # place along a box, in half boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class Surfaces:
    """What the pixels of a frame show, at the images' own size."""

    depth_VHW: Tensor  # metres along the optical axis
    points_VHW3: Tensor  # in the ego frame, metres
    sight_VHW3: Tensor  # unit vectors from the camera, z up
    is_ground_VHW: Tensor  # bool, as all that follow
    is_box_VHW: Tensor
    is_sky_VHW: Tensor
    head_lamps_VHW: Tensor  # on vehicles
    tail_lamps_VHW: Tensor


def given_frames(scenario: Scenario, conditioner: ScenarioConditioner, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frames [N, V, H, W, 3] that lead a clip: the logged ones under the scenario's conditions, themselves without any."""
    asked, _ = new_conditions(scenario.scene, conditions_of(scenario.perturbation))
    if not asked:
        return images
    air, sunlit, relit = air_of(asked), _is_sunlit(scenario.scene), []
    for frame, logged in enumerate(images_to_tensor(images, conditioner.device)):
        surfaces = surfaces_of(scenario, conditioner, logged, frame)
        relit.append(tensor_to_images(relight(logged, surfaces, air, sunlit=sunlit)))
    return np.stack(relit)


def relight(images_V3HW: Tensor, surfaces: Surfaces, air: Air, *, sunlit: bool = True) -> Tensor:
    """Images [V, 3, H, W] in [-1, 1] under other light and air; the default ``air`` gives them back unchanged.

    Without sun (``sunlit`` False: a night, a rainy day) clouds and fog take no light from surfaces, and are themselves only
    as bright as the log's sky.
    """
    if air == Air():
        return images_V3HW
    seen = images_V3HW.movedim(1, -1).add(1).div(2).clamp(0, 1) ** RESPONSE
    sky, haze = _sky_and_haze(seen, surfaces, air, sunlit)
    surface = seen * _gain(surfaces, air, sunlit, seen) + seen * _head_light(surfaces, air)
    if air.wetness > 0:
        ground = surfaces.is_ground_VHW
        mirrored = haze.expand_as(seen)[ground]
        surface[ground] = wet_ground(surface[ground], mirrored, surfaces.sight_VHW3[ground][:, 2].abs(), air.wetness)
    extinction = max(0.0, air.extinction_per_m - _CLEAR_PER_M) + air.night * _NIGHT_PER_M
    through = torch.exp(-extinction * surfaces.depth_VHW)[..., None]
    out = surface * through + haze * (1 - through)
    out = torch.where(surfaces.is_sky_VHW[..., None], sky, out) + _lamps(surfaces, air) * through ** (1 / 3)
    return (out.clamp(0, 1) ** (1 / RESPONSE)).mul(2).sub(1).movedim(-1, 1)


def surfaces_of(scenario: Scenario, conditioner: ScenarioConditioner, images_V3HW: Tensor, frame: int = 0) -> Surfaces:
    """The surfaces of a scenario's frame: from its labels and map, the sky from its images [V, 3, H, W] in [-1, 1]."""
    height, width = images_V3HW.shape[-2:]
    ego, boxes = scenario.ego_to_global[frame], conditioner.boxes(frame)
    layout = LayoutCaster(scenario.scene.map, conditioner.device).cast(conditioner.cameras, ego, boxes, height, width)
    to_ego = torch.from_numpy(invert(ego)).float().to(conditioner.device)
    points = layout.points_VHW3 @ to_ego[:3, :3].T + to_ego[:3, 3]
    origins = np.stack([camera.camera_to_ego[:3, 3] for camera in conditioner.cameras])
    sight = points - torch.from_numpy(origins).float().to(points)[:, None, None]
    sight = sight / sight.norm(dim=-1, keepdim=True)
    tangent = sight[..., 2] / sight[..., :2].norm(dim=-1).clamp(min=1e-6)
    free = layout.box_VHW < 0
    colours = images_V3HW.movedim(1, -1).add(1).div(2).cpu().numpy()
    sky = torch.from_numpy(sky_mask(colours, tangent.cpu().numpy(), free.cpu().numpy())).to(points.device)
    head, tail = _lamp_masks(layout, boxes)
    return Surfaces(
        depth_VHW=layout.depth_VHW, points_VHW3=points, sight_VHW3=sight,
        is_ground_VHW=free & (layout.points_VHW3[..., 2].abs() < 0.01), is_box_VHW=~free, is_sky_VHW=sky, head_lamps_VHW=head, tail_lamps_VHW=tail,
    )  # fmt: skip


def _is_sunlit(scene: Scene) -> bool:
    when = daytime(scene.description, scene.location, int(scene.key_timestamps_us[0]))
    return when in ("morning", "afternoon") and weather(scene.description) is None


def _gain(surfaces: Surfaces, air: Air, sunlit: bool, like: Tensor) -> Tensor:
    """Share of the light that is left [V, H, W, 3]."""
    shares = {"night": air.night, "rain": air.rain * sunlit, "fog": air.fog * sunlit}

    def left(table: dict[str, Rgb]) -> Tensor:
        return torch.stack([like.new_tensor(table[name]) ** share for name, share in shares.items()]).prod(0)

    ground, upright = left(_GROUND), left(_UPRIGHT)
    # A box shows ground around its thing.
    gain = torch.where(surfaces.is_box_VHW[..., None], (ground * upright).sqrt(), upright)
    return torch.where(surfaces.is_ground_VHW[..., None], ground, gain)


def _head_light(surfaces: Surfaces, air: Air) -> Tensor:
    """What the own head lights add [V, H, W, 3], as a share of the light of day."""
    beam = headlight_beam(surfaces.points_VHW3.reshape(-1, 3)).view(surfaces.depth_VHW.shape)
    day = torch.where(surfaces.is_ground_VHW, *_DAYLIGHT)
    strength = _HEADLIGHT * (1 - _NIGHT_AMBIENT**air.night)
    return (strength * beam / day)[..., None] * beam.new_tensor(HEADLIGHT_TINT)


def _sky_and_haze(seen: Tensor, surfaces: Surfaces, air: Air, sunlit: bool) -> tuple[Tensor, Tensor]:
    """The new sky [V, H, W, 3] and the colour [3] that far things fade into."""
    up = surfaces.sight_VHW3[..., 2].clamp(0, 1)
    low = surfaces.is_sky_VHW & (up < _NEAR_HORIZON)
    clear = seen[low].mean(0) if low.any() else seen.new_tensor(_DAY_HORIZON)
    cover = air.rain + air.fog
    if cover == 0:
        return _at_night(seen, air), _at_night(clear, air)
    shares = {"rain": air.rain / cover, "fog": air.fog / cover}
    horizon, zenith = (
        sum(share * seen.new_tensor(table[name]) for name, share in shares.items()) for table in (_HORIZON, _ZENITH)
    )
    level = 1.0 if sunlit else (clear.mean() / seen.new_tensor(_DAY_HORIZON).mean()).clamp(max=1.0)
    clouds = horizon + (zenith - horizon) * up[..., None] ** 0.6
    sky = seen * (1 - cover) + level * clouds * cover
    return _at_night(sky, air), _at_night(clear * (1 - cover) + level * horizon * cover, air)


def _at_night(sky: Tensor, air: Air) -> Tensor:
    """The sky's light [..., 3] after dark: its brightness in the colour of the night."""
    grey = min(air.night, 1.0)
    return (sky * (1 - grey) + sky.mean(-1, keepdim=True) * grey) * sky.new_tensor(_NIGHT_SKY) ** air.night


def _lamps(surfaces: Surfaces, air: Air) -> Tensor:
    """Light of lamps [V, H, W, 3] that a condition has had switched on."""
    head, tail = surfaces.head_lamps_VHW[..., None], surfaces.tail_lamps_VHW[..., None]
    color = surfaces.depth_VHW.new_tensor
    return float(air.lamps_on) * (head * color(HEAD_LAMP) + tail * color(TAIL_LAMP))


def _lamp_masks(layout: Layout, boxes: LayoutBoxes) -> tuple[Tensor, Tensor]:
    """Where the cast met a vehicle's head and tail lamps, two bool [V, H, W]."""
    which = layout.box_VHW.cpu().numpy()
    on = np.isin(which, np.flatnonzero(np.isin(boxes.classes, WITH_LAMPS)))
    index, offset = which[on], layout.points_VHW3.cpu().numpy()[on] - boxes.centers_m[which[on]]
    cos, sin, half = np.cos(boxes.yaws_rad[index]), np.sin(boxes.yaws_rad[index]), boxes.sizes_wlh_m[index] / 2
    along, across = cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0]
    place = np.stack([along / half[:, 1], across / half[:, 0], offset[:, 2] / half[:, 2]], -1)
    masks = np.zeros((2, *which.shape), bool)
    masks[0][on], masks[1][on] = lamps(place, 2 * half[:, 2], _LAMP_FACE)
    head, tail = torch.from_numpy(masks).to(layout.box_VHW.device)
    return head, tail
