"""Building blocks of the diffusion transformer.

Shapes: S independent sequences, N tokens of a sequence, M tokens of a context, D width, K a vector's length.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dwm.models.positions import geometric_frequencies, rotate


class Attention(nn.Module):
    """Multi-head attention over itself or over a context; queries and keys are RMS-normalised unless ``normed`` is False.

    ``rotary`` turns them by the token's number before that: the order that Open-Sora 1.1's weights were trained in.
    """

    def __init__(self, width: int, heads: int, *, cross: bool = False, normed: bool = True, rotary: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width) if cross else None
        self.key_value = nn.Linear(width, (2 if cross else 3) * width)
        self.query_scale = nn.Parameter(torch.ones(width // heads)) if normed else None
        self.key_scale = nn.Parameter(torch.ones(width // heads)) if normed else None
        frequencies = geometric_frequencies(width // heads // 2) if rotary else None
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.out = nn.Linear(width, width)

    def forward(self, tokens_SND: Tensor, context_SMD: Tensor | None = None, mask_SM: Tensor | None = None) -> Tensor:
        """[S, N, D]. ``mask_SM`` is True where a context token may be looked at."""
        if self.query is None:
            query, key, value = self.key_value(tokens_SND).chunk(3, dim=-1)
        else:
            query = self.query(tokens_SND)
            key, value = self.key_value(context_SMD).chunk(2, dim=-1)
        query, key, value = (rearrange(x, "s n (a d) -> s a n d", a=self.heads) for x in (query, key, value))
        if self.frequencies is not None:
            query, key = (rotate(x, self.frequencies) for x in (query, key))  # type: ignore[arg-type]
        if self.query_scale is not None and self.key_scale is not None:
            query, key = rms_norm(query, self.query_scale), rms_norm(key, self.key_scale)
        mask = None if mask_SM is None else mask_SM[:, None, None, :]
        # Under autocast the norm comes back wider than the values.
        mixed = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value, attn_mask=mask)
        return self.out(rearrange(mixed, "s a n d -> s n (a d)"))


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """Unit root mean square along the last axis, times ``scale``; keeps the type of ``x``."""
    return F.rms_norm(x, (x.shape[-1],), scale.to(x.dtype), 1e-6)


def normalise(x: Tensor) -> Tensor:
    """Layer norm without learned parameters: adaptive modulation follows it."""
    return F.layer_norm(x, (x.shape[-1],), eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm (DiT, eq. adaLN)."""
    return torch.addcmul(shift, normalise(x), 1 + scale)


def start_at_zero(*layers: nn.Module) -> None:
    """Layers that add nothing before training."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


class PatchEmbedding(nn.Conv2d):
    """A convolution whose stride is its kernel, ``size`` [px], as the linear map that it is: [N, C, H, W] to [N, K, H / size, W / size].

    oneDNN's bfloat16 convolution of 16 channels with kernel and stride 4 returns wrong numbers on CPUs with AMX (torch 2.13).
    """

    def __init__(self, channels: int, width: int, size: int) -> None:
        super().__init__(channels, width, size, stride=size)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        patches = rearrange(images_NCHW, "n c (h a) (w b) -> n h w (c a b)", a=self.kernel_size[0], b=self.kernel_size[1])
        return F.linear(patches, self.weight.flatten(1), self.bias).movedim(-1, 1)


def mlp(in_width: int, hidden: int, out_width: int) -> nn.Sequential:
    """Two linear layers around a GELU."""
    return nn.Sequential(nn.Linear(in_width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, out_width))


class FourierEmbedder(nn.Module):
    """MLP(FFT(c)) of MiLA eq. 1: every number as itself and as sines and cosines of octaves, then two layers."""

    frequencies: Tensor

    def __init__(self, in_width: int, out_width: int, *, octaves: tuple[int, int]) -> None:
        super().__init__()
        frequencies = math.pi * 2.0 ** torch.arange(octaves[0], octaves[1] + 1)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = mlp(in_width * (1 + 2 * len(frequencies)), out_width, out_width)

    def forward(self, values_K: Tensor) -> Tensor:
        """[..., out_width] of [..., in_width]."""
        return self.layers(fourier_features(values_K, self.frequencies))


def fourier_features(values_K: Tensor, frequencies: Tensor) -> Tensor:
    """[..., K * (1 + 2F)]: the values, then sines, then cosines at F angular frequencies."""
    angles = (values_K[..., None] * frequencies).flatten(-2)
    return torch.cat([values_K, angles.sin(), angles.cos()], dim=-1)
