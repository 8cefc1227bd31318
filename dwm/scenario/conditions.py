"""Night, rain and fog: what a scenario may ask of light and air, alone, together, or with a manoeuvre.

A condition changes no pose and no box. Its parameters say how the air is, ``air_of`` puts several together, and both the
relit first frame (``dwm.conditioning.relight``) and the true video of the proving ground (``dwm.scenes.proving_ground.weather``)
read the result. ``visibility_m`` is the meteorological visibility: the distance at which Koschmieder's law leaves 2 % of a
contrast, so that air of visibility V lets exp(-3.912 d / V) of the light through over d metres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dwm.errors import InputError
from dwm.scenario.types import Perturbation
from dwm.scenes.prompts import daytime, weather
from dwm.scenes.types import Scene

KOSCHMIEDER = 3.912  # -ln 0.02
NIGHT_EV = 2.9  # stops between the proving ground's day and its night
_DENSE_FOG_M = 215.0  # visibility of the proving ground's fog: no sun comes through
_LAMPS_FROM = 0.2  # share of any condition
# What a log's own night, rain or fog is taken to be like: that of the proving ground.
USUAL = {
    "night": {"exposure_ev": NIGHT_EV},
    "rain": {"visibility_m": 469.0, "wetness": 0.8, "overcast": 1.0},
    "fog": {"visibility_m": _DENSE_FOG_M},
}
_SPREAD = 0.1  # of a drawn visibility, to either side


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionFamily:
    """One kind of condition: how to draw its parameters, and what they may be."""

    name: str  # also its word in a prompt
    parameters: tuple[str, ...]
    sample: Callable[[float, np.random.Generator], dict[str, float]]  # (severity in [0, 1], generator)
    limits: tuple[tuple[float, float], ...]  # lowest and highest value of each parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class Air:
    """Light and air that conditions ask for. The default changes nothing."""

    darkness_ev: float = 0.0  # stops below the log's light
    rain: float = 0.0  # share of the sky under rain clouds
    fog: float = 0.0  # share of the sky hidden by fog; with ``rain`` at most 1
    extinction_per_m: float = 0.0  # of rain and fog together
    wetness: float = 0.0  # of the ground: 0 dry, 1 under water

    @property
    def night(self) -> float:
        """How far the way from day to the proving ground's night is gone; 1 is there."""
        return self.darkness_ev / NIGHT_EV

    @property
    def lamps_on(self) -> bool:
        """Whether it has drivers switch on their lights."""
        return max(self.night, self.rain, self.fog) > _LAMPS_FROM

    @property
    def visibility_m(self) -> float:
        """Meteorological visibility through rain and fog; infinite without them."""
        return KOSCHMIEDER / self.extinction_per_m if self.extinction_per_m > 0 else float("inf")


CLEAR = Air()


def conditions_of(perturbation: Perturbation) -> tuple[Perturbation, ...]:
    """The conditions among the parts of a perturbation, in their order."""
    return tuple(part for part in perturbation.parts() if part.name in CONDITIONS)


def air_of(conditions: Sequence[Perturbation]) -> Air:
    """What several conditions make together: extinctions add up, and rain and fog share one sky.

    Raises InputError for a name that is no condition, one given twice, or a parameter that is missing or out of range.
    """
    params = {condition.name: _checked(condition) for condition in conditions}
    if len(params) < len(conditions):
        raise InputError("conditions", f"{[c.name for c in conditions]} has one twice", "give each condition once")
    extinction = {name: KOSCHMIEDER / p["visibility_m"] for name, p in params.items() if "visibility_m" in p}
    rain = params["rain"]["overcast"] if "rain" in params else 0.0
    fog = min(1.0, extinction.get("fog", 0.0) * _DENSE_FOG_M / KOSCHMIEDER)
    both = max(1.0, rain + fog)
    return Air(
        darkness_ev=params["night"]["exposure_ev"] if "night" in params else 0.0, rain=rain / both, fog=fog / both,
        extinction_per_m=sum(extinction.values()), wetness=params["rain"]["wetness"] if "rain" in params else 0.0,
    )  # fmt: skip


