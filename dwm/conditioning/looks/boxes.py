"""Things by place on their box: as the frame shows them, and as examples of their class look where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from dwm.conditioning.things import Things, crossed

_LEAST_PIXELS = 40
_OTHER_SIDE = 0.3  # how far, in half boxes, the mirror image of a side is from being that side
_NEAR = 0.35  # how far, in half boxes, a place may be from one that was seen, and look like it
_LEAST_SHARPNESS = 0.5  # true pixels per pixel, for a thing to keep its own look
_APART = 1e6  # keeps things apart in one search tree


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxPixels:
    """Rays that enter boxes."""

    tokens: Sequence[str]  # [B] which thing each box is
    classes: NDArray[np.int64]  # [B] index into DETECTION_CLASSES
    which: NDArray[np.int64]  # [P] box
    origin: NDArray[np.floating]  # [P, 3] where the ray starts, in half boxes from the box's centre: forward, left, up
    ray: NDArray[np.floating]  # [P, 3] its direction, one metre of depth long, in half boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class Haze:
    """Air that hides examples, which were learnt in clear air, with their distance."""

    extinction_per_m: float
    colour: NDArray[np.floating]  # [3] in [-1, 1], of what is far away


class BoxLook:
    """The things of one frame."""

    def __init__(
        self, things: Things, pixels: BoxPixels, colours_P3: NDArray[np.floating], road_3: NDArray[np.floating], air: Haze
    ) -> None:
        """``road`` is the colour of plain road in the same frame: examples are shown under its light, and through its ``air``."""
        self._things, self._road, self._air = things, road_3, air
        place = things.meet(pixels.classes[pixels.which], pixels.origin, pixels.ray)
        on = ~np.isnan(place[:, 0])
        which, place, colours = pixels.which[on], place[on], colours_P3[on]
        counts = np.bincount(which, minlength=len(pixels.tokens))
        seen = np.flatnonzero(counts >= _LEAST_PIXELS).tolist()
        self._by_token = {pixels.tokens[i]: i for i in seen}
        self._by_class = {k: [i for i in seen if pixels.classes[i] == k] for k in np.unique(pixels.classes).tolist()}
        self._depth_m = np.bincount(which, _depth_m(pixels)[on], len(counts)) / np.maximum(counts, 1)
        self._example = {i: self._most_alike(int(pixels.classes[i]), place[which == i], colours[which == i]) for i in seen}
        keep = np.isin(which, seen)
        self._colours = np.tile(colours[keep], (2, 1))
        sides = [_key(which[keep], place[keep], 0.0), _key(which[keep], place[keep] * [1, -1, 1], _OTHER_SIDE)]
        self._tree = KDTree(np.concatenate(sides)) if keep.any() else None

    def at(self, pixels: BoxPixels) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.bool_]]:
        """Colours [P, 3], the share that is known [P], and which rays meet a thing [P]; the others pass it by."""
        place = self._things.meet(pixels.classes[pixels.which], pixels.origin, pixels.ray)
        on = ~np.isnan(place[:, 0])
        sources = [self._source(token, kind) for token, kind in zip(pixels.tokens, pixels.classes.tolist(), strict=True)]
        own, example = np.array(sources, np.int64).reshape(-1, 2).T[:, pixels.which]
        colours = np.zeros((len(on), 3))
        known = on & ((own >= 0) | (example >= 0))
        by = (on & (example >= 0)).nonzero()[0]
        clear = self._things.colours(example[by], place[by], self._road)
        through = np.exp(-self._air.extinction_per_m * _depth_m(pixels)[by])[:, None]
        colours[by] = clear * through + self._air.colour * (1 - through)
        by = (on & (own >= 0)).nonzero()[0]
        if len(by) and self._tree is not None:
            away, nearest = self._tree.query(_key(own[by], place[by], 0.0))
            sharp = self._depth_m[own[by]] * _LEAST_SHARPNESS <= _depth_m(pixels)[by]
            use = (sharp & (np.asarray(away) < _NEAR)) | (example[by] < 0)
            colours[by[use]] = self._colours[np.asarray(nearest)[use]]
        return colours, known.astype(np.float64), on

    def _source(self, token: str, kind: int) -> tuple[int, int]:
        """The box of the frame and the example that a thing takes after; -1 for none."""
        if token in self._by_token:
            own = self._by_token[token]
            return own, self._example[own]
        choice = sum(token.encode())  # the same for the whole clip
        if examples := self._things.examples(kind):
            return -1, examples[choice % len(examples)]
        lenders = self._by_class.get(kind)
        return (lenders[choice % len(lenders)] if lenders else -1), -1

    def _most_alike(self, kind: int, place_P3: NDArray[np.floating], colours_P3: NDArray[np.floating]) -> int:
        """The example whose colours are nearest to those seen; -1 for none."""
        examples = self._things.examples(kind)
        if not examples:
            return -1
        shown = [self._things.colours(np.full(len(place_P3), e), place_P3, self._road) for e in examples]
        return examples[int(np.argmin([np.abs(x - colours_P3).mean() for x in shown]))]


def _depth_m(pixels: BoxPixels) -> NDArray[np.floating]:
    """Where the rays enter their boxes [P]."""
    return crossed(pixels.origin, pixels.ray)[0]


def _key(which: NDArray[np.int64], place: NDArray[np.floating], penalty: float) -> NDArray[np.floating]:
    return np.concatenate([which[:, None] * _APART, place, np.full((len(place), 1), penalty)], -1)
