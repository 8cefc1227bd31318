"""Light and air of the five weathers, and of those that conditions make of them. Colours are linear-ish RGB in 0..1;
distances in metres."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dwm.scenario.conditions import KOSCHMIEDER, Air

Rgb = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """One lighting and visibility condition."""

    name: str
    sun_direction: Rgb  # towards the sun, unit length
    sun: Rgb
    ambient: Rgb
    sky_zenith: Rgb
    sky_horizon: Rgb
    visibility_m: float  # distance at which fog hides 63 % of a surface
    lamps_on: bool = False  # head lights, tail lights, street lamps and lit windows
    rain: bool = False
    wetness: float = 0.0  # of the ground, 0..1; the five weathers leave it dry
    words: str  # as it appears in the scene description


WEATHERS = {
    w.name: w
    for w in (
        Weather(
            name="day", sun_direction=(0.45, 0.35, 0.82), sun=(0.78, 0.74, 0.66), ambient=(0.42, 0.45, 0.52),
            sky_zenith=(0.33, 0.53, 0.86), sky_horizon=(0.76, 0.85, 0.95), visibility_m=420.0, words="Day, clear",
        ),
        Weather(
            name="dusk", sun_direction=(0.83, -0.5, 0.25), sun=(0.75, 0.42, 0.2), ambient=(0.3, 0.27, 0.36),
            sky_zenith=(0.26, 0.27, 0.5), sky_horizon=(0.95, 0.62, 0.4), visibility_m=320.0, lamps_on=True, words="Dusk, clear",
        ),
        Weather(
            name="night", sun_direction=(0.2, 0.3, 0.93), sun=(0.03, 0.035, 0.05), ambient=(0.1, 0.11, 0.16),
            sky_zenith=(0.02, 0.025, 0.06), sky_horizon=(0.08, 0.08, 0.12), visibility_m=260.0, lamps_on=True, words="Night",
        ),
        Weather(
            name="rain", sun_direction=(0.1, 0.1, 0.99), sun=(0.12, 0.12, 0.13), ambient=(0.46, 0.48, 0.52),
            sky_zenith=(0.5, 0.53, 0.57), sky_horizon=(0.64, 0.66, 0.69), visibility_m=120.0, lamps_on=True, rain=True, words="Rain",
        ),
        Weather(
            name="fog", sun_direction=(0.1, 0.2, 0.97), sun=(0.15, 0.15, 0.15), ambient=(0.55, 0.56, 0.58),
            sky_zenith=(0.72, 0.74, 0.76), sky_horizon=(0.76, 0.78, 0.8), visibility_m=55.0, lamps_on=True, words="Fog",
        ),
    )
}  # fmt: skip


def under(weather: Weather, air: Air) -> Weather:
    """A weather with conditions on top; the default air gives it back unchanged.

    Every light is multiplied by the ratio that it has in the condition's own weather to that of day, to the power of the
    condition's share, so conditions commute, and one of full share over day is its weather: night of ``NIGHT_EV`` stops,
    or clouds over all of the sky. Sight ends where rain and fog end it, unless the weather or the night did so before.
    """
    if air == Air():
        return weather
    shares = {"night": air.night, "rain": air.rain, "fog": air.fog}

    def light(of: Callable[[Weather], Rgb]) -> Rgb:
        day = np.array(of(WEATHERS["day"]))
        ratios = [(np.array(of(WEATHERS[name])) / day) ** share for name, share in shares.items()]
        return _rgb(np.array(of(weather)) * np.prod(ratios, axis=0))

    toward = sum(share * np.array(WEATHERS[name].sun_direction) for name, share in shares.items())
    toward = toward + max(0.0, 1 - sum(shares.values())) * np.array(weather.sun_direction)
    dimmed_m = (WEATHERS["night"].visibility_m / WEATHERS["day"].visibility_m) ** air.night * weather.visibility_m
    return replace(
        weather, name="+".join([weather.name, *(name for name, share in shares.items() if share > 0)]),
        sun_direction=_rgb(toward / np.linalg.norm(toward)), sun=light(lambda w: w.sun), ambient=light(lambda w: w.ambient),
        sky_zenith=light(lambda w: w.sky_zenith), sky_horizon=light(lambda w: w.sky_horizon),
        visibility_m=min(dimmed_m, air.visibility_m / KOSCHMIEDER), lamps_on=weather.lamps_on or air.lamps_on,
        rain=weather.rain or air.rain > 0, wetness=max(weather.wetness, air.wetness),
    )  # fmt: skip


def _rgb(values: np.ndarray) -> Rgb:
    r, g, b = values.tolist()
    return r, g, b
