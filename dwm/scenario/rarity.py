"""How rare a stretch of a log is in its corpus: the information of its tags, tag by tag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dwm.scenario.tags import TaggedWindow

MISSED_SHARE, MISSED_LABELS = 0.5, 5  # of a class in a stretch, to count as missed or to be judged at all


@dataclass(frozen=True, slots=True, kw_only=True)
class Rarity:
    """Bits by tag, the rarest first."""

    bits: dict[str, float]

    @property
    def total_bits(self) -> float:
        """The sum: an upper bound on the information of the whole, reached when tags are independent."""
        return sum(self.bits.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class TagCount:
    """In how many stretches of the corpus a tag is, of those in which it is known."""

    present: int
    known: int

    @property
    def frequency(self) -> float:
        """(present + 1/2) / (known + 1): the estimate of Krichevsky and Trofimov (1981), never 0 or 1."""
        return (self.present + 0.5) / (self.known + 1.0)


def tag_counts(windows: Sequence[TaggedWindow]) -> dict[str, TagCount]:
    """Counts of every tag that occurs."""
    names = sorted({name for window in windows for name in window.tags})
    return {
        name: TagCount(
            present=sum(name in window.tags for window in windows), known=sum(name not in window.unknown for window in windows)
        )
        for name in names
    }


def rarity(window: TaggedWindow, counts: Mapping[str, TagCount]) -> Rarity:
    """-log2 of the frequency of each tag of a stretch of the corpus."""
    bits = {name: -float(np.log2(counts[name].frequency)) for name in window.tags}
    return Rarity(bits=dict(sorted(bits.items(), key=lambda item: (-item[1], item[0]))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Labels of one class that an evaluator was shown, and how many of them it missed."""

    labels: int
    missed: int

    @property
    def share(self) -> float:
        return self.missed / self.labels if self.labels else 0.0


def with_misses(window: TaggedWindow, own: Mapping[str, Support], corpus: Mapping[str, Support]) -> TaggedWindow:
    """The stretch with its ``missed.*`` tags, from the support of its labels and of the whole corpus by class.

    A class is missed when at least half of its labels are, and no smaller share than in the corpus. With fewer than
    five labels it stays unknown.
    """
    judged = {name: support for name, support in own.items() if support.labels >= MISSED_LABELS}
    missed = {
        f"missed.{name}" for name, support in judged.items() if support.share >= max(MISSED_SHARE, corpus[name].share)
    }  # fmt: skip
    unknown = window.unknown - {f"missed.{name}" for name in judged}
    return replace(window, tags=window.tags | missed, unknown=unknown)
