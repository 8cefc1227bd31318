"""The two public networks behind FID and FVD, read from TorchScript files (``evaluators/network_file.py`` for how they come).

``inception-2015-12-05.pt`` (published with StyleGAN2-ADA) and ``i3d_torchscript.pt`` (published with StyleGAN-V) hold the network
and its own preprocessing. They are called as those projects call them. Both resize inside, so what reaches them decides the
figure: images go in as they are. Shapes: N samples, T frames, D features.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from dwm.errors import InputError
from evaluators.network_file import NetworkFile, obtained

Array = NDArray[np.float64]
Images = NDArray[np.uint8]
ClipResize = Literal["anisotropic", "centre_crop"]

MIN_CLIP_FRAMES = 10  # fewer leave nothing in time after I3D's strides
_SIDE_PX = 224  # of I3D's input
_IMAGE_BATCH, _CLIP_BATCH = 32, 4


class InceptionFeatures:
    """Inception-v3 of 2015-12-05: one image to its pooled features [2048]."""

    resize = "inside the network (bilinear 299x299, aspect not kept)"

    def __init__(self, file: NetworkFile, device: str = "cpu") -> None:
        self._network, self.sha256 = _load(file, device)
        self._path, self._device = file.path, device

    @torch.inference_mode()
    def of_images(self, images: Images) -> Array:
        """Features [N, D] of uint8 images [N, H, W, 3]."""
        _check(images, "n h w c")
        tensor = torch.from_numpy(rearrange(images, "n h w c -> n c h w").copy())
        features = [
            _features(self._path, self._network, batch.to(self._device), return_features=True)
            for batch in tensor.split(_IMAGE_BATCH)
        ]
        return np.concatenate(features)


class I3dFeatures:
    """I3D trained on Kinetics-400: one clip to its 400 logits.

    ``resize`` is part of the metric. "anisotropic" squeezes the whole image into 224x224 inside the network (StyleGAN-V, TATS, LVDM);
    "centre_crop" brings the shorter side to 224 and keeps the middle (VideoGPT), which hides the sides of wide images.
    """

    def __init__(self, file: NetworkFile, resize: ClipResize = "anisotropic", device: str = "cpu") -> None:
        self._network, self.sha256 = _load(file, device)
        self._path, self._device, self._crops = file.path, device, resize == "centre_crop"
        self.resize = (
            "shorter side to 224 bilinear, centre crop" if self._crops else "anisotropic to 224x224 inside the network"
        )

    @torch.inference_mode()
    def of_clips(self, clips: Images) -> Array:
        """Features [N, D] of uint8 clips [N, T, H, W, 3]; InputError for fewer than ten frames."""
        _check(clips, "n t h w c")
        if clips.shape[1] < MIN_CLIP_FRAMES:
            raise InputError("FVD", f"clips of {clips.shape[1]} frames", f"give {MIN_CLIP_FRAMES} or more")
        tensor = torch.from_numpy(rearrange(clips, "n t h w c -> n c t h w").copy())
        features = []
        for batch in tensor.split(_CLIP_BATCH):
            ready = batch.to(self._device)
            call = dict(rescale=not self._crops, resize=not self._crops, return_features=True)
            features.append(_features(self._path, self._network, centre_cropped(ready) if self._crops else ready, **call))
        return np.concatenate(features)


def centre_cropped(clips_NCTHW: Tensor) -> Tensor:
    """Uint8 clips as float [N, C, T, 224, 224] in -1 to 1: shorter side to 224 (bilinear, corners not aligned), middle kept."""
    n, _, _, h, w = clips_NCTHW.shape
    scale = _SIDE_PX / min(h, w)
    size = (_SIDE_PX, math.ceil(w * scale)) if h < w else (math.ceil(h * scale), _SIDE_PX)
    frames = rearrange(clips_NCTHW, "n c t h w -> (n t) c h w").float() / 255
    resized = F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - _SIDE_PX) // 2, (size[1] - _SIDE_PX) // 2
    middle = resized[..., top : top + _SIDE_PX, left : left + _SIDE_PX]
    return rearrange(2 * middle - 1, "(n t) c h w -> n c t h w", n=n).contiguous()


def _load(file: NetworkFile, device: str) -> tuple[torch.jit.ScriptModule, str]:
    path, found = Path(file.path), obtained(file)
    try:
        return torch.jit.load(str(path), map_location=device).eval(), found
    except RuntimeError as error:
        problem = f"no TorchScript file ({str(error).splitlines()[0]})"
        raise InputError(path, problem, "give the .pt file with the scripted network, not a state dict") from error


def _features(path: str, network: torch.jit.ScriptModule, batch: Tensor, **call: bool) -> Array:
    try:
        features = network(batch, **call)
    except RuntimeError as error:
        problem = f"does not take {', '.join(call)} ({str(error).splitlines()[0]})"
        raise InputError(path, problem, "give inception-2015-12-05.pt for FID, i3d_torchscript.pt for FVD") from error
    return features.double().cpu().numpy()


def _check(images: Images, axes: str) -> None:
    if images.dtype != np.uint8 or images.ndim != len(axes.split()) or images.shape[-1] != 3 or not len(images):
        raise InputError("video quality", f"images {images.dtype}{images.shape}", f"give uint8 RGB [{axes}]")
