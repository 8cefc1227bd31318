"""The log's pictures, ready to be looked up from points in space.

Shapes: S pictures, A things, P points, L levels of reduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import reduce
from numpy.typing import NDArray
from torch import Tensor

from dwm.conditioning.splat import NEAR_M
from dwm.geometry import invert
from dwm.scenes.types import Camera

Array = NDArray[np.float64]
_LEVELS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Labelled things at one moment, in the global frame."""

    agents: NDArray[np.int64]  # [A] numbers that stay with the thing
    centers_m: Array  # [A, 3]
    rotations: Array  # [A, 3, 3]
    sizes_wlh_m: Array  # [A, 3]
    speeds_mps: Array  # [A]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One picture of one camera."""

    image: NDArray[np.uint8]  # [H, W, 3]
    camera: Camera
    ego_to_global: Array  # [4, 4] when it was taken
    boxes: Boxes  # when it was taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Photos:
    """Pictures of one size, each also at half, a quarter and an eighth of it."""

    levels: tuple[Tensor, ...]  # per level [S, H, W, 3] uint8
    global_to_camera_S34: Tensor
    focal_S2: Tensor  # pixels at the first level
    middle_S2: Tensor
    things: dict[int, Tensor]  # per thing [S, 3, 4] box to global when each picture was taken

    def look(self, photo_P: Tensor, xyz_P3: Tensor, pixels_per_m_P: Tensor) -> tuple[Tensor, Tensor]:
        """Colours [P, 3] in [-1, 1] of points where they were when the picture was taken, and whether it shows them [P].

        ``pixels_per_m`` is how large they will be drawn: the picture is reduced to about that first.
        """
        pose = self.global_to_camera_S34.index_select(0, photo_P)
        local = _moved(pose, xyz_P3)
        z = local[:, 2].clamp(min=NEAR_M)
        focal = self.focal_S2.index_select(0, photo_P)
        height, width = self.levels[0].shape[1:3]
        uv = local[:, :2] / z[:, None] * focal + self.middle_S2.index_select(0, photo_P)
        size = torch.tensor([width, height], device=uv.device)
        inside = (local[:, 2] > NEAR_M) & (uv >= 0).all(-1) & (uv < size).all(-1)
        reduction = (focal[:, 0] / z / pixels_per_m_P.clamp(min=1e-6)).clamp(min=1e-6).log2()
        level = reduction.round().clamp(0, len(self.levels) - 1).long()
        colours = torch.zeros(len(z), 3, device=uv.device)
        for n, images in enumerate(self.levels):
            own = (level == n).nonzero()[:, 0]
            if len(own):
                colours[own] = _bilinear(images, photo_P.index_select(0, own), uv.index_select(0, own) / 2**n)
        return colours, inside

    def where_it_was(self, thing: int, photo_P: Tensor, local_P3: Tensor) -> Tensor:
        """Global positions [P, 3] of places on a thing, in metres of its box, when pictures were taken."""
        return _moved(self.things[thing].index_select(0, photo_P), local_P3)

    def to(self, device: torch.device) -> Photos:
        return Photos(
            levels=tuple(level.to(device) for level in self.levels), global_to_camera_S34=self.global_to_camera_S34.to(device),
            focal_S2=self.focal_S2.to(device), middle_S2=self.middle_S2.to(device),
            things={thing: poses.to(device) for thing, poses in self.things.items()},
        )  # fmt: skip


def collect(shots: Sequence[Shot]) -> Photos:
    """Pictures as they come, all of one size."""
    levels = [np.stack([s.image for s in shots])]
    while len(levels) < _LEVELS:
        half = reduce(levels[-1].astype(np.float32), "s (h a) (w b) c -> s h w c", "mean", a=2, b=2)
        levels.append(half.round().astype(np.uint8))
    height, width = levels[0].shape[1:3]
    intrinsics = np.stack([s.camera.resized(width, height).intrinsics for s in shots])
    poses = np.stack([invert(s.ego_to_global @ s.camera.camera_to_ego)[:3] for s in shots])
    things: dict[int, Tensor] = {}
    for i, shot in enumerate(shots):
        for a, agent in enumerate(shot.boxes.agents.tolist()):
            own = things.setdefault(agent, torch.zeros(len(shots), 3, 4))
            own[i] = torch.from_numpy(np.column_stack([shot.boxes.rotations[a], shot.boxes.centers_m[a]]))
    return Photos(
        levels=tuple(map(torch.from_numpy, levels)), global_to_camera_S34=torch.from_numpy(poses).float(), things=things,
        focal_S2=torch.from_numpy(intrinsics[:, [0, 1], [0, 1]]).float(), middle_S2=torch.from_numpy(intrinsics[:, :2, 2]).float(),
    )  # fmt: skip


def _moved(pose_P34: Tensor, xyz_P3: Tensor) -> Tensor:
    """Each point by its own pose."""
    return (pose_P34[:, :, :3] * xyz_P3[:, None]).sum(-1) + pose_P34[:, :, 3]


def _bilinear(images_SHWC: Tensor, photo_P: Tensor, uv_P2: Tensor) -> Tensor:
    """Colours [P, 3] in [-1, 1] at pixels whose middles lie at half integers; beyond the border, the border's."""
    _, height, width, channels = images_SHWC.shape
    u, v = (uv_P2[:, 0] - 0.5).clamp(0, width - 1), (uv_P2[:, 1] - 0.5).clamp(0, height - 1)
    column, row = u.long().clamp(max=width - 2), v.long().clamp(max=height - 2)
    across, down = (u - column)[:, None], (v - row)[:, None]
    flat, first = images_SHWC.view(-1, channels), (photo_P * height + row) * width + column
    a, b, c, d = (flat.index_select(0, first + step).float() for step in (0, 1, width, width + 1))
    mixed = (a * (1 - across) + b * across) * (1 - down) + (c * (1 - across) + d * across) * down
    return mixed / 127.5 - 1
