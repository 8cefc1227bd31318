"""Fronts by outline, metres along it and height (``dwm.conditioning.frontage``).

Each stretch of an outline that was seen becomes a picture, arc length by height, up to its roofs. A place that was seen well
enough looks as it did; one that was not, or so small that it would be a blur, mirrors a stretch seen from near.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from dwm.conditioning.looks.table import bilinear

Span = tuple[float, float]

_TEXEL_M = 0.2
_HIGHEST_M = 24.0
_SHARP_M = 0.24  # metres to a pixel that is sharp enough to lend to other places
_LEAST_M, _LEAST_PIXELS = 10.0, 2400  # of an outline, to be of use and to be worth repeating
_GAP_M = 6.0  # between pixels of one stretch; far away, seen at a slant, they lie metres apart
_LEAST_SHARPNESS = 0.5  # of a place, true pixels per pixel, for it to keep its look
_Z_WEIGHT = 2.0  # a gap is filled from the same height sooner than from the same place
_COARSE_WEIGHT = 5.0  # metres along the front that one metre to a pixel is as bad as
_NEIGHBOURS = 3
_BESIDE_M, _ABOVE_M = 1.5, 0.6  # how near to a place one must have been seen for the place to count as seen
_LOW_M = 3.0  # what is lower is no building
_BUILDING_M = 8.0  # width to which a roof is taken to be level
_STOREY_M = 3.4  # what is repeated to carry a front on above the last row that was seen


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPixels:
    """Pixels of imagined walls."""

    name: NDArray[np.int64]  # [P] outline
    arc_m: NDArray[np.floating]  # [P] along it
    z_m: NDArray[np.floating]  # [P] height
    footprint_m: NDArray[np.floating]  # [P] larger side of what the pixel shows of the front


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    """One stretch of an outline: rows by height, columns by arc length."""

    span: Span
    colours: NDArray[np.float32]  # [Z, X, 4]: RGB in [-1, 1] and the share of sky in [0, 1]
    footprint_m: NDArray[np.float32]  # [Z, X] metres to a pixel where it was seen

    def at(self, arc_m: NDArray[np.floating], z_m: NDArray[np.floating]) -> NDArray[np.floating]:
        """Values [P, 4] between texels."""
        return bilinear(self.colours, *self._texel(arc_m, z_m))

    def footprint_at(self, arc_m: NDArray[np.floating], z_m: NDArray[np.floating]) -> NDArray[np.floating]:
        rows, columns = self.footprint_m.shape
        column, row = (x.round().astype(np.int64) for x in self._texel(arc_m, z_m))
        return self.footprint_m[row.clip(0, rows - 1), column.clip(0, columns - 1)]

    def _texel(
        self, arc_m: NDArray[np.floating], z_m: NDArray[np.floating]
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Column and row."""
        return (arc_m - self.span[0]) / _TEXEL_M - 0.5, z_m / _TEXEL_M - 0.5


class FrontLook:
    """Pictures of the stretches that one frame shows."""

    def __init__(self, pixels: FrontPixels, colours_P3: NDArray[np.floating], sky_P: NDArray[np.bool_]) -> None:
        """``sky`` says which pixels show the sky above the true front."""
        values = np.c_[colours_P3, sky_P]
        self._own = {
            name: [_paint(name, span, pixels, values) for span in runs]
            for name, runs in _runs_of(pixels.name, pixels.arc_m, 0).items()
        }
        sharp = pixels.footprint_m < _SHARP_M
        self._lent = {}
        for name, runs in _runs_of(pixels.name[sharp], pixels.arc_m[sharp], _LEAST_PIXELS).items():
            picture = _built_up(_paint(name, max(runs, key=lambda run: run[1] - run[0]), pixels, values))
            if picture is not None:
                self._lent[name] = picture
        if not self._lent:
            self._lent = {name: max(pictures, key=lambda p: p.span[1] - p.span[0]) for name, pictures in self._own.items()}

    def at(self, pixels: FrontPixels) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
        """Colours [P, 3], the share that is known [P], and the share of sky in front of which they stand [P]."""
        found, lenders = np.zeros((len(pixels.name), 4), np.float32), sorted(self._lent)
        if not lenders:
            return found[:, :3], np.zeros(len(found)), found[:, 3]
        for name in np.unique(pixels.name).tolist():
            here = (pixels.name == name).nonzero()[0]
            arc, z = pixels.arc_m[here], pixels.z_m[here]
            kept = np.zeros(len(here), bool)
            for own in self._own.get(name, []):
                keeps = (arc >= own.span[0]) & (arc <= own.span[1])
                keeps &= own.footprint_at(arc, z) * _LEAST_SHARPNESS <= pixels.footprint_m[here]
                found[here[keeps]] = own.at(arc[keeps], z[keeps])
                kept |= keeps
            lent = self._lent[name if name in self._lent else lenders[name % len(lenders)]]
            low, high = lent.span
            found[here[~kept]] = lent.at(low + mirrored(arc[~kept] - low, high - low), z[~kept])
        return found[:, :3], np.ones(len(found)), found[:, 3]


def mirrored(metres: NDArray[np.floating], length: float) -> NDArray[np.floating]:
    """Positions on a line folded back and forth into [0, length]."""
    return length - np.abs(metres % (2 * length) - length)


