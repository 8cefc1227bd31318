"""Mean colours by bin, and pictures between their pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Colours = tuple[NDArray[np.floating], NDArray[np.floating]]  # [P, 3], and the share [P] that is known
_LEAST_PIXELS = 8.0  # of pure colour, for a bin to count


def mean_colours(
    cells_P: NDArray[np.int64], weight_P: NDArray[np.floating], colours_P3: NDArray[np.floating], shape: tuple[int, int, int]
) -> Colours:  # fmt: skip
    """Mean colours [K, N, D, 3] of pixels by cell, and where there are any [K, N, D].

    Empty bins (D) take the nearest bin's, empty rows (N) another's of their kind (K).
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


def bilinear(
    picture_HWC: NDArray[np.float32], column_P: NDArray[np.floating], row_P: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Values [P, C] of a picture at positions whose whole numbers are pixel centres; beyond the edge, those of the edge."""
    rows, columns, channels = picture_HWC.shape
    pixels = picture_HWC.reshape(-1, channels)
    row, column = row_P.clip(0, rows - 1).astype(np.float32), column_P.clip(0, columns - 1).astype(np.float32)
    top, left = row.astype(np.int32), column.astype(np.int32)
    right = np.minimum(left + 1, columns - 1)
    first, second = top * columns, np.minimum(top + 1, rows - 1) * columns
    down, along = (row - top)[:, None], (column - left)[:, None]
    above = pixels.take(first + left, axis=0) * (1 - along) + pixels.take(first + right, axis=0) * along
    below = pixels.take(second + left, axis=0) * (1 - along) + pixels.take(second + right, axis=0) * along
    return above * (1 - down) + below * down
