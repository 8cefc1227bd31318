"""The memory of mode ``log``: what the log's points show, where they show it well, over what was carried from the last frame.

Shapes: V views, H W pixels of the image, h w of the layout (half of it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dwm.conditioning.layout import Layout
from dwm.conditioning.logged_points import Drawn
from dwm.conditioning.reprojection import Trace

_TRUST = 0.5  # the points are preferred down to this share of the carried picture's sharpness: they are where they belong
_COVERED = 0.35  # of a box: where its points cover this share of it, one sees the street through the rest
_BEHIND_M = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A memory picture, and where each pixel is from."""

    images_V3HW: Tensor  # in [-1, 1]
    known_VHW: Tensor  # bool
    logged_VHW: Tensor  # bool: from the log's points


def usable(drawn: Drawn, layout: Layout, numbers: NDArray[np.int64]) -> Tensor:
    """Where the points' picture holds [V, H, W]: nowhere behind a labelled box whose own look the log does not know.

    ``numbers`` [A] are those that the layout's boxes have among the logged things; -1 for none.
    """
    height, width = drawn.known_VHW.shape[1:]
    box = _enlarged(layout.box_VHW, height, width)
    depth = _enlarged(layout.depth_VHW, height, width)
    if not len(numbers):
        return drawn.known_VHW
    number = torch.from_numpy(numbers).to(box.device)[box.clamp(min=0)]
    on_box = box >= 0
    own = on_box & (number >= 0) & (drawn.thing_VHW == number) & drawn.known_VHW
    view = torch.arange(len(box), device=box.device)[:, None, None] * len(numbers)
    place, count = (view + box.clamp(min=0)), len(box) * len(numbers)
    share = torch.bincount(place[own], minlength=count) / torch.bincount(place[on_box], minlength=count).clamp(min=1)
    through = on_box & ~own & (drawn.depth_VHW > depth + _BEHIND_M) & (share[place] < _COVERED)
    return drawn.known_VHW & ~through


def merged(carried_V3HW: Tensor, found: Trace, drawn: Drawn, usable_VHW: Tensor) -> Memory:
    """Each pixel from the points, and from the carried frame where they show nothing or next to nothing."""
    height, width = usable_VHW.shape[1:]
    valid, sharpness = _enlarged(found.valid_VHW, height, width), _enlarged(found.sharpness_VHW, height, width)
    logged = usable_VHW & (~valid | (drawn.sharpness_VHW >= _TRUST * sharpness))
    images = torch.where(logged[:, None], drawn.images_V3HW, carried_V3HW)
    return Memory(images_V3HW=images, known_VHW=logged | valid, logged_VHW=logged)


def worn(found: Trace, drawn: Drawn, memory: Memory, wear: float) -> Tensor:
    """How sharp a frame made from a memory is [V, h, w]: what was carried wears, what the points gave is as sharp as they,
    what was painted is new."""
    carried = torch.where(found.valid_VHW, found.sharpness_VHW * wear, 1.0)
    factor = memory.logged_VHW.shape[-1] // found.valid_VHW.shape[-1]
    share = F.avg_pool2d(memory.logged_VHW[:, None].float(), factor)[:, 0]
    return torch.where(share >= 0.5, F.avg_pool2d(drawn.sharpness_VHW[:, None], factor)[:, 0], carried)


def _enlarged(values_Vhw: Tensor, height: int, width: int) -> Tensor:
    """Each value repeated."""
    down, across = height // values_Vhw.shape[1], width // values_Vhw.shape[2]
    return values_Vhw.repeat_interleave(down, 1).repeat_interleave(across, 2)
