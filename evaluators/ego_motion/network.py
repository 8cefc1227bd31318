"""A small network that reads the ego's motion off two moments of six cameras (inverse dynamics), laid out on the ground.

Both moments are drawn as seen from above, z = 0 of the ego frame, in known cameras; the later one as it lies if the ego moved as guessed
so far. Features of every cell of the ground are compared with those of cells around it in the other picture (a cost volume, after Sun et
al., "PWC-Net", CVPR 2018); where each cell went, and how sure that is in either direction, gives the rigid motion by least squares. Coarse
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
_COLOURS = 3
_ASTRAY = 0.02  # chance of any displacement, whatever a cell says
_FITS = 2
_EDGE = 2  # cells that lie so near to what no camera sees do not count: features look that far
_SURE = 0.05  # variance [cells squared] of a displacement below which it does not count any more


@dataclass(frozen=True, slots=True, kw_only=True)
class EgoMotionConfig:
    """Sizes of the network."""

    image_hw: tuple[int, int] = (128, 224)  # that images are resized to [px]
    places_xy: tuple[int, int] = (128, 80)  # on the ground, around the ego's origin
    place_m: float = 0.3  # between them
    widths: tuple[int, ...] = (24, 32)  # features of cells 2, 4, ... places wide
    rounds: tuple[int, ...] = (1, 0, 0, 0)  # level of ``widths`` that each round compares
    reach_xy: tuple[int, int] = (6, 3)  # cells ahead or behind, and to either side, that are tried
    scale: tuple[float, float, float] = (0.1, 0.05, 0.01)  # of x [m], y [m], yaw [rad]: an error of 1 in training


class EgoMotion(nn.Module):
    """Two moments of all cameras -> one step (``evaluators.ego_motion.path``)."""

    places_P3: Tensor
    scale: Tensor

    def __init__(self, config: EgoMotionConfig) -> None:
        super().__init__()
        self.config = config
        befores = (_COLOURS, *config.widths)
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
        # Of choices among displacements, a quarter of its logarithm, so that it learns as fast as the rest; dull choices draw every
        # displacement to the middle.
        self.sharpness = nn.Parameter(torch.full((len(config.widths),), 0.9))
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
        out = [picture_B4XY[:, :_COLOURS]]  # where cameras see does not move with the ground, and must not be compared
        for look in self.look:
            out.append(look(out[-1]))
        return out[1:]

    def _off(self, level: int, still: list[Tensor], moved: list[Tensor], before_B4XY: Tensor, after_B4XY: Tensor) -> Tensor:
        """By which step [B, 3] the moved picture is still off."""
        own, other = F.normalize(still[level], dim=1), F.normalize(moved[level], dim=1)
        wide = 2 ** (level + 1)
        seen, seen_too = (wholly_seen(picture, wide) for picture in (before_B4XY, after_B4XY))
        cost_BDXY, shifts_D2 = compared(own, other, self.config.reach_xy)
        cost_BDXY, sight_BDXY = cost_BDXY.float(), compared(seen, seen_too, self.config.reach_xy)[0]
        chance_BDXY = ((4 * self.sharpness[level]).exp() * cost_BDXY + (sight_BDXY + 1e-6).log()).softmax(1)
        where_BXY2 = torch.einsum("bdxy,dc->bxyc", chance_BDXY, shifts_D2)
        spread_BXY2 = torch.einsum("bdxy,dc->bxyc", chance_BDXY, shifts_D2.square()) - where_BXY2.square()
        counts = F.softplus(self.count[level](torch.cat([still[level], cost_BDXY], dim=1)).float()) * seen
        weights = counts[:, 0, ..., None] / (spread_BXY2 + _SURE).square()
        cell_m = wide * self.config.place_m
        places = F.avg_pool2d(self.places_P3[:, :2].T.unflatten(1, self.config.places_xy)[None], wide)
        found = where_BXY2.flatten(1, 2) * cell_m
        first = -elected(chance_BDXY, counts, shifts_D2) * cell_m
        return small_motion(places.flatten(2).transpose(1, 2) + found, found, weights.flatten(1, 2), cell_m, first)


@torch.no_grad()
def elected(chance_BDXY: Tensor, counts_B1XY: Tensor, shifts_D2: Tensor) -> Tensor:
    """The displacement [B, 2] in cells that most of what cells say goes with: each has a vote that no other can outweigh."""
    votes = (counts_B1XY * (chance_BDXY + _ASTRAY).log()).flatten(2).sum(-1)
    return shifts_D2[votes.argmax(1)]


def wholly_seen(picture_B4XY: Tensor, wide: int) -> Tensor:
    """1 where a camera sees a cell of so many places and all around it [B, 1, X, Y]: edges of sight do not move with the ground."""
    unseen = F.max_pool2d((picture_B4XY[:, 3:] == 0).float(), wide)
    return 1 - F.max_pool2d(F.pad(unseen, (_EDGE,) * 4, value=1.0), 2 * _EDGE + 1, 1)


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


def small_motion(places_BN2: Tensor, found_BN2: Tensor, weights_BN2: Tensor, near_m: float, first_B2: Tensor) -> Tensor:
    """The step [B, 3] that explains best how far cells went, to first order in its turn.

    Each direction has its own weight: a line tells nothing along itself. Cells farther than ``near_m`` off a first guess lose theirs, then
    those off what fits the others (Geman and McClure, 1987).

    Args:
        places_BN2: where the cells are in the later picture [m].
        found_BN2: from where they were in the earlier one [m].
        first_B2: where the ego went, as a first guess.
    """
    x, y = places_BN2.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows = torch.stack([torch.stack([one, zero, -y], dim=-1), torch.stack([zero, one, x], dim=-1)], dim=-2)  # [B, N, 2, 3]
    step = torch.cat([first_B2, torch.zeros_like(first_B2[:, :1])], dim=-1)
    for _ in range(_FITS):
        missed = (torch.einsum("bnij,bj->bni", rows, step.detach()) + found_BN2).square().sum(-1, keepdim=True).detach()
        step = _fitted(rows, -found_BN2, weights_BN2 / (1 + missed / near_m**2).square())
    return step


def _fitted(rows_BN23: Tensor, aims_BN2: Tensor, weights_BN2: Tensor) -> Tensor:
    """Least weighted squares [B, 3]; zero where nothing has weight."""
    weights = weights_BN2 / weights_BN2.sum((1, 2), keepdim=True).clamp_min(1e-6)
    normal = torch.einsum("bnij,bni,bnik->bjk", rows_BN23, weights, rows_BN23)
    right = torch.einsum("bnij,bni,bni->bj", rows_BN23, weights, aims_BN2)
    return torch.linalg.solve(normal + 1e-5 * torch.eye(3).to(normal), right)


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
