"""A small network that reads the ego's motion off two moments of six cameras (inverse dynamics), laid out on the ground.

Both moments are drawn as seen from above, z = 0 of the ego frame, in known cameras; the later one as it lies if the ego moved as guessed
so far. Features of every cell of the ground are compared with those of cells around it in the other picture (a cost volume, after Sun et
al., "PWC-Net", CVPR 2018); where each cell went, and how much it counts, gives the rigid motion in closed form (Kabsch, 1976). Coarse
cells find large motions, then finer ones what is left of them.

Shapes: B pairs, V views, H W pixels of an image, P places on the ground, X Y their rows (ahead) and columns (to the left), C features,
D displacements that are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dwm.models.weights import register_model

_NEAREST_M = 0.3  # depth below which a place is behind a camera
_PICTURE = 4  # channels: colours, and where a camera sees


@dataclass(frozen=True, slots=True, kw_only=True)
class EgoMotionConfig:
    """Sizes of the network."""

    image_hw: tuple[int, int] = (128, 224)  # that images are resized to [px]
    places_xy: tuple[int, int] = (128, 80)  # on the ground, around the ego's origin
    place_m: float = 0.3  # between them
    widths: tuple[int, ...] = (24, 32)  # features of cells 2, 4, ... places wide
    rounds: tuple[int, ...] = (1, 0, 0)  # level of ``widths`` that each round compares
    reach_xy: tuple[int, int] = (6, 3)  # cells ahead or behind, and to either side, that are tried
    scale: tuple[float, float, float] = (0.3, 0.1, 0.02)  # of x [m], y [m], yaw [rad]: an error of 1 in training


class EgoMotion(nn.Module):
    """Two moments of all cameras -> one step (``evaluators.ego_motion.path``)."""

    places_P3: Tensor
    scale: Tensor

    def __init__(self, config: EgoMotionConfig) -> None:
        super().__init__()
        self.config = config
        befores = (_PICTURE, *config.widths)
        self.look = nn.ModuleList([
            nn.Sequential(
                nn.Conv2d(before, width, 5, 2, 2), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width), nn.SiLU(),
                nn.Conv2d(width, width, 3, 1, 1),
            )
            for before, width in zip(befores, config.widths, strict=False)
        ])  # fmt: skip
        tried = (2 * config.reach_xy[0] + 1) * (2 * config.reach_xy[1] + 1)
        # A cell counts by what it is and by how well it was found.
        self.count = nn.ModuleList([
            nn.Sequential(nn.Conv2d(width + tried, width, 3, 1, 1), nn.SiLU(), nn.Conv2d(width, 1, 3, 1, 1))
            for width in config.widths
        ])  # fmt: skip
        self.sharpness = nn.Parameter(torch.full((len(config.widths),), 2.0))  # of choices among displacements, as a logarithm
        self.register_buffer("places_P3", ground_places(config), persistent=False)
        self.register_buffer("scale", torch.tensor(config.scale), persistent=False)

    def forward(self, before_BV3HW: Tensor, after_BV3HW: Tensor, ground_BV33: Tensor) -> Tensor:
        """Steps [B, 3] from images in [-1, 1] and ``ground_of``."""
        return self.guesses(before_BV3HW, after_BV3HW, ground_BV33, before_BV3HW.new_zeros(len(before_BV3HW), 3))[-1]

    def guesses(self, before_BV3HW: Tensor, after_BV3HW: Tensor, ground_BV33: Tensor, first_B3: Tensor) -> list[Tensor]:
        """The steps [B, 3] after every round from a first guess on; gradients do not reach back into the round before."""
        shape, step, out = self.config.places_xy, first_B3, []
        still = seen_from_above(before_BV3HW, ground_BV33, self.places_P3.expand(len(first_B3), -1, -1), shape)
        known = self._features(still)
        for level in self.config.rounds:
            moved = seen_from_above(after_BV3HW, ground_BV33, before_to_after(step.detach(), self.places_P3), shape)
            step = composed(self._off(level, known, self._features(moved), still, moved), step.detach())
            out.append(step)
        return out

    def _features(self, picture_B4XY: Tensor) -> list[Tensor]:
        """Of every level [B, C, X, Y]."""
        out = [picture_B4XY]
        for look in self.look:
            out.append(look(out[-1]))
        return out[1:]

    def _off(self, level: int, still: list[Tensor], moved: list[Tensor], before_B4XY: Tensor, after_B4XY: Tensor) -> Tensor:
        """By which step [B, 3] the moved picture is still off."""
        own, other = F.normalize(still[level], dim=1), F.normalize(moved[level], dim=1)
        wide = 2 ** (level + 1)
        seen, seen_too = (F.avg_pool2d((picture[:, 3:] > 0).float(), wide) for picture in (before_B4XY, after_B4XY))
        cost_BDXY, shifts_D2 = compared(own, other, self.config.reach_xy)
        cost_BDXY = cost_BDXY.float()
        sight_BDXY, _ = compared(seen, seen_too, self.config.reach_xy)
        weights = (self.sharpness[level].exp() * cost_BDXY + (sight_BDXY.float() + 1e-6).log()).softmax(1)
        moved_B2XY = torch.einsum("bdxy,dc->bcxy", weights, shifts_D2.to(weights) * wide * self.config.place_m)
        counts = F.softplus(self.count[level](torch.cat([still[level], cost_BDXY], dim=1)).float()) * seen
        places = F.avg_pool2d(self.places_P3[:, :2].T.unflatten(1, self.config.places_xy)[None], wide)
        old = places.flatten(2).transpose(1, 2).expand(len(own), -1, -1)
        return rigid(old, old + moved_B2XY.flatten(2).transpose(1, 2), counts.flatten(1))


def compared(own_BCXY: Tensor, other_BCXY: Tensor, reach_xy: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Products of every cell's features with those of the cells around it in the other [B, D, X, Y], and where those lie [D, 2]."""
    ahead, aside = reach_xy
    rows, columns = own_BCXY.shape[-2:]
    padded = F.pad(other_BCXY, (aside, aside, ahead, ahead))
    shifts = [(i, j) for i in range(-ahead, ahead + 1) for j in range(-aside, aside + 1)]
    products = [
        (own_BCXY * padded[..., ahead + i : ahead + i + rows, aside + j : aside + j + columns]).sum(1) for i, j in shifts
    ]  # fmt: skip
    return torch.stack(products, dim=1), torch.tensor(shifts, dtype=torch.float32, device=own_BCXY.device)


