"""The one place where a mix meets the catalogue of perturbations."""

from __future__ import annotations

from dwm.errors import InputError
from dwm.scenario.conditions import CONDITIONS
from dwm.scenario.perturbations import BASELINE, FAMILIES
from dwm.scenario.tags import DAYTIMES, WEATHER_TAGS


def known_families() -> tuple[str, ...]:
    """Names that may stand alone or be joined."""
    return (BASELINE.name, *FAMILIES)


def parameters_of(name: str, where: str) -> frozenset[str]:
    """What ``ranges`` may name. InputError for an unknown family, or the baseline joined to another."""
    parts = name.split("+")
    for part in parts:
        if part not in known_families() or (part == BASELINE.name and len(parts) > 1):
            raise InputError(where, f"no family '{part}' in '{name}'", f"use one of: {', '.join(known_families())}")
    if len(set(parts)) < len(parts):
        raise InputError(where, f"'{name}' names a family twice", "join different families")
    if name == BASELINE.name:
        return frozenset()
    prefix = (lambda part: f"{part}.") if len(parts) > 1 else (lambda part: "")
    return frozenset(prefix(part) + parameter for part in parts for parameter in FAMILIES[part].parameters)


def tags_set(name: str) -> frozenset[str]:
    """Tags that every clip of the family carries."""
    return frozenset(part for part in name.split("+") if part in CONDITIONS)


def tags_cleared(name: str) -> frozenset[str]:
    """Tags that no clip of the family carries: the other times of day where it sets one, and the other weathers."""
    cleared = set()
    for kind in (DAYTIMES, WEATHER_TAGS):
        if own := tags_set(name) & set(kind):
            cleared |= set(kind) - own
    return frozenset(cleared)
