"""What conditions mean: their parameters, what several make together, the text, and the weather of the true video."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from dwm.errors import InputError
from dwm.scenario.conditions import (
    CONDITIONS,
    KOSCHMIEDER,
    NIGHT_EV,
    Air,
    air_in,
    air_of,
    conditions_of,
    new_conditions,
)
from dwm.scenario.types import Perturbation
from dwm.scenes.prompts import VOCABULARY, clip_weather, scene_prompt, tokenize
from dwm.scenes.proving_ground.weather import WEATHERS, under
from tests.factories import make_scene

UNKNOWN = 1  # index of <unk>


def condition(name: str, **params: float) -> Perturbation:
    return Perturbation(name=name, params=params, severity=0.5)


NIGHT = condition("night", exposure_ev=NIGHT_EV)
RAIN = condition("rain", visibility_m=120 * KOSCHMIEDER, wetness=0.0, overcast=1.0)
FOG = condition("fog", visibility_m=55 * KOSCHMIEDER)


def clear_scene():
    return replace(make_scene(), description="Busy street")


@pytest.mark.parametrize("name", CONDITIONS)
def test_samples_have_the_familys_parameters_within_its_limits_and_grow_with_severity(name):
    family = CONDITIONS[name]
    airs = []
    for severity in (0.0, 0.5, 1.0):
        params = family.sample(severity, np.random.default_rng(3))
        assert set(params) == set(family.parameters)
        assert params == family.sample(severity, np.random.default_rng(3))
        airs.append(air_of([condition(name, **params)]))  # checks the limits
    strength = [a.darkness_ev + a.extinction_per_m for a in airs]
    assert strength == sorted(strength) and strength[0] < strength[-1]


def test_koschmieders_law_leaves_two_percent_at_the_visibility():
    air = air_of([condition("fog", visibility_m=200.0)])
    assert np.exp(-air.extinction_per_m * 200.0) == pytest.approx(0.02, rel=1e-3)
    assert air.visibility_m == pytest.approx(200.0)


def test_extinctions_add_up_and_rain_and_fog_share_one_sky():
    both = air_of([RAIN, FOG])
    assert both.extinction_per_m == pytest.approx(1 / 120 + 1 / 55)
    assert both.rain + both.fog == pytest.approx(1.0)
    assert both == air_of([FOG, RAIN])
    assert air_of([]) == Air()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([condition("hail")], "hail.*night, rain, fog"),
        ([condition("fog", metres=3.0)], r"exactly \['visibility_m'\]"),
        ([condition("night", exposure_ev=-1.0)], "exposure_ev is -1.*0 to 6"),
        ([condition("fog", visibility_m=float("nan"))], "visibility_m is nan"),
        ([FOG, FOG], "twice"),
    ],
)
def test_a_wrong_condition_is_named(wrong, message):
    with pytest.raises(InputError, match=message):
        air_of(wrong)


def test_conditions_are_told_from_manoeuvres():
    brake = Perturbation(name="hard_brake", params={}, severity=0.5)
    joined = cast(Perturbation, SimpleNamespace(parts=lambda: (brake, NIGHT, RAIN)))
    assert conditions_of(joined) == (NIGHT, RAIN)


def test_what_the_log_shows_already_is_left_out_with_a_note():
    kept, notes = new_conditions(make_scene(), [NIGHT, RAIN])  # its description says rain
    assert kept == (NIGHT,)
    assert notes == ("the log shows rain already: it stays as it is",)
    dark = replace(make_scene(), description="Night, rain")
    assert new_conditions(dark, [NIGHT, RAIN, FOG])[0] == (FOG,)


def test_prompts_tell_conditions_in_words_the_model_knows():
    scene = clear_scene()
    plain = scene_prompt(scene)
    assert plain.endswith("during autumn afternoon.")
    assert scene_prompt(scene, ["night"]) == plain.replace("afternoon", "night")
    assert scene_prompt(scene, ["fog", "night", "rain"]).endswith("during autumn night. Weather: rain, fog.")
    assert scene_prompt(make_scene(), ["fog"]).endswith("Weather: rain, fog.")  # the log's rain goes on
    assert VOCABULARY[UNKNOWN] == "<unk>"
    assert UNKNOWN not in tokenize(scene_prompt(scene, list(CONDITIONS)))


def test_the_weather_column_tells_darkness_and_weather():
    scene = clear_scene()
    assert clip_weather(scene) == "clear"
    assert clip_weather(scene, ["rain", "night"]) == "night, rain"
    assert clip_weather(replace(scene, description="Night, fog")) == "night, fog"


@pytest.mark.parametrize(("asked", "name"), [(NIGHT, "night"), (RAIN, "rain"), (FOG, "fog")])
def test_a_full_condition_over_day_is_the_proving_grounds_own_weather(asked, name):
    made, own = under(WEATHERS["day"], air_of([asked])), WEATHERS[name]
    for field in ("sun", "ambient", "sky_zenith", "sky_horizon", "sun_direction", "visibility_m"):
        tolerance = 0.03 if name == "fog" and field != "visibility_m" else 2e-3  # 215 m is a little less than all of the sky
        np.testing.assert_allclose(getattr(made, field), getattr(own, field), rtol=tolerance, atol=2e-3, err_msg=field)
    assert (made.lamps_on, made.rain) == (own.lamps_on, own.rain)


def test_the_air_of_a_clip_is_what_is_asked_for_and_what_the_log_shows():
    assert air_in(clear_scene(), ()) == Air()
    assert air_in(clear_scene(), (NIGHT,)) == air_of([NIGHT])
    rainy = make_scene()  # its description says rain
    own = air_in(rainy, ())
    assert own.visibility_m == pytest.approx(469.0) and own.lamps_on and own.darkness_ev == 0.0
    assert air_in(rainy, (RAIN,)) == own  # asked for once more, it rains no harder
    assert air_in(rainy, (NIGHT,)).darkness_ev == NIGHT.params["exposure_ev"]
    assert air_in(replace(clear_scene(), description="Night, fog"), ()).visibility_m == pytest.approx(215.0)


def test_weathers_compose():
    day = WEATHERS["day"]
    assert under(day, Air()) is day
    wet_night = under(day, air_of([NIGHT, replace(RAIN, params=RAIN.params | {"wetness": 0.7})]))
    assert wet_night.rain and wet_night.lamps_on and wet_night.wetness == 0.7
    assert wet_night.visibility_m == pytest.approx(120.0)
    expected = np.array(WEATHERS["night"].ambient) * WEATHERS["rain"].ambient / np.array(day.ambient)
    np.testing.assert_allclose(wet_night.ambient, expected)
    darkness = [sum(under(day, Air(darkness_ev=ev)).ambient) for ev in (0.0, 1.0, 2.0, 4.0)]
    assert darkness == sorted(darkness, reverse=True)
    # Thin fog does not lift a dense one.
    assert under(WEATHERS["fog"], air_of([condition("fog", visibility_m=1000.0)])).visibility_m == pytest.approx(55.0)
