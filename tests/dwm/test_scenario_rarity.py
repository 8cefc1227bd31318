from __future__ import annotations

import math

import pytest

from dwm.scenario.rarity import Support, TagCount, rarity, tag_counts, with_misses
from dwm.scenario.tags import MISSED, TaggedWindow

NO_EVALUATOR = frozenset(MISSED)


def window(name: str, *tags: str, unknown: frozenset[str] = NO_EVALUATOR) -> TaggedWindow:
    return TaggedWindow(
        scene_name=name, scene_token=name, start_s=0.0, end_s=5.0, tags=frozenset(tags), unknown=unknown - frozenset(tags)
    )


def test_a_tag_carries_the_information_of_its_smoothed_frequency():
    # One of three stretches: (1 + 1/2) / (3 + 1) = 3/8; two of three: 5/8.
    corpus = [window("a", "night", "clear"), window("b", "clear"), window("c", "rain")]
    found = rarity(corpus[0], tag_counts(corpus))
    assert found.bits == pytest.approx({"night": math.log2(8 / 3), "clear": math.log2(8 / 5)})
    assert found.total_bits == pytest.approx(math.log2(8 / 3) + math.log2(8 / 5))
    assert list(found.bits) == ["night", "clear"]


def test_no_frequency_is_nought_or_one_and_a_single_stretch_says_little():
    assert (TagCount(present=0, known=9).frequency, TagCount(present=9, known=9).frequency) == (0.05, 0.95)
    alone = [window("a", "night")]
    assert rarity(alone[0], tag_counts(alone)).total_bits == pytest.approx(math.log2(4 / 3))


def test_stretches_in_which_a_tag_is_unknown_do_not_make_it_rare():
    judged = [window("a", "missed.car", unknown=frozenset()), window("b", unknown=frozenset())]
    many = judged + [window(str(i)) for i in range(100)]
    counts = tag_counts(many)
    assert counts["missed.car"] == TagCount(present=1, known=2)
    assert rarity(judged[0], counts).bits["missed.car"] == pytest.approx(1.0)


def test_the_order_of_the_corpus_does_not_matter():
    corpus = [window("a", "night", "clear"), window("b", "clear"), window("c", "rain")]
    assert tag_counts(corpus) == tag_counts(corpus[::-1])


def test_planted_misses_raise_the_rarity_of_their_stretch_alone():
    corpus = [window(name, "clear") for name in "abcdefgh"]
    support = {w.scene_name: {"car": Support(labels=20, missed=2), "bus": Support(labels=4, missed=4)} for w in corpus}
    before = [with_misses(w, support[w.scene_name], _total(support)) for w in corpus]
    support["c"] = {"car": Support(labels=20, missed=18)}
    after = [with_misses(w, support[w.scene_name], _total(support)) for w in corpus]
    gained = [
        rarity(w, tag_counts(after)).total_bits - rarity(v, tag_counts(before)).total_bits
        for v, w in zip(before, after, strict=True)
    ]
    assert gained == pytest.approx([math.log2(9 / 1.5) if name == "c" else 0.0 for name in "abcdefgh"])


def test_a_class_is_missed_from_half_its_labels_on_but_not_where_the_whole_corpus_does_worse():
    plain = window("a")
    tags = lambda own, everywhere: with_misses(plain, {"car": own}, {"car": everywhere}).tags  # noqa: E731
    rarely = Support(labels=100, missed=10)
    assert tags(Support(labels=10, missed=5), rarely) == {"missed.car"}
    assert tags(Support(labels=10, missed=4), rarely) == set()
    assert tags(Support(labels=10, missed=6), Support(labels=100, missed=70)) == set()
    assert tags(Support(labels=10, missed=7), Support(labels=100, missed=70)) == {"missed.car"}
    few = with_misses(plain, {"car": Support(labels=4, missed=4)}, {"car": rarely})
    assert (few.tags, few.unknown) == (frozenset(), NO_EVALUATOR)


def _total(support: dict[str, dict[str, Support]]) -> dict[str, Support]:
    names = {name for own in support.values() for name in own}
    parts = {name: [own[name] for own in support.values() if name in own] for name in names}
    return {n: Support(labels=sum(p.labels for p in ps), missed=sum(p.missed for p in ps)) for n, ps in parts.items()}
