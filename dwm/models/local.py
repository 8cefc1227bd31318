"""Convolutional levels around the transformer: what happens within a token's own patch and its neighbours.

A token stands for a patch of ``2 ** levels`` latent pixels a side. Attention decides what belongs there; these levels
bring the layout, the memory and the noisy latents down to the tokens and the tokens' decision back up, past skips that
keep every edge where the layout has it (the hourglass of HDiT, Crowson et al. 2024, with convolutions outside).

Shapes: I images (batch x frames x views), C channels, H W a level's grid, D width of a frame's embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalBlock(nn.Module):
    """Two 3x3 convolutions around a skip, scaled and shifted by the frame's embedding; begins as the identity."""

    def __init__(self, width: int, frame_width: int) -> None:
        super().__init__()
        self.film = nn.Linear(frame_width, 2 * width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        for layer in (self.film, self.conv2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x_ICHW: Tensor, frame_ID: Tensor) -> Tensor:
        """[I, C, H, W]."""
        # Unit root mean square over channels, place by place: statistics over the picture would take out its brightness.
        unit = x_ICHW * x_ICHW.square().mean(dim=1, keepdim=True).add(1e-6).rsqrt()
        scale, shift = self.film(frame_ID)[:, :, None, None].chunk(2, dim=1)
        return x_ICHW + self.conv2(F.silu(self.conv1(F.silu(torch.addcmul(shift, unit, 1 + scale)))))


class LocalDown(nn.Module):
    """One level on the way to the tokens: blocks, then half the resolution. Also returns what the way back needs."""

    def __init__(self, width: int, next_width: int, frame_width: int) -> None:
        super().__init__()
        self.block = LocalBlock(width, frame_width)
        self.halve = nn.Conv2d(width, next_width, 2, stride=2)

    def forward(self, x_ICHW: Tensor, frame_ID: Tensor) -> tuple[Tensor, Tensor]:
        """[I, C', H / 2, W / 2] and the skip [I, C, H, W]."""
        skip = self.block(x_ICHW, frame_ID)
        return self.halve(skip), skip


class LocalUp(nn.Module):
    """One level on the way back: twice the resolution, plus the skip, then blocks."""

    def __init__(self, from_width: int, width: int, frame_width: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(from_width, width, 2, stride=2)
        self.blocks = nn.ModuleList(LocalBlock(width, frame_width) for _ in range(2))

    def forward(self, x_ICHW: Tensor, skip_ICHW: Tensor, frame_ID: Tensor) -> Tensor:
        """[I, C, 2 H, 2 W]."""
        x = self.enlarge(x_ICHW) + skip_ICHW
        for block in self.blocks:
            x = block(x, frame_ID)
        return x
