"""What training does to the pictures: light, contrast, and a grid of holes (Chen et al., GridMask, 2020).

Shapes: V cameras, h w pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

GRID_SHARE, GRID_RATIO = 0.7, 0.5  # of the frames; of a cell's side that is hidden, as VAD's public configuration has them


def relit(images_V3hw: Tensor, amount: float, rng: np.random.Generator) -> Tensor:
    """Contrast and light of all cameras changed by up to ``amount``, each camera a little by itself; values are normalised ones."""
    shape = (len(images_V3hw), 1, 1, 1)
    gain = 1 + amount * (rng.uniform(-1, 1) + 0.3 * rng.uniform(-1, 1, shape))
    shift = amount * (rng.uniform(-1, 1) + 0.3 * rng.uniform(-1, 1, shape))
    return images_V3hw * torch.from_numpy(np.asarray(gain)).float() + torch.from_numpy(np.asarray(shift)).float()


def grid_masked(images_V3hw: Tensor, rng: np.random.Generator) -> Tensor:
    """In GRID_SHARE of the frames, squares on a grid of random pitch and place are set to the mean, the same in all cameras."""
    if rng.random() >= GRID_SHARE:
        return images_V3hw
    height, width = images_V3hw.shape[-2:]
    pitch = int(rng.integers(8, max(height // 2, 9)))
    hidden = max(1, round(pitch * GRID_RATIO))
    down, across = (np.arange(n) + rng.integers(pitch) for n in (height, width))
    holes = (down % pitch < hidden)[:, None] & (across % pitch < hidden)[None]
    return images_V3hw * torch.from_numpy(~holes).float()
