"""The proving ground's codec: a linear block transform found in closed form, and a small network that mends its seams.

Latents are the leading principal components of image blocks (Hotelling 1933; what the DCT approximates). That half is
exact algebra: nothing to train, no colour drifts, and encoding costs one strided convolution. Decoding adds a
convolutional correction, trained to undo what the cut-off components leave behind.

Shapes: N images, C channels, H W image pixels, h w latent pixels (h = H / downsample).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecConfig:
    """Sizes of an ``Autoencoder``."""

    latent_channels: int = 16  # principal components kept per block
    downsample: int = 8  # side of a block [px]
    width: int = 80  # channels of the correcting network
    blocks: int = 2  # its residual blocks


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip. No normalisation: it would take the brightness out of flat areas."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW + self.conv2(F.silu(self.conv1(F.silu(x_NCHW))))


class Autoencoder(nn.Module):
    """A codec whose encoder is linear and fixed by ``fit_blocks``; the ``Codec`` of the proving ground."""

    basis: Tensor
    mean: Tensor
    latent_shift: Tensor
    latent_scale: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        side, channels, width = config.downsample, config.latent_channels, config.width
        self.register_buffer("basis", torch.eye(3 * side**2)[:channels].clone())  # [C, 3 * side^2], orthonormal rows
        self.register_buffer("mean", torch.zeros(3 * side**2))
        self.register_buffer("latent_shift", torch.zeros(channels))
        self.register_buffer("latent_scale", torch.ones(channels))
        self.correction = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            *[ResidualBlock(width) for _ in range(config.blocks)],
            nn.SiLU(), nn.Conv2d(width, 3 * side**2, 3, padding=1), nn.PixelShuffle(side),
        )  # fmt: skip
        last = self.correction[-2]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def downsample(self) -> int:
        return self.config.downsample

    def encode(self, images_NCHW: Tensor) -> Tensor:
        """Latents [N, C, h, w] of images [N, 3, H, W] in [-1, 1]; raises ValueError when the size is not a multiple."""
        height, width = images_NCHW.shape[-2:]
        if height % self.downsample or width % self.downsample:
            raise ValueError(f"image size {height}x{width} is not a multiple of {self.downsample}")
        blocks = to_blocks(images_NCHW, self.downsample) - self.mean
        return ((blocks @ self.basis.T - self.latent_shift) / self.latent_scale).movedim(-1, 1)

    def decode(self, latents_NCHW: Tensor) -> Tensor:
        """Images [N, 3, H, W], about in [-1, 1], of latents [N, C, h, w]."""
        blocks = (latents_NCHW.movedim(1, -1) * self.latent_scale + self.latent_shift) @ self.basis + self.mean
        return from_blocks(blocks, self.downsample) + self.correction(
            latents_NCHW.contiguous(memory_format=torch.channels_last)
        )

    def forward(self, images_NCHW: Tensor, noise_NChw: Tensor) -> Tensor:
        """Reconstructions [N, 3, H, W] from latents with noise on them: what training asks for."""
        return self.decode(self.encode(images_NCHW) + noise_NChw)

    @torch.no_grad()
    def fit_blocks(self, images_NCHW: Tensor) -> None:
        """Set the linear half from images [N, 3, H, W] in [-1, 1]: leading components, mean, and latent scales.

        A component is divided by the square root of its deviation, then all by one number that makes the mean variance
        1: coarse components keep more variance than fine ones, so noise covers the fine ones first, as in pixels.
        """
        blocks = to_blocks(images_NCHW, self.downsample).reshape(-1, self.mean.numel()).double()
        self.mean.copy_(blocks.mean(0))
        values, vectors = torch.linalg.eigh(torch.cov((blocks - blocks.mean(0)).T))
        leading = torch.arange(len(values) - 1, len(values) - 1 - self.latent_channels, -1)
        basis = vectors[:, leading].T
        # An eigenvector's sign is arbitrary: make its largest entry positive.
        basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
        deviation = values[leading].clamp_min(1e-12).sqrt()
        self.basis.copy_(basis)
        self.latent_shift.zero_()
        self.latent_scale.copy_(deviation.sqrt() * deviation.mean().sqrt())


def to_blocks(images_NCHW: Tensor, side: int) -> Tensor:
    """[N, h, w, 3 * side^2]."""
    return rearrange(images_NCHW, "n c (h p) (w q) -> n h w (c p q)", p=side, q=side)


def from_blocks(blocks_NhwK: Tensor, side: int) -> Tensor:
    """The images [N, 3, H, W] that ``to_blocks`` cut up."""
    return rearrange(blocks_NhwK, "n h w (c p q) -> n c (h p) (w q)", p=side, q=side)
