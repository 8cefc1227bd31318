"""What a mix may say; everything else is refused before any table is read."""

from __future__ import annotations

import difflib
import math

from dwm.errors import InputError
from dwm.scenario.tags import MISSED, TAGS
from pipelines.config import FamilyConfig, MixConfig
from pipelines.long_tail.families import parameters_of


def check_mix(mix: MixConfig, where: str) -> None:
    """Raises InputError for values no mix can use."""
    _require(mix.clips >= 1, where, f"scenario.mix.clips is {mix.clips}", "give at least 1")
    _require(mix.max_repeats >= 1, where, f"scenario.mix.max_repeats is {mix.max_repeats}", "give at least 1")
    powers = {"temperature": mix.temperature, "stride_s": mix.stride_s}
    for name, value in powers.items():
        _require(math.isfinite(value) and value >= 0, where, f"scenario.mix.{name} is {value}", "give a number of 0 or more")
    coarse = mix.stride_s == 0 or mix.stride_s >= 0.5
    _require(coarse, where, f"scenario.mix.stride_s is {mix.stride_s}", "give 0.5 s or more: clips start at key frames")
    if mix.missed_below is not None:
        fine = 0 < mix.missed_below <= 1
        _require(fine, where, f"scenario.mix.missed_below is {mix.missed_below}", "give a score above 0, at most 1")
    _require(bool(mix.families), where, "scenario.mix.families is empty", "list at least one, e.g. {name: baseline}")
    for family in mix.families:
        _check_family(family, f"{where}: scenario.mix.families")
    total = sum(family.weight for family in mix.families)
    _require(total > 0, where, "all weights of scenario.mix.families are 0", "give one of them a positive weight")
    for tag, share in mix.shares.items():
        _check_share(tag, share, mix, where)


def _check_family(family: FamilyConfig, where: str) -> None:
    known = parameters_of(family.name, where)
    fine = math.isfinite(family.weight) and family.weight >= 0
    _require(fine, where, f"weight of {family.name} is {family.weight}", "give a number of 0 or more")
    _check_range(f"severity of {family.name}", family.severity, where, 0.0, 1.0)
    for parameter, limits in family.ranges.items():
        listed = ", ".join(sorted(known)) or "none"
        _require(parameter in known, where, f"{family.name} has no parameter '{parameter}'", f"it has: {listed}")
        _check_range(f"range of {parameter} of {family.name}", limits, where, -math.inf, math.inf)


def _check_range(what: str, limits: list[float], where: str, low: float, high: float) -> None:
    _require(len(limits) == 2, where, f"{what} is {limits}", "give two numbers: [low, high]")
    _require(all(map(math.isfinite, limits)), where, f"{what} is {limits}", "give finite numbers")
    _require(limits[0] <= limits[1], where, f"{what} is {limits}: reversed", "give [low, high]")
    inside = low <= limits[0] and limits[1] <= high
    _require(inside, where, f"{what} is {limits}", f"stay between {low:g} and {high:g}")


def _check_share(tag: str, share: float, mix: MixConfig, where: str) -> None:
    close = difflib.get_close_matches(tag, TAGS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? known: " if close else "known: "
    _require(tag in TAGS, where, f"scenario.mix.shares names an unknown tag '{tag}'", hint + ", ".join(TAGS))
    _require(0 <= share <= 1, where, f"scenario.mix.shares.{tag} is {share}", "give a share from 0 to 1")
    told = tag not in MISSED or mix.misses is not None
    _require(
        told,
        where,
        f"scenario.mix.shares.{tag} needs to know what was missed",
        "set scenario.mix.misses to a published version",
    )


def _require(condition: bool, where: str, problem: str, fix: str) -> None:
    if not condition:
        raise InputError(where, problem, fix)
