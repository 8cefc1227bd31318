"""Relighting in closed form: fog by depth, night by stops, rain's grey sky and wet ground, and the sky's outline."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dwm.conditioning.build import ScenarioConditioner, images_to_tensor, tensor_to_images
from dwm.conditioning.relight import Surfaces, given_frames, relight, surfaces_of
from dwm.conditioning.sky import sky_mask
from dwm.light import headlight_beam, wet_ground
from dwm.scenario.conditions import NIGHT_EV, Air, air_of
from dwm.scenario.types import Perturbation
from dwm.scenes.proving_ground.city import build_city
from dwm.scenes.proving_ground.render import Renderer
from dwm.training.sequences import Town, drive, render_frames

RESPONSE = 1.25
CLEAR = 1 / 420  # extinction per metre that a day's image has already
HEIGHT, WIDTH = 16, 24


def surfaces(depth_m: float = 20.0, sky_rows: int = 4) -> Surfaces:
    """One view that looks ahead at a wall behind the ego: sky above, then wall, the lower half ground."""
    shape = (1, HEIGHT, WIDTH)
    sight = torch.zeros(*shape, 3)
    sight[..., 0] = 1.0
    sight[..., 2] = torch.linspace(0.1, -0.1, HEIGHT)[None, :, None]
    sight = sight / sight.norm(dim=-1, keepdim=True)
    sky, ground, box, head, tail = (torch.zeros(shape, dtype=torch.bool) for _ in range(5))
    sky[:, :sky_rows], ground[:, HEIGHT // 2 :] = True, True
    return Surfaces(
        depth_VHW=torch.full(shape, depth_m), points_VHW3=torch.full((*shape, 3), -5.0), sight_VHW3=sight, is_ground_VHW=ground,
        is_box_VHW=box, is_sky_VHW=sky, head_lamps_VHW=head, tail_lamps_VHW=tail,
    )  # fmt: skip


def picture(seed: int = 0) -> torch.Tensor:
    images = torch.from_numpy(np.random.default_rng(seed).uniform(-0.6, 0.4, (1, 3, HEIGHT, WIDTH))).float()
    images[:, :, :4] = 0.7
    return images


def light(images: torch.Tensor) -> torch.Tensor:
    """Linear light [V, H, W, 3]."""
    return images.movedim(1, -1).add(1).div(2) ** RESPONSE


def test_no_condition_is_the_identity_and_weak_ones_are_near_to_it():
    images = picture()
    assert relight(images, surfaces(), Air()) is images
    weak = Air(darkness_ev=0.01, fog=0.005, rain=0.005, extinction_per_m=CLEAR, wetness=0.005)
    assert float((relight(images, surfaces(), weak) - images).abs().max()) < 0.02


@pytest.mark.parametrize("depth_m", [5.0, 40.0, 120.0])
def test_fog_mixes_each_pixel_with_the_airlight_by_koschmieders_law(depth_m):
    images, extinction = picture(), 0.02
    # Without clouds the air has the colour of the sky at the horizon, here that of the whole sky.
    out = light(relight(images, surfaces(depth_m), Air(extinction_per_m=extinction)))
    airlight = light(torch.full((1, 3, 1, 1), 0.7))
    through = float(np.exp(-(extinction - CLEAR) * depth_m))
    expected = light(images) * through + airlight * (1 - through)
    torch.testing.assert_close(out[:, 4:], expected[:, 4:], atol=2e-5, rtol=1e-4)


def test_far_things_become_airlight_and_dense_fog_hides_the_sky():
    dense = Air(fog=1.0, extinction_per_m=0.05)
    out = light(relight(picture(), surfaces(2000.0), dense))
    torch.testing.assert_close(out[0, -1, 0], torch.tensor([0.76, 0.78, 0.80]), atol=1e-4, rtol=0)
    assert float((out[0, :4] - torch.tensor([0.74, 0.76, 0.78])).abs().max()) < 0.021


def test_night_is_darker_by_its_stops_keeps_the_order_of_brightness_and_is_bluer():
    images = picture()
    day = light(images)
    previous = day
    for ev in (1.0, 2.0, NIGHT_EV, 4.0):
        out = light(relight(images, surfaces(), Air(darkness_ev=ev)))
        assert bool((out <= previous + 1e-4).all())
        previous = out
    night = light(relight(images, surfaces(1e-3), Air(darkness_ev=NIGHT_EV)))
    ground = night[0, -1] / day[0, -1]
    assert float(ground.mean()) == pytest.approx(2**-NIGHT_EV, rel=0.2)
    assert float(ground[:, 2].min()) > float(ground[:, 0].max())
    for channel in range(3):
        order = day[0, -1, :, channel].argsort()
        assert bool((night[0, -1, order, channel].diff() >= -1e-6).all())


def test_head_lights_brighten_the_road_ahead_and_nothing_behind():
    points = torch.tensor([[8.0, 0.0, 0.0], [40.0, 0.0, 0.0], [8.0, 12.0, 0.0], [-8.0, 0.0, 0.0]])
    near, far, beside, behind = headlight_beam(points).tolist()
    assert near == pytest.approx(np.exp(-8 / 22)) and near > far > 0
    assert beside < 0.01 * near and behind == 0
    ahead = surfaces()
    ahead.points_VHW3[:] = torch.tensor([8.0, 0.0, 0.0])
    night, images = Air(darkness_ev=NIGHT_EV), picture()
    assert float(relight(images, ahead, night)[:, :, 4:].mean()) > 0.1 + float(
        relight(images, surfaces(), night)[:, :, 4:].mean()
    )


def test_lamps_shine_in_the_dark_and_not_by_day():
    lit = surfaces()
    lit.tail_lamps_VHW[0, 6, 3] = True
    images = torch.full((1, 3, HEIGHT, WIDTH), -0.5)
    red = relight(images, lit, Air(darkness_ev=NIGHT_EV))[0, :, 6, 3]
    assert float(red[0]) > 0.3 and float(red[1]) < -0.5
    thin = Air(extinction_per_m=0.01)
    torch.testing.assert_close(relight(images, lit, thin)[0, :, 6, 3], relight(images, surfaces(), thin)[0, :, 6, 3])


def test_rain_turns_a_blue_sky_grey_and_takes_the_sun_from_the_ground():
    images = picture()
    images[:, 0, :4], images[:, 2, :4] = 0.2, 0.9
    out = light(relight(images, surfaces(1.0), Air(rain=1.0)))
    assert float(out[0, :4].std(-1).max()) < 0.05
    gain = out[0, -1] / light(images)[0, -1]
    torch.testing.assert_close(gain, torch.tensor([0.562, 0.580, 0.622]).expand(WIDTH, 3), atol=1e-3, rtol=0)


def test_without_sun_clouds_take_no_light_and_are_no_brighter_than_the_logs_sky():
    images = picture()
    images[:, :, :4] = -0.8
    out = light(relight(images, surfaces(1.0), Air(fog=1.0), sunlit=False))
    torch.testing.assert_close(out[0, -1], light(images)[0, -1])
    assert float(out[0, :4].mean()) == pytest.approx(float(light(images)[0, :4].mean()), rel=0.2)


def test_wet_ground_is_darker_underfoot_and_a_mirror_far_away():
    own, sky = torch.full((2, 3), 0.4), torch.full((2, 3), 0.8)
    under, far = wet_ground(own, sky, torch.tensor([1.0, 0.0]), 1.0)[:, 0].tolist()
    assert under == pytest.approx(0.4 * 0.65 + 0.25 * 0.02 * 0.8)  # Schlick at normal incidence
    assert far == pytest.approx(0.4 * 0.65 + 0.25 * 0.8)
    torch.testing.assert_close(wet_ground(own, sky, torch.tensor([1.0, 0.0]), 0.0), own)


def test_the_sky_is_found_with_its_clouds_and_without_walls_poles_and_boxes():
    images = np.full((1, 40, 60, 3), (0.3, 0.25, 0.2), np.float32)
    images[:, :20] = (0.6, 0.75, 0.95)
    images[:, 5:9, 10:16] = 0.3  # a dark cloud
    images[:, 6:20, 30:33] = (0.35, 0.35, 0.4)  # a pole on the ground
    images[:, 10:20, 45:] = (0.9, 0.85, 0.8)  # a bright, warm front
    tangent = np.broadcast_to(np.linspace(0.4, -0.4, 40)[None, :, None], (1, 40, 60))
    free = np.ones((1, 40, 60), bool)
    free[:, 12:20, :5] = False
    expected = np.zeros((1, 40, 60), bool)
    expected[:, :20] = True
    expected[:, 6:20, 30:33] = expected[:, 10:20, 45:] = expected[:, 12:20, :5] = False
    found = sky_mask(images, tangent, free)
    np.testing.assert_array_equal(found, expected)
    assert not sky_mask(images, np.full_like(tangent, -1.0), free).any()


@pytest.fixture(scope="module")
def filmed():
    city = build_city(27, 200.0)
    town = Town(city=city, renderer=Renderer(city))
    scenario, _ = drive(town, 1, duration_s=1.0)
    scenario = replace(scenario, scene=replace(scenario.scene, description="Day, clear", location="boston-seaport"))
    films = {name: render_frames(town, scenario, name, np.array([0])) for name in ("day", "night", "rain", "fog")}
    return scenario, films


FULL = {
    "night": Perturbation(name="night", params={"exposure_ev": NIGHT_EV}, severity=0.5),
    "rain": Perturbation(name="rain", params={"visibility_m": 469.0, "wetness": 0.0, "overcast": 1.0}, severity=0.7),
    "fog": Perturbation(name="fog", params={"visibility_m": 215.0}, severity=0.8),
}


@pytest.mark.parametrize(("name", "gain_db"), [("night", 5.0), ("rain", 4.0), ("fog", 5.0)])
def test_a_relit_day_is_nearer_to_the_true_weather_than_the_day_is(filmed, name, gain_db):
    scenario, films = filmed
    asked = replace(scenario, perturbation=SimpleNamespace(parts=lambda: (FULL[name],)))
    made = given_frames(asked, ScenarioConditioner(scenario), films["day"])
    np.testing.assert_array_equal(made, given_frames(asked, ScenarioConditioner(scenario), films["day"]))
    before, after = (np.mean((films[name].astype(float) - image) ** 2) for image in (films["day"], made))
    assert 10 * np.log10(before / after) > gain_db


def test_every_leading_frame_is_relit_by_what_it_shows_itself(filmed):
    scenario, films = filmed
    asked = replace(scenario, perturbation=SimpleNamespace(parts=lambda: (FULL["night"],)))
    conditioner, first = ScenarioConditioner(scenario), films["day"][0]
    ego = scenario.ego_to_global.copy()
    ego[1] = scenario.ego_to_global[-1]  # seconds later in one frame
    moved = replace(asked, ego_to_global=ego)
    made = given_frames(moved, conditioner, np.stack([first, first]))
    np.testing.assert_array_equal(made[:1], given_frames(asked, conditioner, films["day"]))
    image, air = images_to_tensor(first), air_of([FULL["night"]])
    np.testing.assert_array_equal(made[1], tensor_to_images(relight(image, surfaces_of(moved, conditioner, image, 1), air)))
    assert (made[0] != made[1]).any()


def test_a_log_that_has_the_condition_is_given_as_it_is(filmed):
    scenario, films = filmed
    dark = replace(scenario, scene=replace(scenario.scene, description="Night"))
    asked = replace(dark, perturbation=SimpleNamespace(parts=lambda: (FULL["night"],)))
    assert given_frames(asked, ScenarioConditioner(dark), films["night"]) is films["night"]


def test_relighting_is_the_same_on_every_call():
    images, air = images_to_tensor(np.zeros((1, HEIGHT, WIDTH, 3), np.uint8)), air_of(list(FULL.values()))
    assert torch.equal(relight(images, surfaces(), air), relight(images.clone(), surfaces(), air))
