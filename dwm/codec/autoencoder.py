"""A small deep-compression autoencoder: pixel-unshuffle first, so that no convolution runs at full resolution.

Shapes: N images, C channels, H W image pixels, h w latent pixels (h = H / downsample).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM = 4  # pixels folded into channels along each side before the first convolution


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecConfig:
    """Sizes of an ``Autoencoder``."""

    latent_channels: int = 16  # channels of a latent
    widths: tuple[int, ...] = (64, 128, 192)  # channels per level; each level after the first halves the grid
    blocks_per_level: int = 2  # residual blocks per level, in the encoder and in the decoder
    norm_groups: int = 8  # groups of the group norms; divides every width


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x_NCHW)))
        return x_NCHW + self.conv2(F.silu(self.norm2(hidden)))


def _encoder(config: CodecConfig) -> nn.Sequential:
    widths, groups = tuple(config.widths), config.norm_groups
    layers: list[nn.Module] = [nn.PixelUnshuffle(STEM), nn.Conv2d(3 * STEM**2, widths[0], 3, padding=1)]
    for level, width in enumerate(widths):
        if level:
            layers.append(nn.Conv2d(widths[level - 1], width, 2, stride=2))
        layers += [ResidualBlock(width, groups) for _ in range(config.blocks_per_level)]
    return nn.Sequential(*layers, nn.GroupNorm(groups, widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], config.latent_channels, 1))


def _decoder(config: CodecConfig) -> nn.Sequential:
    widths, groups = tuple(config.widths)[::-1], config.norm_groups
    layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)]
    for level, width in enumerate(widths):
        if level:
            layers += [nn.Conv2d(widths[level - 1], 4 * width, 1), nn.PixelShuffle(2)]
        layers += [ResidualBlock(width, groups) for _ in range(config.blocks_per_level)]
    layers += [nn.GroupNorm(groups, widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], 3 * STEM**2, 3, padding=1)]
    return nn.Sequential(*layers, nn.PixelShuffle(STEM))


class Autoencoder(nn.Module):
    """A deterministic convolutional codec; the ``Codec`` of the proving ground."""

    latent_shift: Tensor
    latent_scale: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = _encoder(config), _decoder(config)
        self.register_buffer("latent_shift", torch.zeros(config.latent_channels))
        self.register_buffer("latent_scale", torch.ones(config.latent_channels))
        # A third faster than the default layout on CPU, and what tensor cores want.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def downsample(self) -> int:
        return STEM * 2 ** (len(self.config.widths) - 1)

    def encode(self, images_NCHW: Tensor) -> Tensor:
        """Latents [N, C, h, w] of images [N, 3, H, W] in [-1, 1]; raises ValueError when the size is not a multiple."""
        height, width = images_NCHW.shape[-2:]
        if height % self.downsample or width % self.downsample:
            raise ValueError(f"image size {height}x{width} is not a multiple of {self.downsample}")
        raw = self.encoder(images_NCHW.contiguous(memory_format=torch.channels_last))
        return (raw - self.latent_shift.view(-1, 1, 1)) / self.latent_scale.view(-1, 1, 1)

    def decode(self, latents_NCHW: Tensor) -> Tensor:
        """Images [N, 3, H, W], about in [-1, 1], of latents [N, C, h, w]."""
        raw = latents_NCHW * self.latent_scale.view(-1, 1, 1) + self.latent_shift.view(-1, 1, 1)
        return self.decoder(raw.contiguous(memory_format=torch.channels_last))

    def forward(self, images_NCHW: Tensor, noise_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(reconstruction from latents plus noise, latents without it), as training needs them."""
        latents = self.encode(images_NCHW)
        return self.decode(latents + noise_NCHW), latents

    @torch.no_grad()
    def set_normalisation(self, latents_NCHW: Tensor) -> None:
        """Make latents like the given ones (as ``encode`` returns them now) zero mean, unit variance per channel.

        Reconstructions do not change: ``decode`` undoes what ``encode`` does.
        """
        mean = latents_NCHW.mean(dim=(0, 2, 3))
        std = latents_NCHW.std(dim=(0, 2, 3)).clamp_min(1e-6)
        self.latent_shift.add_(mean * self.latent_scale)
        self.latent_scale.mul_(std)
