"""Draws the clips of a mix: which stretch, which perturbation, how strong; and what the mix then looks like."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.tags import TaggedWindow
from pipelines.atomic import canonical_json
from pipelines.config import FamilyConfig, MixConfig
from pipelines.long_tail.corpus import Corpus
from pipelines.long_tail.families import tags_cleared, tags_set
from pipelines.long_tail.solver import MixProblem, quotas, solve, systematic, whole_counts

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedClip:
    """One clip of a mix."""

    window: TaggedWindow
    family: FamilyConfig
    severity: float
    repeat: int  # how many clips of the same window and family come before it: they differ by their seed

    @property
    def tags(self) -> frozenset[str]:
        """Of the log, with what the family changes."""
        return clip_tags(self.window, self.family.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Which shares of the clips a tag could have if it were the only one asked for."""

    windows: int  # that have it and can be started from
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The clips, in the order of their windows, and what can be reached for each targeted tag."""

    clips: tuple[MixedClip, ...]
    reach: dict[str, Reach]
    notes: tuple[str, ...]  # targets that are missed, in words


def clip_tags(window: TaggedWindow, family: str) -> frozenset[str]:
    """Tags of a clip: those of its stretch, and the conditions that the family sets instead of the log's."""
    return (window.tags - tags_cleared(family)) | tags_set(family)


def draw_mix(mix: MixConfig, corpus: Corpus, seed: int) -> Mix:
    """The clips of a mix; the same configuration, corpus and seed give the same ones.

    Raises InputError when the stretches do not suffice for so many clips.
    """
    windows, base = base_measure(mix, corpus)
    _check_room(mix, len(windows), len(corpus.windows))
    rng = mix_generator(seed)
    per_family = quotas(np.array([family.weight for family in mix.families]), mix.clips)
    groups, problem = _problem(mix, windows, base, per_family)
    expected = solve(problem)
    slots = _slots(problem, expected, windows, rng)
    clips = _clips(mix, windows, slots, groups, per_family, rng)
    reach = {tag: _reach(tag, mix, windows, per_family) for tag in mix.shares}
    return Mix(clips=clips, reach=reach, notes=tuple(_notes(mix, clips, reach, len(windows))))


def base_measure(mix: MixConfig, corpus: Corpus) -> tuple[list[TaggedWindow], NDArray[np.float64]]:
    """The stretches that clips may start from, and how likely each is [W] > 0 where the shares leave a choice."""
    startable = [
        pair for pair, fine in zip(zip(corpus.windows, corpus.rarities(), strict=True), corpus.startable, strict=True) if fine
    ]
    bits = np.array([rarity.total_bits for _, rarity in startable], np.float64)
    return [window for window, _ in startable], np.maximum(bits, 1e-3) ** mix.temperature


def shares_of(tagged: Sequence[frozenset[str]], tags: Sequence[str]) -> dict[str, float]:
    """In which share of the sets each tag is."""
    return {tag: sum(tag in own for own in tagged) / max(len(tagged), 1) for tag in tags}


def _check_room(mix: MixConfig, startable: int, windows: int) -> None:
    if startable == 0:
        problem = f"none of the {windows} stretches has images to start from"
        raise InputError("scenario.mix", problem, "unpack the camera images, or choose other scenes")
    if mix.clips > startable * mix.max_repeats:
        missing = "" if startable == windows else f" ({windows - startable} more lack images to start from)"
        problem = f"{mix.clips} clips from {startable} stretches{missing}, each at most {mix.max_repeats} times"
        raise InputError("scenario.mix", problem, "lower clips or stride_s, raise max_repeats, or give more scenes")


def mix_generator(seed: int, *purpose: str) -> np.random.Generator:
    """Random numbers for the draw of a mix, or for something else about it."""
    key = canonical_json(["mix", seed, *purpose])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()[:8], "little"))


def _problem(
    mix: MixConfig, windows: Sequence[TaggedWindow], base: NDArray[np.float64], per_family: NDArray[np.int64]
) -> tuple[NDArray[np.int64], MixProblem]:
    """The group [F] of each family (families that change the same targeted tags are one) and the problem to solve."""
    tags = list(mix.shares)
    effects = [
        tuple(1 if tag in tags_set(f.name) else -1 if tag in tags_cleared(f.name) else 0 for tag in tags) for f in mix.families
    ]
    kinds = sorted(set(effects))
    groups = np.array([kinds.index(effect) for effect in effects], np.int64)
    own = np.array([[tag in window.tags for tag in tags] for window in windows], np.float64).reshape(len(windows), 1, len(tags))
    change = np.array(kinds, np.float64).reshape(1, len(kinds), len(tags))
    problem = MixProblem(
        base=base, features=np.where(change == 0, own, change > 0).astype(np.float64),
        targets=np.array([mix.shares[tag] for tag in tags], np.float64),
        quotas=np.bincount(groups, per_family, minlength=len(kinds)).astype(np.int64), max_repeats=mix.max_repeats,
    )  # fmt: skip
    return groups, problem


