"""Training the codec: sharp enough without an adversary or a downloaded critic.

Shapes: N images, C channels, H W pixels.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dwm.codec.autoencoder import Autoencoder
from dwm.errors import InputError
from dwm.models.weights import fit_tensors, load_tensors
from dwm.training.config import TrainConfig

HELD_OUT_IMAGES = 12  # the last images of the data, never trained on
FITTING_IMAGES = 512  # images whose blocks set the linear half


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """Images [N, H, W, 3] uint8; on the way to the device [N, 3, H, W] in [-1, 1]."""

    images: Tensor

    def to(self, device: torch.device) -> ImageBatch:
        return ImageBatch(images=to_model_range(self.images.to(device, non_blocking=True)))


def to_model_range(images_NHWC: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> float [N, 3, H, W] in [-1, 1]."""
    return images_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images_NCHW: Tensor) -> Tensor:
    """float [N, 3, H, W] in [-1, 1] -> uint8 [N, H, W, 3], clipped."""
    return ((images_NCHW.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class ImageStore:
    """Images of all .npy files of a folder, read from disk as they are asked for."""

    def __init__(self, arrays: list[NDArray[np.uint8]]) -> None:
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self._arrays[which][index - (self._ends[which - 1] if which else 0)]


def open_images(folder: Path) -> ImageStore:
    """All ``*.npy`` of a folder: uint8 [..., H, W, 3] of one image size; InputError when there are none."""
    paths = sorted(folder.glob("*.npy"))
    if not paths:
        raise InputError(folder, "no *.npy files", "build the image cache first, or give another data folder")
    arrays = []
    for path in paths:
        array = np.load(path, mmap_mode="r")
        if array.dtype != np.uint8 or array.ndim < 4 or array.shape[-1] != 3:
            raise InputError(path, f"holds {array.dtype} {list(array.shape)}", "images must be uint8 [..., H, W, 3]")
        arrays.append(array.reshape(-1, *array.shape[-3:]))
    if len({array.shape[1:] for array in arrays}) > 1:
        raise InputError(folder, "its files hold images of different sizes", "keep one size per folder")
    return ImageStore(arrays)


def reconstruction_loss(reconstruction: Tensor, images: Tensor, gradient_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean absolute error plus ``gradient_weight`` times the mean squared error of finite differences; [N, 3, H, W] both."""
    error = reconstruction - images
    absolute = error.abs().mean()
    edges = error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean()
    return absolute + gradient_weight * edges, {"absolute_error": absolute, "edge_error": edges}


class CodecTask:
    """Trains an ``Autoencoder``; see ``dwm.training.loop.Task``."""

    def __init__(self, config: TrainConfig, images: ImageStore) -> None:
        self.config, self.images = config, images
        if len(images) <= HELD_OUT_IMAGES:
            raise InputError(config.data, f"only {len(images)} images", f"give more than {HELD_OUT_IMAGES}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.loop.seed)
            codec = Autoencoder(config.codec.model)
        self.model: nn.Module = codec
        if config.initial_weights:
            path = Path(config.initial_weights)
            fit_tensors(self.model, load_tensors(path)[0], path)
        else:
            picks = np.linspace(0, len(self) - 1, min(len(self), FITTING_IMAGES)).astype(int)
            codec.fit_blocks(to_model_range(torch.from_numpy(np.stack([images[i] for i in picks]))))

    @property
    def fingerprint(self) -> str:
        return json.dumps({"codec": asdict(self.config.codec.model)}, sort_keys=True)

    @property
    def metadata(self) -> dict[str, str]:
        return {"trained_on": self.config.trained_on, "images": str(len(self))}

    def prepare(self, device: torch.device) -> None:
        """Nothing: the linear half was fitted when the task was made."""

    def __len__(self) -> int:
        return len(self.images) - HELD_OUT_IMAGES

    def load(self, indices: list[int], generator: np.random.Generator) -> ImageBatch:
        """Crops of the images at ``indices``, half of them mirrored."""
        return ImageBatch(images=torch.from_numpy(np.stack([self._augmented(i, generator) for i in indices])))

    def _augmented(self, index: int, generator: np.random.Generator) -> NDArray[np.uint8]:
        image = self.images[index]
        height = self.config.codec.crop_height_px or image.shape[0]
        width = self.config.codec.crop_width_px or image.shape[1]
        row = int(generator.integers(image.shape[0] - height + 1))
        col = int(generator.integers(image.shape[1] - width + 1))
        crop = image[row : row + height, col : col + width]
        return crop[:, ::-1] if generator.random() < 0.5 else crop

    def loss(self, model: Any, batch: ImageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        settings, codec = self.config.codec, self.config.codec.model
        count, _, height, width = batch.images.shape
        grid = (count, codec.latent_channels, height // codec.downsample, width // codec.downsample)
        noise = torch.randn(grid, generator=generator) * settings.latent_noise
        return reconstruction_loss(
            model(batch.images, noise.to(batch.images.device)).float(), batch.images, settings.gradient_weight
        )

    def evaluate(self, model: Any, device: torch.device) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
        """PSNR of the held-out images, and originals over reconstructions."""
        images = np.stack([self.images[len(self) + i] for i in range(HELD_OUT_IMAGES)])
        original = torch.from_numpy(images).to(device)
        decoded = to_pixels(model.decode(model.encode(to_model_range(original))).float())
        strip = np.concatenate([np.concatenate(list(rows), axis=1) for rows in (images[:6], decoded[:6].cpu().numpy())])
        return {"held_out_psnr_db": psnr_db(decoded, original)}, strip

    def finish(self, model: Any, device: torch.device) -> nn.Module:
        """As it is: the linear half is final from the start."""
        return model


def psnr_db(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio of uint8 images of any equal shape."""
    error = (image.double() - truth.double()).square().mean()
    return float(10 * torch.log10(255**2 / error.clamp_min(1e-12)))
