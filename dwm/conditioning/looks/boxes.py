"""Things by place on their box: as the frame shows them, and as examples of their class look where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from dwm.conditioning.things import Things, crossed
from dwm.light import HEAD_LAMP, RESPONSE, TAIL_LAMP, WITH_LAMPS, lamps

_LEAST_PIXELS = 40
_OTHER_SIDE = 0.3  # how far, in half boxes, the mirror image of a side is from being that side
_NEAR = 0.35  # how far, in half boxes, a place may be from one that was seen, and look like it
_LEAST_SHARPNESS = 0.3  # true pixels per pixel on average, for a thing to keep its own look
_LIKE_ALL = 0.25  # how far, on a scale of 2, a part that looks alike on all things of a class may be from that
_ONE_COLOUR = 0.1  # how far apart colours in [0, 1] of one paint may be
_SAME_PAINT = 0.12  # how far a colour's shares of red, green and blue may be from the paint's, to be that paint in other light
_LAMP_FACE = 0.8  # place along a box, in half boxes, from where on a shape may carry its lamps
_APART = 1e6  # keeps things apart in one search tree


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxPixels:
    """Rays that enter boxes."""

    tokens: Sequence[str]  # [B] which thing each box is
    classes: NDArray[np.int64]  # [B] index into DETECTION_CLASSES
    heights_m: NDArray[np.floating]  # [B]
    which: NDArray[np.int64]  # [P] box
    origin: NDArray[np.floating]  # [P, 3] where the ray starts, in half boxes from the box's centre: forward, left, up
    ray: NDArray[np.floating]  # [P, 3] its direction, one metre of depth long, in half boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class Paint:
    """A thing's own paint, and the one that the example it takes after has in its place; colours in [0, 1]."""

    own_3: NDArray[np.floating]
    example_3: NDArray[np.floating]

    def over(self, colours_N3: NDArray[np.floating]) -> NDArray[np.floating]:
        """Colours [N, 3] in [-1, 1] of the example with the thing's paint, as bright or dark; stripes and skin stay as they are."""
        light = (colours_N3 + 1) / 2
        alike = np.abs(_shares(light) - _shares(self.example_3)).max(-1) < _SAME_PAINT
        shade = light.sum(-1) / max(self.example_3.sum(), 0.03)
        return np.where(alike[:, None], (2 * shade[:, None] * self.own_3 - 1).clip(-1, 1), colours_N3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Light and air of a frame: examples were learnt by day, in clear air, with their lamps off."""

    road_3: NDArray[np.floating]  # colour in [-1, 1] of plain road
    extinction_per_m: float
    haze_3: NDArray[np.floating]  # colour in [-1, 1] of what is far away
    lamps_on: bool


class BoxLook:
    """The things of one frame."""

    def __init__(self, things: Things, pixels: BoxPixels, colours_P3: NDArray[np.floating], around: Surroundings) -> None:
        self._things, self._around = things, around
        place = things.meet(pixels.classes[pixels.which], pixels.origin, pixels.ray)
        on = ~np.isnan(place[:, 0])
        which, place, colours = pixels.which[on], place[on], colours_P3[on]
        counts = np.bincount(which, minlength=len(pixels.tokens))
        seen = np.flatnonzero(counts >= _LEAST_PIXELS).tolist()
        self._by_token = {pixels.tokens[i]: i for i in seen}
        self._by_class = {k: [i for i in seen if pixels.classes[i] == k] for k in np.unique(pixels.classes).tolist()}
        self._depth_m = _mean_depth_m(pixels, on)
        self._example: dict[int, int] = {}
        self._paint: dict[int, Paint] = {}
        for i in seen:
            kind, mine = int(pixels.classes[i]), which == i
            self._example[i] = self._most_alike(kind, place[mine], colours[mine])
            if paint := self._own_paint(kind, self._example[i], place[mine], colours[mine]):
                self._paint[i] = paint
        keep = np.isin(which, seen) & ~self._behind(pixels.classes[which], which, place, colours)
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
        colours[by] = self._example_colours(pixels, example[by], own[by], place, by)
        if self._tree is None:
            return colours, known.astype(np.float64), on
        # A thing as a whole: half of it as it was, half after an example, would be two things.
        sharp = self._depth_m[own] * _LEAST_SHARPNESS <= _mean_depth_m(pixels, on)[pixels.which]
        for mine, reach in ((sharp & (example >= 0), _NEAR), (example < 0, np.inf)):
            by = (on & (own >= 0) & mine).nonzero()[0]
            _, nearest = self._tree.query(_key(own[by], place[by], 0.0), distance_upper_bound=reach)
            found = np.asarray(nearest) < len(self._colours)
            colours[by[found]] = self._colours[np.asarray(nearest)[found]]
        return colours, known.astype(np.float64), on

    def _example_colours(
        self,
        pixels: BoxPixels,
        example: NDArray[np.int64],
        own: NDArray[np.int64],
        place: NDArray[np.floating],
        by: NDArray[np.int64],
    ) -> NDArray[np.floating]:
        """How examples [N] look from where the rays start [N, 3], for the rays ``by`` [N], in the paint of ``own`` things [N]."""
        colours = self._things.colours(example, place[by], self._around.road_3)
        painted = (own >= 0) & ~self._things.is_shared(pixels.classes[pixels.which[by]], place[by])
        for i, paint in self._paint.items():
            mine = painted & (own == i)
            colours[mine] = paint.over(colours[mine])
        through = np.exp(-self._around.extinction_per_m * _depth_m(pixels)[by])[:, None]
        colours = colours * through + self._around.haze_3 * (1 - through)
        if self._around.lamps_on:
            box = pixels.which[by]
            lit = np.isin(pixels.classes[box], WITH_LAMPS)
            for lamp, light in zip(lamps(place[by], pixels.heights_m[box], _LAMP_FACE), (HEAD_LAMP, TAIL_LAMP), strict=True):
                on = lamp & lit
                colours[on] = np.maximum(colours[on], 2 * np.array(light) ** (1 / RESPONSE) * through[on] ** (1 / 3) - 1)
        return colours

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

    def _behind(
        self, kind: NDArray[np.int64], which: NDArray[np.int64], place: NDArray[np.floating], colours: NDArray[np.floating]
    ) -> NDArray[np.bool_]:
        """Which pixels [P] show what is behind a thing slimmer than its class: glass and tyres have the same colour on all."""
        example = np.array([self._example.get(i, -1) for i in range(which.max(initial=-1) + 1)], np.int64)[which]
        known = np.flatnonzero((example >= 0) & self._things.is_shared(kind, place))
        usual = self._things.colours(example[known], place[known], self._around.road_3)
        out = np.zeros(len(which), bool)
        out[known] = np.abs(colours[known] - usual).mean(-1) > _LIKE_ALL
        return out

    def _own_paint(
        self, kind: int, example: int, place_P3: NDArray[np.floating], colours_P3: NDArray[np.floating]
    ) -> Paint | None:
        """What a thing's paint is where it was seen; None where too little of it was."""
        of_paint = ~self._things.is_shared(np.full(len(place_P3), kind), place_P3)
        if example < 0 or of_paint.sum() < _LEAST_PIXELS:
            return None
        shown = self._things.colours(np.full(len(place_P3), example), place_P3, self._around.road_3)
        return Paint(own_3=_commonest((colours_P3[of_paint] + 1) / 2), example_3=_commonest((shown[of_paint] + 1) / 2))

    def _most_alike(self, kind: int, place_P3: NDArray[np.floating], colours_P3: NDArray[np.floating]) -> int:
        """The example whose colours are nearest to those seen; -1 for none."""
        examples = self._things.examples(kind)
        if not examples:
            return -1
        shown = [self._things.colours(np.full(len(place_P3), e), place_P3, self._around.road_3) for e in examples]
        return examples[int(np.argmin([np.abs(x - colours_P3).mean() for x in shown]))]


def _commonest(colours_P3: NDArray[np.floating]) -> NDArray[np.floating]:
    """The colour [3] that most others are near to, as the mean of those: what else is in a box does not count."""
    tree = KDTree(colours_P3)
    crowd = np.asarray(tree.query_ball_point(colours_P3, _ONE_COLOUR, return_length=True))
    return colours_P3[tree.query_ball_point(colours_P3[int(np.argmax(crowd))], _ONE_COLOUR)].mean(0)


def _shares(light: NDArray[np.floating]) -> NDArray[np.floating]:
    """Of red, green and blue in colours [..., 3]; a third each where it is dark."""
    total = light.sum(-1, keepdims=True)
    return (light + 0.01) / (total + 0.03)


def _depth_m(pixels: BoxPixels) -> NDArray[np.floating]:
    """Where the rays enter their boxes [P]."""
    return crossed(pixels.origin, pixels.ray)[0]


def _mean_depth_m(pixels: BoxPixels, on: NDArray[np.bool_]) -> NDArray[np.floating]:
    """How far away each box [B] is, over the rays that meet its thing; 0 without any."""
    counts = np.bincount(pixels.which[on], minlength=len(pixels.tokens))
    return np.bincount(pixels.which[on], _depth_m(pixels)[on], len(counts)) / np.maximum(counts, 1)


def _key(which: NDArray[np.int64], place: NDArray[np.floating], penalty: float) -> NDArray[np.floating]:
    return np.concatenate([which[:, None] * _APART, place, np.full((len(place), 1), penalty)], -1)