def _slots(
    problem: MixProblem, expected: NDArray[np.float64], windows: Sequence[TaggedWindow], rng: np.random.Generator
) -> list[list[int]]:
    """Per group, the windows of its clips; those of one scene are neighbours."""
    counts, kind = whole_counts(problem, expected)
    # One comb runs over scenes in random order, and over the windows of each in random order: evenly, without aliasing.
    tokens = sorted({window.scene_token for window in windows})
    rank = dict(zip(tokens, rng.permutation(len(tokens)).tolist(), strict=True))
    order = np.lexsort((rng.random(len(windows)), [rank[window.scene_token] for window in windows]))
    slots: list[list[int]] = [[] for _ in problem.quotas]
    for number, per_group in enumerate(counts):
        members = order[kind[order] == number]
        draws = systematic(expected[members].sum(1), int(per_group.sum()), problem.max_repeats, rng.random())
        for window, group in zip(np.repeat(members, draws).tolist(), _interleaved(per_group), strict=True):
            slots[group].append(window)
    return slots


def _interleaved(counts: NDArray[np.int64]) -> list[int]:
    """Each index as often as its count says, as evenly spread as can be."""
    places = [((k + 0.5) / count, index) for index, count in enumerate(counts.tolist()) for k in range(count)]
    return [index for _, index in sorted(places)]


def _clips(
    mix: MixConfig, windows: Sequence[TaggedWindow], slots: list[list[int]], groups: NDArray[np.int64],
    per_family: NDArray[np.int64], rng: np.random.Generator,
) -> tuple[MixedClip, ...]:  # fmt: skip
    """Deals the windows of each group to its families; severities follow the golden ratio, evenly whatever their number."""
    pairs: list[tuple[int, int]] = []
    for group, drawn in enumerate(slots):
        pairs += zip(drawn, _interleaved(np.where(groups == group, per_family, 0)), strict=True)
    phase, seen = rng.random(len(groups)), [0] * len(groups)
    repeats: dict[tuple[int, str], int] = {}
    clips = []
    for window, number in sorted(pairs):
        family = mix.families[number]
        low, high = family.severity
        part = float((phase[number] + seen[number] * _GOLDEN) % 1.0)
        severity = 0.0 if family.name == BASELINE.name else round(low + (high - low) * part, 6)
        repeat = repeats.get((window, family.name), 0)
        clips.append(MixedClip(window=windows[window], family=family, severity=severity, repeat=repeat))
        repeats[window, family.name] = repeat + 1
        seen[number] += 1
    return tuple(clips)


def _reach(tag: str, mix: MixConfig, windows: Sequence[TaggedWindow], per_family: NDArray[np.int64]) -> Reach:
    have = sum(tag in window.tags for window in windows)
    given = sum(int(n) for f, n in zip(mix.families, per_family, strict=True) if tag in tags_set(f.name))
    taken = sum(int(n) for f, n in zip(mix.families, per_family, strict=True) if tag in tags_cleared(f.name) - tags_set(f.name))
    free = mix.clips - given - taken
    high = given + min(free, have * mix.max_repeats)
    low = given + max(0, free - (len(windows) - have) * mix.max_repeats)
    return Reach(windows=have, low=low / mix.clips, high=high / mix.clips)


def _notes(mix: MixConfig, clips: Sequence[MixedClip], reach: dict[str, Reach], windows: int) -> list[str]:
    planned, notes = shares_of([clip.tags for clip in clips], list(mix.shares)), []
    for tag, target in mix.shares.items():
        own = reach[tag]
        outside = target > own.high or target < own.low
        # Shares that stand against each other may cost a clip to rounding; what is out of reach is told in full.
        if abs(planned[tag] - target) * mix.clips <= (0.5 if outside else 1.0) + 1e-9:
            continue
        bound = f"at most {own.high:.0%}" if target > own.high else f"at least {own.low:.0%}"
        limit = f"these and the families allow {bound}" if outside else "the other shares stand against it"
        notes.append(
            f"{tag}: asked for in {target:.0%} of the clips, planned in {planned[tag]:.0%}; {own.windows} of {windows} stretches "
            f"have it, each used at most {mix.max_repeats} times: {limit}"
        )
    return notes
