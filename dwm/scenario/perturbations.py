"""The families of changes by name: how their parameters are drawn and what they do.

Ego moves change the commanded path: sideways (another line, same pace) or in time (same line, another pace). Events put
another road user in the ego's way. Conditions change light and weather. Names joined by "+" are made together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.scenario import events, retiming, sideways
from dwm.scenario.conditions import CONDITIONS
from dwm.scenario.cut_in import cut_in
from dwm.scenario.drawing import EITHER_SIDE, anywhere, drawn, severe
from dwm.scenario.paths import micros
from dwm.scenario.types import Perturbation
from dwm.scenes.types import EgoTrack, SceneMap

Array = NDArray[np.float64]
BASELINE = Perturbation(name="baseline", params={}, severity=0.0)
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of change. An ego move has a ``move``, an event an ``event``, a condition neither."""

    parameters: tuple[str, ...]
    sample: Callable[[float, np.random.Generator], dict[str, float]]  # (severity in [0, 1], generator)
    # (baseline, times [T] in s from its start, parameters, map) -> poses [T, 4, 4]
    move: Callable[[EgoTrack, Array, dict[str, float], SceneMap | None], Array] | None = None
    event: events.Event | None = None
    yields: bool = False  # on its new line the ego slows down for the log's traffic
    # How much baseline, in multiples of the clip, the changed path may use up.
    horizon: Callable[[dict[str, float]], float] = field(default=lambda params: 1.0)


FAMILIES: dict[str, Family] = {
    "lateral_offset": Family(
        move=sideways.lateral_offset, yields=True,
        **drawn(offset_m=severe(0.5, 3.0, either_sign=True), onset_s=anywhere(0.5, 3.0), ramp_s=anywhere(3.0, 5.0)),
    ),
    "lane_change": Family(
        move=sideways.lane_change, yields=True,
        **drawn(side=EITHER_SIDE, onset_s=anywhere(0.5, 5.0), duration_s=severe(6.0, 3.0)),
    ),
    "swerve": Family(
        move=sideways.swerve, yields=True,
        **drawn(offset_m=severe(0.4, 2.0, either_sign=True), onset_s=anywhere(0.5, 5.0), duration_s=severe(6.0, 4.0)),
    ),
    "heading_drift": Family(
        move=sideways.heading_drift, yields=True,
        **drawn(angle_rad=severe(0.01, 0.07, either_sign=True), onset_s=anywhere(0.5, 4.0), drift_s=anywhere(2.0, 4.0),
            recover_s=anywhere(2.0, 3.5)),
    ),
    "speed_scale": Family(
        move=retiming.speed_scale,
        **drawn(factor=severe(0.05, 0.4, either_sign=True, about=1.0), onset_s=anywhere(0.5, 3.0), ramp_s=anywhere(3.0, 5.0)),
        horizon=lambda params: max(1.0, params["factor"]),
    ),
    "hard_brake": Family(
        move=retiming.hard_brake,
        **drawn(decel_mps2=severe(2.0, 6.0), onset_s=anywhere(1.0, 6.0), hold_s=anywhere(1.0, 4.0)),
    ),
    "stop_and_go": Family(
        move=retiming.stop_and_go,
        **drawn(stops=severe(2.0, 4.0, whole=True), decel_mps2=severe(1.5, 4.0), onset_s=anywhere(0.5, 3.0),
            hold_s=anywhere(1.0, 4.0), roll_s=anywhere(3.0, 6.0)),
    ),
    "cut_in": Family(
        event=events.Event(script=cut_in, earliest="onset_s", lasts_s=lambda params: params["duration_s"] + 1.0),
        **drawn(side=EITHER_SIDE, onset_s=anywhere(2.0, 10.0), duration_s=severe(4.0, 2.5), gap_m=severe(20.0, 7.0),
            speed_factor=severe(1.0, 0.6)),
    ),
    "stopped_vehicle": Family(
        event=events.Event(script=events.stopped_vehicle, earliest="reach_s", appears_m=events.VEHICLE_APPEARS_M),
        **drawn(reach_s=anywhere(4.0, 10.0), hold_s=severe(2.0, 10.0)),
    ),
    "crossing_pedestrian": Family(
        event=events.Event(script=events.crossing_pedestrian, earliest="reach_s", appears_m=events.SMALL_APPEARS_M),
        **drawn(side=EITHER_SIDE, reach_s=anywhere(5.0, 10.0), ttc_s=severe(4.0, 2.2), speed_mps=anywhere(1.0, 2.0)),
    ),
    "debris": Family(
        event=events.Event(script=events.debris, earliest="reach_s", appears_m=events.SMALL_APPEARS_M),
        **drawn(left_m=severe(0.8, 0.1, either_sign=True), reach_s=anywhere(4.0, 10.0)),
    ),
}  # fmt: skip
FAMILIES |= {name: Family(parameters=kind.parameters, sample=kind.sample) for name, kind in CONDITIONS.items()}