def new_conditions(scene: Scene, conditions: Sequence[Perturbation]) -> tuple[tuple[Perturbation, ...], tuple[str, ...]]:
    """The conditions that a log does not have already, and a note in words for each that it has."""
    own = {daytime(scene.description, scene.location, int(scene.key_timestamps_us[0])), weather(scene.description)}
    notes = tuple(f"the log shows {c.name} already: it stays as it is" for c in conditions if c.name in own)
    return tuple(c for c in conditions if c.name not in own), notes


def air_in(scene: Scene, conditions: Sequence[Perturbation]) -> Air:
    """What a clip's light and air are like: as the conditions say, and as usual for what the log shows already."""
    asked, _ = new_conditions(scene, conditions)
    words = (daytime(scene.description, scene.location, int(scene.key_timestamps_us[0])), weather(scene.description))
    own = [Perturbation(name=word, params=USUAL[word], severity=0.5) for word in words if word in USUAL]
    return air_of([*asked, *own])


def _checked(condition: Perturbation) -> dict[str, float]:
    where = f"condition '{condition.name}'"
    if condition.name not in CONDITIONS:
        raise InputError(where, "there is no such condition", f"choose from: {', '.join(CONDITIONS)}")
    family = CONDITIONS[condition.name]
    if set(condition.params) != set(family.parameters):
        raise InputError(where, f"parameters are {sorted(condition.params)}", f"give exactly {sorted(family.parameters)}")
    for name, (low, high) in zip(family.parameters, family.limits, strict=True):
        if not low <= condition.params[name] <= high:
            raise InputError(where, f"{name} is {condition.params[name]:g}", f"give {low:g} to {high:g}")
    return condition.params


def _between(low: float, high: float, severity: float) -> float:
    return float(low + (high - low) * severity)


def _visibility(clearest_m: float, densest_m: float, severity: float, rng: np.random.Generator) -> float:
    """Between two visibilities on a logarithmic scale, 10 % more or less."""
    return float(clearest_m * (densest_m / clearest_m) ** severity * rng.uniform(1 - _SPREAD, 1 + _SPREAD))


def _sample_night(severity: float, rng: np.random.Generator) -> dict[str, float]:
    """2 stops darker (a lit street) to 4 (an unlit one), a tenth of a stop more or less."""
    return {"exposure_ev": _between(2.0, 4.0, severity) + float(rng.uniform(-0.1, 0.1))}


def _sample_rain(severity: float, rng: np.random.Generator) -> dict[str, float]:
    """Visibility of 1500 m (light rain) to 300 m (a downpour); ground and sky with it."""
    return {
        "visibility_m": _visibility(1500.0, 300.0, severity, rng), "wetness": _between(0.3, 1.0, severity),
        "overcast": _between(0.6, 1.0, severity),
    }  # fmt: skip


def _sample_fog(severity: float, rng: np.random.Generator) -> dict[str, float]:
    """Visibility of 1000 m, from where on meteorologists say fog, to 150 m."""
    return {"visibility_m": _visibility(1000.0, 150.0, severity, rng)}


CONDITIONS: dict[str, ConditionFamily] = {
    f.name: f
    for f in (
        ConditionFamily(name="night", parameters=("exposure_ev",), sample=_sample_night, limits=((0.0, 6.0),)),
        ConditionFamily(
            name="rain", parameters=("visibility_m", "wetness", "overcast"), sample=_sample_rain,
            limits=((50.0, 1e5), (0.0, 1.0), (0.0, 1.0)),
        ),
        ConditionFamily(name="fog", parameters=("visibility_m",), sample=_sample_fog, limits=((20.0, 1e5),)),
    )
}  # fmt: skip