def _runs_of(name: NDArray[np.int64], arc_m: NDArray[np.floating], least: int) -> dict[int, list[Span]]:
    """The unbroken stretches of each outline that was seen in at least so many pixels.

    Unbroken, because an outline is closed: both ends of its arc may be in sight, and nothing between.
    """
    names, counts = np.unique(name, return_counts=True)
    found = {}
    for n in names[counts >= least].tolist():
        arcs = np.unique(arc_m[name == n])
        runs = np.split(arcs, np.flatnonzero(np.diff(arcs) > _GAP_M) + 1)
        if spans := [(float(run[0]), float(run[-1])) for run in runs if run[-1] - run[0] >= _LEAST_M]:
            found[n] = spans
    return found


def _paint(name: int, span: Span, pixels: FrontPixels, values_P4: NDArray[np.floating]) -> _Picture:
    """The picture of a stretch from pixels of it."""
    here = (pixels.name == name) & (pixels.arc_m >= span[0] - _GAP_M) & (pixels.arc_m <= span[1] + _GAP_M)
    arc_m, z_m, footprint_m, values = pixels.arc_m[here], pixels.z_m[here], pixels.footprint_m[here], values_P4[here]
    columns, rows = max(round((span[1] - span[0]) / _TEXEL_M), 1), round(_HIGHEST_M / _TEXEL_M)
    z, arc = np.meshgrid((np.arange(rows) + 0.5) * _TEXEL_M, span[0] + (np.arange(columns) + 0.5) * _TEXEL_M, indexing="ij")
    tree = KDTree(np.stack([arc_m, _Z_WEIGHT * z_m, _COARSE_WEIGHT * footprint_m], -1))
    away, nearest = tree.query(np.stack([arc, _Z_WEIGHT * z, np.zeros_like(z)], -1), k=min(_NEIGHBOURS, len(arc_m)))
    away, nearest = (np.asarray(x).reshape(rows, columns, -1) for x in (away, nearest))
    weight = 1 / (away + 0.1) ** 2
    colours = (weight[..., None] * values[nearest]).sum(2) / weight.sum(2, keepdims=True)
    beside, above = np.abs(arc_m[nearest] - arc[..., None]), np.abs(z_m[nearest] - z[..., None])
    seen = ((beside < _BESIDE_M) & (above < _ABOVE_M)).any(-1)
    colours, footprint = _roofed(colours, seen), footprint_m[nearest[..., 0]]
    # An opening may be the view past a corner: it is believed only as long as it comes no nearer.
    footprint[:, ~_is_built(colours)] /= _LEAST_SHARPNESS
    return _Picture(span=span, colours=colours.astype(np.float32), footprint_m=footprint.astype(np.float32))


def _roofed(colours_ZX4: NDArray[np.floating], seen_ZX: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Fronts carried on above what was seen of them, up to the roof of the nearest column whose roof was seen."""
    rows, columns = seen_ZX.shape
    level, storey = np.arange(rows), round(_STOREY_M / _TEXEL_M)
    top = np.where(seen_ZX.any(0), rows - 1 - seen_ZX[::-1].argmax(0), 0)  # [X] last row seen
    sky = colours_ZX4[..., 3] > 0.5
    below = level[:, None] <= top
    roof = np.where((sky & below).any(0), (sky & below).argmax(0), rows)
    known = np.flatnonzero(roof < rows)
    if not len(known):
        return colours_ZX4
    nearest = known[np.abs(np.arange(columns)[:, None] - known).argmin(1)]
    end = np.maximum(np.minimum(roof, roof[nearest]), np.where(roof < rows, 0, top + 1))
    above = level[:, None] > top
    source = np.where(above, top - (storey - 1 - (level[:, None] - top - 1) % storey), level[:, None]).clip(0)
    out = np.take_along_axis(colours_ZX4, source[..., None], axis=0)
    out[above & (level[:, None] >= end), 3] = 1.0
    return out


def _built_up(picture: _Picture) -> _Picture | None:
    """The longest part of a stretch that has buildings, their roofs level; None where it is too short to be worth repeating."""
    colours = _flat(picture.colours)
    edges = np.flatnonzero(np.diff(np.r_[False, _is_built(colours), False]))
    if not len(edges):
        return None
    first, end = max(zip(edges[::2], edges[1::2], strict=True), key=lambda run: run[1] - run[0])
    if (end - first) * _TEXEL_M < _LEAST_M:
        return None
    low = picture.span[0] + first * _TEXEL_M
    return _Picture(
        span=(low, low + (end - first) * _TEXEL_M),
        colours=colours[:, first:end],
        footprint_m=picture.footprint_m[:, first:end],
    )


def _is_built(colours_ZX4: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Columns [X] that have a building."""
    return colours_ZX4[round(_LOW_M / _TEXEL_M), :, 3] < 0.5


def _flat(colours_ZX4: NDArray[np.floating]) -> NDArray[np.floating]:
    """One roof to each building's width: where a front was seen at a slant, its roof slants too."""
    rows, columns, _ = colours_ZX4.shape
    level, out, width = np.arange(rows)[:, None], colours_ZX4.copy(), round(_BUILDING_M / _TEXEL_M)
    for first in range(0, columns, width):
        part = out[:, first : first + width]
        sky = part[..., 3] > 0.5
        roof = int(np.median(np.where(sky.any(0), sky.argmax(0), rows)))
        holes = np.argwhere(sky & (level < roof))
        for row, column in holes:
            solid = np.flatnonzero(~sky[row])
            if len(solid):
                part[row, column] = part[row, solid[np.abs(solid - column).argmin()]]
        part[roof:, :, 3] = 1.0
        part[:roof, :, 3] = 0.0
    return out
