"""Ground by its kind and its place on the road: markings run along kerbs, stripes across crossings."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, label

from dwm.conditioning.looks.table import Colours, bilinear, mean_colours
from dwm.scenes.types import MAP_LAYERS, SceneMap


class Kerb:
    """Distance into the road from its edge."""

    # Metres. Plain road beyond the markings at its side looks the same everywhere.
    EDGES_M = np.r_[0.0:1.8:0.15, 2.0:8.0:0.5]
    BINS, MARKED = len(EDGES_M) + 1, 12

    def __init__(self, scene_map: SceneMap) -> None:
        self._map = scene_map
        road = scene_map.layers[MAP_LAYERS.index("drivable")] > 0
        self._metres = np.asarray(distance_transform_edt(road), np.float32) * scene_map.metres_per_pixel

    def bins(self, xy_m: NDArray[np.floating]) -> NDArray[np.int64]:
        """Bin of each point [P, 2]; 0 off the road."""
        at = (xy_m - self._map.origin_xy_m) / self._map.metres_per_pixel - 0.5
        return np.searchsorted(self.EDGES_M, bilinear(self._metres[..., None], at[:, 0], at[:, 1])[:, 0])


class Crossings:
    """Metres along each pedestrian crossing, the way people walk."""

    BIN_M = 0.15

    def __init__(self, scene_map: SceneMap) -> None:
        self._map = scene_map
        self._names, count = label(scene_map.layers[MAP_LAYERS.index("ped_crossing")] > 0)  # type: ignore[misc]
        self._starts, self._ways = np.zeros((count + 1, 2)), np.zeros((count + 1, 2))
        rows, cols = self._names.nonzero()
        order = np.argsort(self._names[rows, cols], kind="stable")
        xy = (np.stack([cols, rows], -1)[order] + 0.5) * scene_map.metres_per_pixel + scene_map.origin_xy_m
        bounds = np.searchsorted(self._names[rows, cols][order], np.arange(1, count + 2))
        for name in range(1, count + 1):
            corners = cv2.boxPoints(cv2.minAreaRect(xy[bounds[name - 1] : bounds[name]].astype(np.float32)))
            sides = corners[[1, 3]] - corners[0]
            longer = sides[np.linalg.norm(sides, axis=1).argmax()]
            self._starts[name], self._ways[name] = corners[0], longer / max(float(np.linalg.norm(longer)), 1e-6)

    def locate(self, xy_m: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which crossing each point [P, 2] lies on (0: none), and the bin of its place along it."""
        at = np.floor((xy_m - self._map.origin_xy_m) / self._map.metres_per_pixel).astype(np.int64)
        rows, cols = self._names.shape
        inside = ((at >= 0) & (at < [cols, rows])).all(-1)
        name = np.where(inside, self._names[at[:, 1].clip(0, rows - 1), at[:, 0].clip(0, cols - 1)], 0)
        along = ((xy_m - self._starts[name]) * self._ways[name]).sum(-1)
        return name, (along / self.BIN_M).astype(np.int64).clip(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundPixels:
    """Pixels of the ground."""

    layers: NDArray[np.floating]  # [P, L] shares of MAP_LAYERS
    depth_m: NDArray[np.floating]  # [P]
    kerb: NDArray[np.int64]  # [P] bin of ``Kerb``
    crossing: NDArray[np.int64]  # [P] which of ``Crossings``, 0 for none
    place: NDArray[np.int64]  # [P] bin along it


class GroundLook:
    """A table of colours by kind, near or far, and place."""

    KINDS = ("road", "divider", "crossing", "walkway", "bare")
    _NEAR_M, _FAR_M = 12.0, 60.0
    _STRIPES_NEAR_M, _STRIPES_FAR_M = 10.0, 26.0  # farther away, stripes are thinner than pixels

    def __init__(self, pixels: GroundPixels, colours_P3: NDArray[np.floating]) -> None:
        shares, cells = self._cells(pixels)
        weight = (shares**4).ravel()  # seams between kinds would mix their colours
        per_share = np.repeat(colours_P3, shares.shape[1], axis=0)
        table, known = mean_colours(cells.ravel(), weight, per_share, (len(self.KINDS), 2, Kerb.BINS))
        self._table, self._known = table.reshape(-1, 3).astype(np.float32), known.ravel().astype(np.float32)
        self._stripes = self._learn_stripes(pixels, colours_P3)

    @property
    def road(self) -> NDArray[np.floating]:
        """Colour [3] of plain road near by."""
        return self._table[Kerb.MARKED]

    def at(self, pixels: GroundPixels) -> Colours:
        shares, cells = self._cells(pixels)
        colours, known = np.zeros((len(shares), 3), np.float32), np.zeros(len(shares), np.float32)
        for share, cell in zip(shares.T, cells.T, strict=True):
            on = share.nonzero()[0]  # few pixels show a marking
            colours[on] += share[on, None] * self._table[cell[on]]
            known[on] += share[on] * self._known[cell[on]]
        if self._stripes is not None:
            on, near = (pixels.crossing > 0).nonzero()[0], 2 * self.KINDS.index("crossing")
            plain = self._table[cells[on, near]]
            fade = ((self._STRIPES_FAR_M - pixels.depth_m[on]) / (self._STRIPES_FAR_M - self._STRIPES_NEAR_M)).clip(0, 1)
            share = (fade * shares[on, near : near + 2].sum(1))[:, None]
            place = pixels.place[on] % (2 * len(self._stripes))  # there and back again
            colours[on] += share * (self._stripes[np.minimum(place, 2 * len(self._stripes) - 1 - place)] - plain)
        return colours, known

    def _learn_stripes(self, pixels: GroundPixels, colours_P3: NDArray[np.floating]) -> NDArray[np.floating] | None:
        """Colours [D, 3] along the crossing that was seen best; None where none was seen well."""
        name, place, pure = pixels.crossing, pixels.place, pixels.layers[:, MAP_LAYERS.index("ped_crossing")] > 0.9
        near = (name > 0) & (pixels.depth_m < (self._STRIPES_NEAR_M + self._STRIPES_FAR_M) / 2) & pure
        best = np.zeros((0, 3))
        for n in np.unique(name[near]):
            here = near & (name == n)
            total = np.bincount(place[here])
            full = np.flatnonzero(total >= 3)
            runs = np.split(full, np.flatnonzero(np.diff(full) > 1) + 1)
            run = max(runs, key=len)
            if len(run) > len(best):
                sums = np.stack([np.bincount(place[here], colours_P3[here, c]) for c in range(3)], -1)
                best = (sums / np.maximum(total, 1)[:, None])[run]
        return best if len(best) * Crossings.BIN_M >= 2.0 else None

    def _cells(self, pixels: GroundPixels) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        """Share of each kind, near and far [P, K * 2], and its cell in the table."""
        drivable, divider, crossing, walkway = pixels.layers.T
        crossing = np.minimum(crossing, 1 - divider)
        road = (drivable - crossing - divider).clip(0)
        walkway = np.minimum(walkway, (1 - road - crossing - divider).clip(0))
        bare = (1 - road - crossing - divider - walkway).clip(0)
        far = ((pixels.depth_m - self._NEAR_M) / (self._FAR_M - self._NEAR_M)).clip(0, 1).astype(np.float32)
        shares = np.stack([road, divider, crossing, walkway, bare], -1)[..., None] * np.stack([1 - far, far], -1)[:, None]
        kerb, none = pixels.kerb, np.zeros_like(pixels.kerb)
        bins = np.stack([kerb.clip(max=Kerb.MARKED), kerb, none, none, none], -1)
        cells = np.arange(2 * len(self.KINDS)).reshape(-1, 2) * Kerb.BINS + bins[..., None]
        return shares.reshape(len(shares), -1), cells.reshape(len(cells), -1)
