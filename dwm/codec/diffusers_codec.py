"""Public autoencoders as codecs: those of diffusers, frame by frame.

``AutoencoderKL`` is the image codec of Stable Diffusion (MiLA and MaskGWM); ``AutoencoderKLCogVideoX`` (LongDWM) is a video
codec, here given one frame at a time, as its key-frame model is. Latents are scaled as their diffusion models read them
(Rombach et al. 2022, appendix G): (z - shift) * scale, about unit variance.

Shapes: N images, C channels, H W image pixels, h w latent pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dwm.errors import InputError
from dwm.extras import optional_package

_VIDEO = {"AutoencoderKL": False, "AutoencoderKLCogVideoX": True}  # class in diffusers -> whether it takes [N, C, T, H, W]
_AT_ONCE = 6  # images in one pass: one moment of a six-camera rig


class DiffusersCodec(nn.Module):
    """A frozen autoencoder of diffusers behind the ``Codec`` protocol; see ``load_diffusers_codec``."""

    def __init__(self, autoencoder: nn.Module, *, video: bool) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder
        self.video = video
        self.eval().requires_grad_(False)

    @property
    def latent_channels(self) -> int:
        return self.autoencoder.config.latent_channels

    @property
    def downsample(self) -> int:
        return 2 ** (len(self.autoencoder.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, images_NCHW: Tensor) -> Tensor:
        """Most likely latents [N, C, h, w] of images [N, 3, H, W] in [-1, 1]; ValueError when the size is not a multiple."""
        height, width = images_NCHW.shape[-2:]
        if height % self.downsample or width % self.downsample:
            raise ValueError(f"image size {height}x{width} is not a multiple of {self.downsample}")
        parts = [self.autoencoder.encode(self._given(part)).latent_dist.mode() for part in images_NCHW.split(_AT_ONCE)]
        return (self._image(torch.cat(parts)) - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, latents_NCHW: Tensor) -> Tensor:
        """Images [N, 3, H, W], about in [-1, 1], of latents [N, C, h, w]."""
        latents = latents_NCHW / self._scale + self._shift
        return self._image(torch.cat([self.autoencoder.decode(self._given(part)).sample for part in latents.split(_AT_ONCE)]))

    @property
    def _scale(self) -> float:
        return self.autoencoder.config.scaling_factor

    @property
    def _shift(self) -> float:
        return getattr(self.autoencoder.config, "shift_factor", None) or 0.0

    def _given(self, images_NCHW: Tensor) -> Tensor:
        images = images_NCHW.to(self.autoencoder.dtype)
        return images.unsqueeze(2) if self.video else images

    def _image(self, output: Tensor) -> Tensor:
        return (output.squeeze(2) if self.video else output).float()


def load_diffusers_codec(source: str, subfolder: str | None = None, dtype: torch.dtype = torch.float32) -> DiffusersCodec:
    """The autoencoder in a local folder or of a hub id, e.g. ``stabilityai/sd-vae-ft-ema``.

    ``subfolder`` is "vae" for the folder of a whole pipeline. Raises InputError without diffusers, for a source that cannot be
    read, and for an autoencoder of another class.
    """
    diffusers = optional_package("diffusers", "full-scale")
    place = {"subfolder": subfolder} if subfolder else {}
    try:
        name = diffusers.AutoencoderKL.load_config(source, **place).get("_class_name", "AutoencoderKL")
        if name not in _VIDEO:
            raise InputError(source, f"holds a '{name}'", f"give one of {', '.join(_VIDEO)}")
        autoencoder = getattr(diffusers, name).from_pretrained(source, torch_dtype=dtype, low_cpu_mem_usage=False, **place)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        first = str(error).strip().splitlines()[0]
        raise InputError(source, f"no autoencoder of diffusers ({first})", "give its folder, or an id of the hub") from error
    return DiffusersCodec(autoencoder, video=_VIDEO[name])
