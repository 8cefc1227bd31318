"""Sky by elevation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dwm.conditioning.looks.table import Colours, mean_colours


class SkyLook:
    """A table of colours by elevation."""

    _BINS = 32

    def __init__(self, tangent_P: NDArray[np.floating], colours_P3: NDArray[np.floating]) -> None:
        """``tangent`` is that of the elevation above the horizon."""
        cells = self._cells(tangent_P)
        table, known = mean_colours(cells, np.ones(len(cells)), colours_P3, (1, 1, self._BINS))
        self._table, self._known = table[0, 0], known[0, 0]

    def at(self, tangent_P: NDArray[np.floating]) -> Colours:
        cells = self._cells(tangent_P)
        return self._table[cells], self._known[cells]

    def _cells(self, tangent: NDArray[np.floating]) -> NDArray[np.int64]:
        return (tangent.clip(0, 0.5) * 2 * (self._BINS - 1)).astype(np.int64)
