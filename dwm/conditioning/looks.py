"""How the kinds of surface in one true frame look, each remembered in the coordinates that stay with it.

Ground by its kind and its distance from the road's edge, sky by elevation, fronts by place along the street's edge and
height, boxes by place on the box. Each look is learnt from the frame's pixels and answers for pixels of any other.

Shapes: P pixels, K kinds of ground, D bins of distance from the road's edge; colours [P, 3] lie in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

from dwm.scenes.types import DETECTION_CLASSES, MAP_LAYERS, SceneMap

Colours = tuple[NDArray[np.floating], NDArray[np.floating]]  # [P, 3], and the share [P] that is known
_LEAST_PIXELS = 4.0  # of pure colour, for a bin to count
_APART = 1e6  # keeps things of different names apart in one search tree


class Kerb:
    """Distance into the road from its edge: markings run along it."""

    # Metres. Plain road beyond the markings at its side looks the same everywhere.
    EDGES_M = np.r_[0.0:1.8:0.2, 2.0:8.0:0.5]
    BINS, MARKED = len(EDGES_M) + 1, 9

    def __init__(self, scene_map: SceneMap) -> None:
        self._map = scene_map
        road = scene_map.layers[MAP_LAYERS.index("drivable")] > 0
        self._metres = np.asarray(distance_transform_edt(road), np.float32) * scene_map.metres_per_pixel

    def bins(self, xy_m: NDArray[np.floating]) -> NDArray[np.int64]:
        """Bin of each point [P, 2]; 0 off the road."""
        col, row = np.floor((xy_m - self._map.origin_xy_m) / self._map.metres_per_pixel).astype(np.int64).T
        rows, cols = self._metres.shape
        inside = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
        metres = np.where(inside, self._metres[row.clip(0, rows - 1), col.clip(0, cols - 1)], 0.0)
        return np.searchsorted(self.EDGES_M, metres)


class GroundLook:
    """A table of colours by kind, near or far, and distance from the road's edge."""

    KINDS = ("road", "divider", "crossing", "walkway", "bare")
    _NEAR_NEARNESS, _FAR_NEARNESS = 0.4, 0.1  # 12 m and 72 m: see "nearness" in dwm.conditioning.layout

    def __init__(
        self, layers_PL: NDArray[np.floating], nearness_P: NDArray[np.floating], kerb_P: NDArray[np.int64], colours_P3: NDArray[np.floating]
    ) -> None:  # fmt: skip
        """``layers`` are shares of MAP_LAYERS, ``kerb`` bins of ``Kerb``."""
        shares, cells = self._cells(layers_PL, nearness_P, kerb_P)
        weight = (shares**4).ravel()  # seams between kinds would mix their colours
        per_share = np.repeat(colours_P3, shares.shape[1], axis=0)
        table, known = _mean_colours(cells.ravel(), weight, per_share, (len(self.KINDS), 2, Kerb.BINS))
        self._table, self._known = table.reshape(-1, 3), known.ravel()

    def at(self, layers_PL: NDArray[np.floating], nearness_P: NDArray[np.floating], kerb_P: NDArray[np.int64]) -> Colours:
        shares, cells = self._cells(layers_PL, nearness_P, kerb_P)
        return (shares[..., None] * self._table[cells]).sum(1), (shares * self._known[cells]).sum(1)

    def _cells(
        self, layers: NDArray[np.floating], nearness: NDArray[np.floating], kerb: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Share of each kind, near and far [P, K * 2], and its cell in the table."""
        drivable, divider, crossing, walkway = layers.T
        crossing = np.minimum(crossing, 1 - divider)
        road = (drivable - crossing - divider).clip(0)
        walkway = np.minimum(walkway, (1 - road - crossing - divider).clip(0))
        bare = (1 - road - crossing - divider - walkway).clip(0)
        far = ((self._NEAR_NEARNESS - nearness) / (self._NEAR_NEARNESS - self._FAR_NEARNESS)).clip(0, 1)
        shares = np.stack([road, divider, crossing, walkway, bare], -1)[..., None] * np.stack([1 - far, far], -1)[:, None]
        bins = np.stack([kerb.clip(max=Kerb.MARKED), kerb, *[np.zeros_like(kerb)] * 3], -1)
        cells = np.arange(2 * len(self.KINDS)).reshape(-1, 2) * Kerb.BINS + bins[..., None]
        return np.asarray(shares.reshape(len(shares), -1), np.float64), cells.reshape(len(cells), -1)


class SkyLook:
    """A table of colours by elevation."""

    _BINS = 32

    def __init__(self, tangent_P: NDArray[np.floating], colours_P3: NDArray[np.floating]) -> None:
        """``tangent`` is that of the elevation above the horizon."""
        cells = self._cells(tangent_P)
        table, known = _mean_colours(cells, np.ones(len(cells)), colours_P3, (1, 1, self._BINS))
        self._table, self._known = table[0, 0], known[0, 0]

    def at(self, tangent_P: NDArray[np.floating]) -> Colours:
        cells = self._cells(tangent_P)
        return self._table[cells], self._known[cells]

    def _cells(self, tangent: NDArray[np.floating]) -> NDArray[np.int64]:
        return (tangent.clip(0, 0.5) * 2 * (self._BINS - 1)).astype(np.int64)


class FrontLook:
    """Pixels by outline, metres along it and height (``frontage.Frontage``).

    A place that was seen well enough looks as it did. One that was not, or so small that it would be a blur, mirrors what was
    seen from near, on its own outline or another's.
    """

    REACH_M = 55.0  # fronts farther from the camera are too coarse to copy
    _SHARP_REACH_M = 22.0
    _LEAST_M, _LEAST_PIXELS = 12.0, 600  # of an outline, to be of use and to be worth repeating
    _Z_WEIGHT = 2.0  # a gap is filled from the same height sooner than from the same place
    _COARSE_WEIGHT = 0.06  # metres along the front that one metre of distance from the camera is as bad as
    _GAP_M = 6.0  # between pixels of one stretch; far away, seen at a slant, they lie metres apart
    _NEIGHBOURS = 3
    _LEAST_SHARPNESS = 0.5  # of a place, true pixels per pixel, for it to keep its look

    def __init__(
        self, name_P: NDArray[np.int64], arc_m_P: NDArray[np.floating], z_m_P: NDArray[np.floating], depth_m_P: NDArray[np.floating],
        colours_P3: NDArray[np.floating],
    ) -> None:  # fmt: skip
        self._spans = self._spans_of(name_P, arc_m_P, 0)
        sharp = depth_m_P < self._SHARP_REACH_M
        self._sharp_spans = self._spans_of(name_P[sharp], arc_m_P[sharp], self._LEAST_PIXELS) or self._spans
        keep = np.isin(name_P, list(self._spans)) & (depth_m_P < self.REACH_M)
        self._colours, self._depth_m = colours_P3[keep], depth_m_P[keep]
        coarse = self._COARSE_WEIGHT * self._depth_m
        self._tree = KDTree(self._key(name_P[keep], arc_m_P[keep], z_m_P[keep], coarse)) if keep.any() else None

    def at(
        self, name_P: NDArray[np.int64], arc_m_P: NDArray[np.floating], z_m_P: NDArray[np.floating], depth_m_P: NDArray[np.floating]
    ) -> Colours:  # fmt: skip
        if self._tree is None or not len(name_P):
            return np.zeros((len(name_P), 3)), np.zeros(len(name_P))
        seen, name, arc, lenders = np.zeros(len(name_P), bool), name_P.copy(), arc_m_P.copy(), sorted(self._sharp_spans)
        for n in np.unique(name_P).tolist():
            here = name_P == n
            low, high = self._spans.get(n, (np.inf, -np.inf))
            seen[here] = (arc_m_P[here] >= low) & (arc_m_P[here] <= high)
            lender = n if n in self._sharp_spans else lenders[n % len(lenders)]
            low, high = self._sharp_spans[lender]
            name[here], arc[here] = lender, low + mirrored(arc_m_P[here] - low, high - low)
        colours = np.zeros((len(name_P), 3))
        own, depth_m = self._nearest(name_P[seen], arc_m_P[seen], z_m_P[seen])
        colours[seen] = own
        seen[seen] = depth_m * self._LEAST_SHARPNESS <= depth_m_P[seen]
        colours[~seen], _ = self._nearest(name[~seen], arc[~seen], z_m_P[~seen])
        return colours, np.ones(len(colours))

    def _nearest(
        self, name: NDArray[np.int64], arc_m: NDArray[np.floating], z_m: NDArray[np.floating]
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Colours [P, 3] of the nearest pixels, and how far from the camera the nearest was [P]."""
        assert self._tree is not None
        key = self._key(name, arc_m, z_m, np.zeros_like(arc_m))
        away, nearest = (np.asarray(found) for found in self._tree.query(key, k=self._NEIGHBOURS))
        weight = 1 / (away + 0.1) ** 2
        return (weight[..., None] * self._colours[nearest]).sum(1) / weight.sum(1, keepdims=True), self._depth_m[nearest[:, 0]]

    def _spans_of(self, name: NDArray[np.int64], arc_m: NDArray[np.floating], least: int) -> dict[int, tuple[float, float]]:
        """The longest unbroken stretch of each outline that was seen in at least so many pixels.

        Unbroken, because an outline is closed: both ends of its arc may be in sight, and nothing between.
        """
        names, counts = np.unique(name, return_counts=True)
        spans = {}
        for n in names[counts >= least].tolist():
            arcs = np.unique(arc_m[name == n])
            runs = np.split(arcs, np.flatnonzero(np.diff(arcs) > self._GAP_M) + 1)
            low, high = max(((float(run[0]), float(run[-1])) for run in runs), key=lambda run: run[1] - run[0])
            if high - low >= self._LEAST_M:
                spans[n] = (low, high)
        return spans

    def _key(
        self, name: NDArray[np.int64], arc_m: NDArray[np.floating], z_m: NDArray[np.floating], coarse: NDArray[np.floating]
    ) -> NDArray[np.floating]:
        return np.stack([name * _APART, arc_m, self._Z_WEIGHT * z_m, coarse], -1)


class BoxLook:
    """Pixels by place on a box. A thing that was not seen takes after one of its class, or of its kind."""

    _LEAST_PIXELS = 12
    _OTHER_SIDE = 0.3  # how far, in half boxes, the mirror image of a side is from being that side
    _ALIKE = (
        ("car", "truck", "bus", "trailer", "construction_vehicle"), ("pedestrian",), ("motorcycle", "bicycle"), ("traffic_cone", "barrier"),
    )  # fmt: skip

    def __init__(
        self, tokens: Sequence[str], classes: NDArray[np.int64], which_P: NDArray[np.int64], part_P3: NDArray[np.floating],
        colours_P3: NDArray[np.floating],
    ) -> None:  # fmt: skip
        """``tokens`` and ``classes`` per box; ``which`` box a pixel shows and the ``part`` of it, in [-1, 1]."""
        counts = np.bincount(which_P, minlength=len(tokens))
        seen = np.flatnonzero(counts >= self._LEAST_PIXELS).tolist()
        self._by_token = {tokens[i]: i for i in seen}
        self._by_class = [[i for i in seen if classes[i] == k] for k in range(len(DETECTION_CLASSES))]
        keep = np.isin(which_P, seen)
        which, part = which_P[keep], part_P3[keep]
        self._colours = np.tile(colours_P3[keep], (2, 1))
        sides = [self._key(which, part, 0.0), self._key(which, part * [1, -1, 1], self._OTHER_SIDE)]
        self._tree = KDTree(np.concatenate(sides)) if keep.any() else None

    def at(
        self, tokens: Sequence[str], classes: NDArray[np.int64], which_P: NDArray[np.int64], part_P3: NDArray[np.floating]
    ) -> Colours:
        colours, known = np.zeros((len(which_P), 3)), np.zeros(len(which_P))
        if self._tree is None or not len(which_P):
            return colours, known
        lender = np.array([self._lender(token, int(kind)) for token, kind in zip(tokens, classes, strict=True)])[which_P]
        found = lender >= 0
        _, nearest = self._tree.query(self._key(lender[found], part_P3[found], 0.0))
        colours[found], known[found] = self._colours[nearest], 1.0
        return colours, known

    def _lender(self, token: str, kind: int) -> int:
        """The box of the frame whose look a thing takes: its own, or the same other one for the whole clip; -1 for none."""
        if token in self._by_token:
            return self._by_token[token]
        alike = next(names for names in self._ALIKE if DETECTION_CLASSES[kind] in names)
        lenders = self._by_class[kind] or [i for name in alike for i in self._by_class[DETECTION_CLASSES.index(name)]]
        return lenders[sum(token.encode()) % len(lenders)] if lenders else -1

    def _key(self, which: NDArray[np.int64], part: NDArray[np.floating], penalty: float) -> NDArray[np.floating]:
        return np.concatenate([which[:, None] * _APART, part, np.full((len(part), 1), penalty)], -1)


def mirrored(metres: NDArray[np.floating], length: float) -> NDArray[np.floating]:
    """Positions on a line folded back and forth into [0, length]."""
    return length - np.abs(metres % (2 * length) - length)


def _mean_colours(
    cells_P: NDArray[np.int64], weight_P: NDArray[np.floating], colours_P3: NDArray[np.floating], shape: tuple[int, int, int]
) -> Colours:  # fmt: skip
    """Mean colours [K, N, D, 3] of pixels by cell, and where there are any [K, N, D].

    Empty bins take the nearest bin's, empty rows another's of their kind.
    """
    size = int(np.prod(shape))
    total = np.bincount(cells_P, weight_P, size).astype(np.float64)
    sums = np.stack([np.bincount(cells_P, weight_P * colours_P3[:, c], size) for c in range(3)], -1)
    mean = (sums / np.maximum(total, 1e-6)[:, None]).reshape(*shape, 3)
    known = total.reshape(shape) >= _LEAST_PIXELS
    for colours, full in zip(mean, known, strict=True):
        for row in np.flatnonzero(full.any(-1)):
            bins = np.flatnonzero(full[row])
            colours[row] = colours[row, bins[np.abs(np.arange(shape[2])[:, None] - bins).argmin(1)]]
            full[row] = True
        if full.any():
            empty = ~full.any(-1)
            colours[empty], full[empty] = colours[full.any(-1).argmax()], True
    return mean * known[..., None], known.astype(np.float64)
