"""The stretches that the configured logs offer, each with its tags and its rarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dwm.errors import InputError
from dwm.scenario.rarity import Rarity, Support, TagCount, rarity, tag_counts, with_misses
from dwm.scenario.tags import TaggedWindow, tag_windows, windows_of
from dwm.scenes.track_tables import read_tracks
from dwm.scenes.tracks import SceneTracks
from dwm.scenes.types import CAMERAS
from pipelines.config import MixConfig, RunConfig
from pipelines.long_tail.misses import ScoredLabels, missed_below, read_misses, support_by_class
from pipelines.plan import SceneRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Windows and whole scenes of the configured logs, ordered by scene token and start."""

    windows: tuple[TaggedWindow, ...]
    scenes: tuple[TaggedWindow, ...]  # each from its first key frame to its last
    startable: tuple[bool, ...]  # of the windows: the six images to start from exist

    def counts(self) -> dict[str, TagCount]:
        """Of every tag that a window has."""
        return tag_counts(self.windows)

    def rarities(self) -> list[Rarity]:
        """Of each window among the windows."""
        counts = self.counts()
        return [rarity(window, counts) for window in self.windows]

    def scene_rarities(self) -> list[Rarity]:
        """Of each scene among the scenes."""
        counts = tag_counts(self.scenes)
        return [rarity(scene, counts) for scene in self.scenes]


def read_corpus(config: RunConfig, scenes: Sequence[SceneRef]) -> Corpus:
    """Reads tables alone, no maps, images or models: minutes for all of nuScenes.

    Raises InputError for broken tables, and for a version of ``mix.misses`` made from other scenes.
    """
    tracks = read_tracks(Path(config.scenes.dataroot), config.scenes.version, {scene.name for scene in scenes})
    mix = config.scenario.mix or MixConfig()
    misses = {}
    if mix.misses is not None:
        misses = read_misses(Path(mix.misses), missed_below(mix, config.evaluate))
        if not misses.keys() & {scene.token for scene in tracks}:
            fix = "set scenario.mix.misses to a version made from these scenes, with evaluate.detector set"
            raise InputError(mix.misses, "no label of the configured scenes was scored there", fix)
    return tag_corpus(tracks, config.scenario.duration_s, mix.stride_s or config.scenario.duration_s / 2, misses)


def tag_corpus(tracks: Sequence[SceneTracks], duration_s: float, stride_s: float, misses: Mapping[str, ScoredLabels]) -> Corpus:
    """The corpus of these scenes in any order."""
    windows, scenes, startable = [], [], []
    everything = _overall({scene.token: misses[scene.token] for scene in tracks if scene.token in misses})
    for scene in sorted(tracks, key=lambda scene: scene.token):
        stretches = windows_of(scene.length_s, duration_s, stride_s)
        whole, *own = (
            _judged(scene, window, misses, everything) for window in tag_windows(scene, [(0.0, scene.length_s), *stretches])
        )
        windows += own
        scenes.append(whole)
        startable += [_can_start(scene, start) for start, _ in stretches]
    return Corpus(windows=tuple(windows), scenes=tuple(scenes), startable=tuple(startable))


def _overall(misses: Mapping[str, ScoredLabels]) -> dict[str, Support]:
    if not misses:
        return {}
    parts = misses.values()
    return support_by_class(np.concatenate([p.classes for p in parts]), np.concatenate([p.missed for p in parts]))


def _judged(
    scene: SceneTracks, window: TaggedWindow, misses: Mapping[str, ScoredLabels], everything: Mapping[str, Support]
) -> TaggedWindow:
    if scene.token not in misses:
        return window
    first_us = int(scene.key_timestamps_us[0])
    own = misses[scene.token].support(first_us + window.start_s * 1e6 - 1, first_us + window.end_s * 1e6 + 1)
    return with_misses(window, own, everything)


def _can_start(scene: SceneTracks, start_s: float) -> bool:
    """Whether the six images of the key frame nearest to the start are on disk."""
    seconds = (scene.key_timestamps_us - scene.key_timestamps_us[0]) * 1e-6
    images = scene.key_images[int(np.argmin(np.abs(seconds - start_s)))]
    return len(images) == len(CAMERAS) and all(path.is_file() for path in images)