def rigid(old_BN2: Tensor, new_BN2: Tensor, weights_BN: Tensor) -> Tensor:
    """The step [B, 3] with least weighted squares of R new + t - old (Kabsch, in the plane)."""
    weights = weights_BN / weights_BN.sum(1, keepdim=True).clamp_min(1e-6)
    a, b = (torch.einsum("bn,bnc->bc", weights, places) for places in (old_BN2, new_BN2))
    p, q = old_BN2 - a[:, None], new_BN2 - b[:, None]
    cross = (weights * (q[..., 0] * p[..., 1] - q[..., 1] * p[..., 0])).sum(1)
    yaw = torch.atan2(cross, (weights * (q * p).sum(-1)).sum(1) + 1e-6)
    cos, sin = yaw.cos(), yaw.sin()
    turned = torch.stack([cos * b[:, 0] - sin * b[:, 1], sin * b[:, 0] + cos * b[:, 1]], dim=-1)
    return torch.cat([a - turned, yaw[:, None]], dim=-1)


def ground_places(config: EgoMotionConfig) -> Tensor:
    """Places (x, y, 1) on the ground [P, 3] in the ego frame [m], row by row from behind to ahead."""
    x, y = ((torch.arange(n) - (n - 1) / 2) * config.place_m for n in config.places_xy)
    across = torch.stack(torch.meshgrid(x, y, indexing="ij"), dim=-1).reshape(-1, 2)
    return torch.cat([across, torch.ones(len(across), 1)], dim=-1)


def before_to_after(step_B3: Tensor, places_P3: Tensor) -> Tensor:
    """Places of the earlier ego frame in the later one [B, P, 3]."""
    apart = places_P3[None, :, :2] - step_B3[:, None, :2]
    cos, sin = step_B3[:, None, 2].cos(), step_B3[:, None, 2].sin()
    x, y = cos * apart[..., 0] + sin * apart[..., 1], cos * apart[..., 1] - sin * apart[..., 0]
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def composed(first_B3: Tensor, second_B3: Tensor) -> Tensor:
    """The step that takes ``second`` and then lies as ``first`` says: the product of both poses."""
    cos, sin = first_B3[:, 2].cos(), first_B3[:, 2].sin()
    x = first_B3[:, 0] + cos * second_B3[:, 0] - sin * second_B3[:, 1]
    y = first_B3[:, 1] + sin * second_B3[:, 0] + cos * second_B3[:, 1]
    return torch.stack([x, y, first_B3[:, 2] + second_B3[:, 2]], dim=-1)


def ground_of(intrinsics: Tensor, camera_to_ego: Tensor) -> Tensor:
    """Homographies [..., 3, 3] from places (x, y, 1) on the ground of the ego frame [m] to pixels, times depth."""
    return intrinsics @ torch.linalg.inv(camera_to_ego)[..., :3, :][..., [0, 1, 3]]


def seen_from_above(images_BV3HW: Tensor, ground_BV33: Tensor, places_BP3: Tensor, shape: Sequence[int]) -> Tensor:
    """Colours at places, and the share of views that see them [B, 4, X, Y]; views that see one place are averaged."""
    height, width = images_BV3HW.shape[-2:]
    with torch.autocast(places_BP3.device.type, enabled=False):  # half precision is pixels off
        uvd = torch.einsum("bvij,bpj->bvpi", ground_BV33, places_BP3.float())
        depth = uvd[..., 2:]
        uv = uvd[..., :2] / depth.clamp_min(_NEAREST_M)
        inside = (depth[..., 0] > _NEAREST_M) & (uv >= 0).all(-1) & (uv <= uv.new_tensor((width - 1, height - 1))).all(-1)
        grid = uv * uv.new_tensor((2 / (width - 1), 2 / (height - 1))) - 1
        colours = F.grid_sample(images_BV3HW.flatten(0, 1), grid.flatten(0, 1)[:, None], align_corners=True)
        colours = colours.reshape(*images_BV3HW.shape[:2], 3, -1) * inside[:, :, None]
        seen = inside.sum(1, keepdim=True)
        picture = torch.cat([colours.sum(1) / seen.clamp_min(1), seen / images_BV3HW.shape[1]], dim=1)
    return picture.unflatten(-1, tuple(shape))


def to_input(images: NDArray[Any]) -> Tensor:
    """Images [..., H, W, 3] of 0 to 255 as [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, -3), dtype=np.float32)) / 127.5 - 1


register_model("ego_motion", EgoMotionConfig, EgoMotion)
