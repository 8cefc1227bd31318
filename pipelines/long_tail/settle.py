"""Moves the clips of a mix that make no scenario to other stretches that serve its shares as well."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from dwm.scenario.tags import TaggedWindow
from pipelines.config import MixConfig
from pipelines.long_tail.corpus import Corpus
from pipelines.long_tail.mix import Mix, MixedClip, base_measure, clip_tags, mix_generator
from pipelines.plan import Shard

_STRETCHES_TRIED = 12  # for one clip, beside its own


def settled(
    mix: MixConfig, corpus: Corpus, drawn: Mix, seed: int, make: Callable[[MixedClip], Shard]
) -> tuple[Mix, list[Shard]]:
    """The mix with its shards; what is infeasible moves to stretches with the same targeted tags, rare ones first as a rule.

    ``make`` makes a clip's shard. What is infeasible wherever it was tried stays where it was drawn, and a note tells it.
    """
    windows, base = base_measure(mix, corpus)
    order = np.argsort(-(np.log(base) + mix_generator(seed, "moved").gumbel(size=len(base))))
    places = [windows[i] for i in order]
    taken = Counter(_place(clip.window) for clip in drawn.clips)
    repeats: dict[tuple[str, float, str], int] = defaultdict(int)
    for clip in drawn.clips:
        repeats[(*_place(clip.window), clip.family.name)] += 1
    failed: set[tuple[str, float, str]] = set()
    clips, shards = [], []
    for clip in tqdm(drawn.clips, desc="clips tried", disable=None):
        shard, name = make(clip), clip.family.name
        if shard.infeasible:
            failed.add((*_place(clip.window), name))
            shares = _shares(mix, clip.window, name)
            fit = (w for w in places if _shares(mix, w, name) == shares and taken[_place(w)] < mix.max_repeats)
            others = [w for w in fit if (*_place(w), name) not in failed][:_STRETCHES_TRIED]
            for window in others:
                key = (*_place(window), name)
                moved = replace(clip, window=window, repeat=repeats[key])
                elsewhere = make(moved)
                if elsewhere.infeasible:
                    failed.add(key)
                    continue
                taken[_place(clip.window)] -= 1
                taken[_place(window)] += 1
                repeats[key] += 1
                clip, shard = moved, elsewhere
                break
        clips.append(clip)
        shards.append(shard)
    return replace(drawn, clips=tuple(clips), notes=(*drawn.notes, *_notes(clips, shards))), shards


def _place(window: TaggedWindow) -> tuple[str, float]:
    return window.scene_token, window.start_s


def _shares(mix: MixConfig, window: TaggedWindow, family: str) -> frozenset[str]:
    """The targeted tags that a clip has there."""
    return clip_tags(window, family) & mix.shares.keys()


def _notes(clips: list[MixedClip], shards: list[Shard]) -> list[str]:
    """What is infeasible wherever it was tried, by family."""
    planned = Counter(clip.family.name for clip in clips)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for clip, shard in zip(clips, shards, strict=True):
        if shard.infeasible:
            reasons[clip.family.name][shard.infeasible.split(":")[0]] += 1
    return [
        f"{name}: {own.total()} of {planned[name]} clips are feasible in no stretch that was tried "
        f"({', '.join(f'{reason} {count}' for reason, count in own.most_common())})"
        for name, own in sorted(reasons.items())
    ]
