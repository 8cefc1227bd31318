"""Scripted stand-ins for the public networks behind FID and FVD."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.network_file import NetworkFile


class TinyInception(nn.Module):
    """Mean colour of an image, of uint8 only."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert x.dtype == torch.uint8 and x.shape[1] == 3 and return_features
        return x.float().mean([2, 3])


class TinyI3d(nn.Module):
    """Mean colour, mean change, the size that came in, and that after resizing."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert x.shape[1] == 3 and return_features
        y = x.float()
        if resize:
            y = F.interpolate(y, size=[x.shape[2], 8, 8], mode="trilinear", align_corners=False)
        if rescale:
            y = 2 * y / 255 - 1
        sizes = torch.tensor([x.shape[3], x.shape[4], y.shape[3], y.shape[4]], dtype=torch.float32).expand(x.shape[0], 4)
        change = (y[:, :, 1:] - y[:, :, :-1]).abs().mean([1, 2, 3, 4])
        return torch.cat([y.mean([2, 3, 4]), change[:, None], sizes], dim=1)


def saved(network: nn.Module, path: Path) -> NetworkFile:
    torch.jit.script(network).save(str(path))
    return NetworkFile(path=str(path))
