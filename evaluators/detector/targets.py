"""Training targets: boxes to Gaussian heatmaps and regressions at their centre cells (CenterPoint, CVPR 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dwm.scenes.types import DETECTION_CLASSES
from evaluators.boxes import Boxes
from evaluators.detector.model import DetectorConfig

MIN_RADIUS_CELLS = 2
GAUSSIAN_OVERLAP = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Targets of a batch. K boxes in all."""

    heatmap_BLXY: Tensor  # float32, 1 exactly at centre cells
    batch_K: Tensor
    row_K: Tensor  # cell along x
    column_K: Tensor  # cell along y
    offset_K2: Tensor  # position inside the cell, in cells
    z_K1: Tensor  # metres
    log_size_K3: Tensor  # log of width, length, height in metres
    yaw_K2: Tensor  # sin, cos
    velocity_K2: Tensor  # m/s along ego x, y; NaN where unknown
    attribute_K: Tensor  # -1 where unknown

    def to(self, device: torch.device) -> Targets:
        return Targets(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


def gaussian_radius(width: float, length: float, overlap: float = GAUSSIAN_OVERLAP) -> float:
    """The shift that keeps an axis-aligned box's overlap with itself above ``overlap`` (CornerNet, as CenterPoint uses it)."""
    half_sum, area = (width + length) / 2, width * length
    both_moved_out = half_sum - np.sqrt(half_sum**2 - area * (1 - overlap) / (1 + overlap))
    inside = (2 * half_sum - np.sqrt(4 * half_sum**2 - 4 * area * (1 - overlap))) / 4
    outside = (-2 * overlap * half_sum + np.sqrt(4 * overlap**2 * half_sum**2 + 4 * overlap * (1 - overlap) * area)) / (
        4 * overlap
    )
    return float(min(both_moved_out, inside, outside))


def draw_gaussian(heatmap_XY: NDArray[np.float32], row: int, column: int, radius: int) -> None:
    """Raises a heatmap, in place, to a Gaussian with peak 1 and sigma = diameter / 6."""
    steps = np.arange(-radius, radius + 1)
    sigma = (2 * radius + 1) / 6
    patch = np.exp(-(steps[:, None] ** 2 + steps[None] ** 2) / (2 * sigma**2)).astype(np.float32)
    rows, columns = row + steps, column + steps
    r, c = (rows >= 0) & (rows < heatmap_XY.shape[0]), (columns >= 0) & (columns < heatmap_XY.shape[1])
    view = heatmap_XY[rows[r][0] : rows[r][-1] + 1, columns[c][0] : columns[c][-1] + 1]
    np.maximum(view, patch[np.ix_(r, c)], out=view)


def make_targets(batch: list[Boxes], config: DetectorConfig) -> Targets:
    """Targets of a batch of ego-frame boxes; boxes outside the grid are left out."""
    n = config.cells
    heatmap = np.zeros((len(batch), len(DETECTION_CLASSES), n, n), np.float32)
    parts: list[Boxes] = []
    index: list[tuple[int, int, int]] = []
    offsets: list[NDArray[np.float64]] = []
    for b, boxes in enumerate(batch):
        cells = (boxes.centers_m[:, :2] + config.half_range_m) / config.cell_m
        inside = np.all((cells >= 0) & (cells < n), axis=1)
        kept, cells = boxes.select(inside), cells[inside]
        corner = np.floor(cells).astype(np.int64)
        for k, (row, column) in enumerate(corner):
            width, length = kept.sizes_wlh_m[k, :2] / config.cell_m
            draw_gaussian(heatmap[b, kept.labels[k]], row, column, max(MIN_RADIUS_CELLS, int(gaussian_radius(width, length))))
            index.append((b, row, column))
        parts.append(kept)
        offsets.append(cells - corner)
    indices = torch.tensor(index, dtype=torch.long).reshape(-1, 3)
    yaws = np.concatenate([p.yaws_rad for p in parts])
    return Targets(
        heatmap_BLXY=torch.from_numpy(heatmap),
        batch_K=indices[:, 0], row_K=indices[:, 1], column_K=indices[:, 2],
        offset_K2=_float(np.concatenate(offsets)),
        z_K1=_float(np.concatenate([p.centers_m[:, 2:] for p in parts])),
        log_size_K3=_float(np.log(np.concatenate([p.sizes_wlh_m for p in parts]))),
        yaw_K2=_float(np.stack([np.sin(yaws), np.cos(yaws)], -1)),
        velocity_K2=_float(np.concatenate([p.velocities_mps for p in parts])),
        attribute_K=torch.from_numpy(np.concatenate([p.attributes for p in parts])),
    )  # fmt: skip


def _float(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
