"""A mipmapped raster in the ground plane, sampled at any footprint: thin lines fade with distance instead of flickering."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Mipmap:
    """Channels of a raster whose rows grow with y and columns with x; texels beyond the border repeat it."""

    def __init__(self, raster_CHW: Tensor, metres_per_pixel: float, origin_xy_m: tuple[float, float], levels: int = 8) -> None:
        self._metres_per_pixel, self._origin, self._levels = metres_per_pixel, origin_xy_m, levels
        texels, rows, columns, starts, start = [], [], [], [], 0
        level = raster_CHW.float()[None]
        for _ in range(levels):
            n_rows, n_columns = level.shape[-2:]
            texels.append(level[0].permute(1, 2, 0).reshape(n_rows * n_columns, -1).half())
            rows.append(n_rows)
            columns.append(n_columns)
            starts.append(start)
            start += n_rows * n_columns
            level = F.avg_pool2d(level, 2, ceil_mode=True)
        device = raster_CHW.device
        self._texels = torch.cat(texels)
        self._rows, self._columns, self._starts = (torch.tensor(x, device=device) for x in (rows, columns, starts))

    def sample(self, x_m: Tensor, y_m: Tensor, footprint_m: Tensor) -> Tensor:
        """Values [P, C] at points [P], averaged over about ``footprint_m`` [P]."""
        level = (footprint_m / self._metres_per_pixel).clamp(min=1).log2().round().long().clamp(max=self._levels - 1)
        size = self._metres_per_pixel * torch.exp2(level.float())
        column, row = (x_m - self._origin[0]) / size - 0.5, (y_m - self._origin[1]) / size - 0.5
        c0, r0 = column.floor(), row.floor()
        fc, fr = (column - c0)[:, None], (row - r0)[:, None]
        rows, columns, start = self._rows[level], self._columns[level], self._starts[level]

        def texel(dr: int, dc: int) -> Tensor:
            r = torch.minimum((r0.long() + dr).clamp(min=0), rows - 1)
            c = torch.minimum((c0.long() + dc).clamp(min=0), columns - 1)
            return self._texels[start + r * columns + c].float()

        return (1 - fr) * ((1 - fc) * texel(0, 0) + fc * texel(0, 1)) + fr * ((1 - fc) * texel(1, 0) + fc * texel(1, 1))


def pixel_footprint_m(z_depth_m: Tensor, focal_px: Tensor | float, height_m: Tensor | float) -> Tensor:
    """Side of the ground patch one pixel sees: geometric mean of its extents across and along the line of sight."""
    return z_depth_m / focal_px * (z_depth_m / height_m).clamp(min=1).sqrt()