def sample_perturbation(name: str, severity: float, rng: np.random.Generator, ranges: Ranges | None = None) -> Perturbation:
    """A change of one family, or of several joined by "+"; severity in [0, 1] is how far it is from the log.

    ``ranges`` replaces what a parameter is drawn from by a uniform distribution; in a joined name its key begins with the
    family, e.g. ``hard_brake.decel_mps2``. Raises InputError for unknown families and parameters.
    """
    if not 0.0 <= severity <= 1.0:
        raise InputError("severity", f"{severity} is not in [0, 1]", "give a severity between 0 and 1")
    if name == BASELINE.name:
        return BASELINE
    names = _names(name)
    params: dict[str, float] = {}
    for single in names:
        prefix = f"{single}." if len(names) > 1 else ""
        params |= {prefix + key: value for key, value in family(single).sample(severity, rng).items()}
    for key, (low, high) in (ranges or {}).items():
        if key not in params:
            raise InputError(f"perturbation '{name}'", f"no parameter '{key}'", f"it has: {', '.join(params)}")
        params[key] = float(rng.uniform(low, high))
    return Perturbation(name=name, params=params, severity=float(severity))


def _names(name: str) -> list[str]:
    names = name.split("+")
    if len(set(names)) < len(names):
        raise InputError("perturbation", f"'{name}' names a family twice", "name each family once")
    return names


def family(name: str) -> Family:
    """The family of that name; InputError names the known ones."""
    if name not in FAMILIES:
        known = ", ".join((BASELINE.name, *FAMILIES))
        raise InputError("perturbation", f"no perturbation '{name}'", f"choose one of: {known}")
    return FAMILIES[name]


def checked_parts(perturbation: Perturbation) -> list[tuple[str, Family, dict[str, float]]]:
    """The single changes with their families; none for the baseline. InputError when parameters are missing or too many."""
    if perturbation.name == BASELINE.name:
        return []
    _names(perturbation.name)
    found = [(part.name, family(part.name), part.params) for part in perturbation.parts()]
    joined = len(found) > 1
    expected = {f"{name}.{key}" if joined else key for name, kind, _ in found for key in kind.parameters}
    if set(perturbation.params) != expected:
        raise InputError(
            f"perturbation '{perturbation.name}'",
            f"parameters are {sorted(perturbation.params)}",
            f"give exactly {sorted(expected)}",
        )
    return found


def horizon(perturbation: Perturbation) -> float:
    """How much of the baseline, in multiples of the clip's duration, ``perturb`` needs."""
    return float(np.prod([kind.horizon(params) for _, kind, params in checked_parts(perturbation)]))


def perturb(
    baseline: EgoTrack, timestamps_us: NDArray[np.int64], perturbation: Perturbation, scene_map: SceneMap | None = None
) -> Array:
    """Ego poses [T, 4, 4] at the given times after every ego move; the onset counts from the baseline's first pose.

    Events do not act here: they need the other road users (``dwm.scenario.build``). Raises Infeasible where a move has no
    room on the map.
    """
    moves = [(kind.move, params) for _, kind, params in checked_parts(perturbation) if kind.move is not None]
    if not moves:
        own = np.array_equal(timestamps_us, baseline.timestamps_us[: len(timestamps_us)])
        return baseline.ego_to_global[: len(timestamps_us)].copy() if own else baseline.at(timestamps_us)
    track = baseline
    for move, params in moves[:-1]:
        # What a later move runs through must reach as far as the baseline does.
        own = (track.timestamps_us - track.timestamps_us[0]) * 1e-6
        track = EgoTrack(timestamps_us=micros(track, own), ego_to_global=move(track, own, params, scene_map))
    last, params = moves[-1]
    return last(track, (timestamps_us - track.timestamps_us[0]) * 1e-6, params, scene_map)
