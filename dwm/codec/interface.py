"""What the world model needs from an image codec, so that any latent space can be put under it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """Images to latents and back. Latents have about zero mean and, over all channels, unit variance."""

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        ...

    @property
    def downsample(self) -> int:
        """Image pixels per latent pixel, along each side."""
        ...

    def encode(self, images_NCHW: Tensor) -> Tensor:
        """Latents [N, latent_channels, H/downsample, W/downsample] of images in [-1, 1]."""
        ...

    def decode(self, latents_NCHW: Tensor) -> Tensor:
        """Images [N, 3, H, W]; values may leave [-1, 1] a little."""
        ...
