"""What the codec loses of a picture, given back to the frames made from it.

A codec of few numbers a block drops fine structure: a lane line's edge, a far car's windows. The pictures that a window was told about,
``p`` (memory where it holds, else appearance), have that structure, and the network never sees it. Where the decoded frame
``g`` shows the same thing as ``D(E(p))``, what the codec took from ``p`` is missing from ``g`` too:

    x = g + k exp(-(d / TOLERANCE)^2) (p - D(E(p))),

with ``k`` the share that the pictures cover and ``d`` the difference of ``g`` from ``D(E(p))``, a mean over channels and
the surroundings. Where the network has drawn something else, nothing is added: an edge belongs to what it is the edge of.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dwm.codec.interface import Codec

TOLERANCE = 0.25  # of a range of 2
SURROUNDINGS_PX = 9


def with_detail(images_VCHW: Tensor, shown_VCHW: Tensor, known_VCHW: Tensor, codec: Codec) -> Tensor:
    """Decoded images [V, 3, H, W] with the detail of what they were told to show; ``known`` is a share [V, 1, h, w]."""
    passed = codec.decode(codec.encode(shown_VCHW))
    apart = F.avg_pool2d(
        (images_VCHW - passed).abs().mean(1, keepdim=True), SURROUNDINGS_PX, 1, SURROUNDINGS_PX // 2, count_include_pad=False
    )
    agreed = torch.exp(-((apart / TOLERANCE) ** 2))
    known = F.interpolate(known_VCHW, size=images_VCHW.shape[-2:])
    return images_VCHW + known * agreed * (shown_VCHW - passed)
