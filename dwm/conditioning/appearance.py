"""What each kind of surface looked like in the log: a small palette that holds a minute's colours in place.

The layout says what every latent pixel shows (road, walkway, wall, sky, ...). The mean latent of each kind in one true
frame, painted over the layout of any later frame, tells the model the street's colours and light where no memory
reaches, and however worn the memory has become.

Shapes: V views, C latent channels, K kinds, h w latent pixels, L layout channels, H W layout pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dwm.conditioning.layout import LAYOUT_CHANNELS
from dwm.scenes.types import DETECTION_CLASSES

SURFACES = (
    "near_road", "far_road", "crossing", "walkway", "near_ground", "far_ground", "near_wall", "far_wall", "sky", "box",
)  # fmt: skip
_FAR_NEARNESS, _NEAR_NEARNESS = 0.1, 0.4  # 72 m and 12 m: see "nearness" in dwm.conditioning.layout
_LEAST_CELLS = 3.0  # latent pixels of a kind that must be there for its colour to count


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """Colours of one true frame, all cameras together."""

    latents_KC: Tensor  # mean latent of each kind in SURFACES, 0 where the frame has none of it
    seen_K: Tensor  # 1 where the frame has enough of a kind, else 0


def surface_shares(layout_LHW: Tensor, rows: int, cols: int) -> Tensor:
    """Share of each kind in every latent pixel [..., K, rows, cols] of layout maps [..., L, H, W]."""

    def layer(name: str) -> Tensor:
        return layout_LHW[..., LAYOUT_CHANNELS.index(name), :, :]

    first = LAYOUT_CHANNELS.index(DETECTION_CLASSES[0])
    box = layout_LHW[..., first : first + len(DETECTION_CLASSES), :, :].sum(-3)
    ground, wall, crossing = layer("is_ground"), layer("is_wall"), layer("ped_crossing")
    road = (layer("drivable") - crossing).clamp_min(0)
    walkway = torch.minimum(layer("walkway"), (ground - road - crossing).clamp_min(0))
    bare = (ground - road - crossing - walkway).clamp_min(0)
    far = ((_NEAR_NEARNESS - layer("nearness")) / (_NEAR_NEARNESS - _FAR_NEARNESS)).clamp(0, 1)
    sky = (1 - ground - wall - box).clamp_min(0)
    kinds = [
        road * (1 - far),
        road * far,
        crossing,
        walkway,
        bare * (1 - far),
        bare * far,
        wall * (1 - far),
        wall * far,
        sky,
        box,
    ]
    stack = torch.stack(kinds, dim=-3)
    return F.adaptive_avg_pool2d(stack.reshape(-1, *stack.shape[-3:]), (rows, cols)).view(*stack.shape[:-2], rows, cols)


def pick_palette(latents_VCHW: Tensor, layout_VLHW: Tensor) -> Palette:
    """The colours of one frame: latents [V, C, h, w] and their layout [V, L, H, W]."""
    # Pixels of one kind alone count most: seams between kinds would mix their colours.
    weight = surface_shares(layout_VLHW, *latents_VCHW.shape[-2:]).pow(4)
    total = weight.sum(dim=(0, 2, 3))
    seen = (total >= _LEAST_CELLS).to(latents_VCHW.dtype)
    mean = torch.einsum("vkhw,vchw->kc", weight, latents_VCHW) / total.clamp_min(1e-6)[:, None]
    return Palette(latents_KC=mean * seen[:, None], seen_K=seen)


def paint(palette: Palette, layout_LHW: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """The palette over layouts [..., L, H, W]: latents [..., C, rows, cols], and the share [..., 1, rows, cols] that is known."""
    shares = surface_shares(layout_LHW, rows, cols)
    latents = torch.einsum("...khw,kc->...chw", shares, palette.latents_KC)
    return latents, torch.einsum("...khw,k->...hw", shares, palette.seen_K)[..., None, :, :]
