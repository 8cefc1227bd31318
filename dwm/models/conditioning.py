"""What the world model is told besides the frames, and how it becomes embeddings.

Shapes: B batch, T frames, V views, C channels, H W a grid, L text tokens, N patches of one view, D width, K a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from dwm.models.layers import FourierEmbedder, mlp

WAYPOINT_SIZE = 6  # dx/10 m, dy/10 m, sin dyaw, cos dyaw (all from the window's first frame), speed/10 mps, yaw rate [rad/s]
CAMERA_SIZE = 16  # fx/W, fy/H, cx/W, cy/H, then the 3x4 rows of camera_to_ego with its translation in units of 10 m
PAD_TOKEN = 0  # text id that stands for nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiseCondition:
    """Everything but the noisy frames. A False ``has_*`` flag makes the model ignore that input."""

    waypoints_BTK: Tensor  # see WAYPOINT_SIZE
    cameras_BVK: Tensor  # see CAMERA_SIZE
    times_BT: Tensor  # seconds since the window's first frame
    fps_B: Tensor  # frames per second
    text_BL: Tensor  # int64, PAD_TOKEN at the end
    has_text_B: Tensor  # bool
    has_waypoints_B: Tensor  # bool
    has_layout_B: Tensor  # bool
    has_memory_B: Tensor  # bool
    has_appearance_B: Tensor  # bool
    text_features_BLK: Tensor | None = None  # what an outside encoder makes of the tokens (dwm.models.text_encoder)
    layout_BTVCHW: Tensor | None = None  # projected boxes and map lines, in [0, 1]
    memory_BTVCHW: Tensor | None = None  # latents of earlier frames re-projected into these views
    memory_valid_BTV1HW: Tensor | None = None  # share of each latent pixel that the memory covers, in [0, 1]
    appearance_BTVCHW: Tensor | None = None  # colours of the log's kinds of surface over the layout, as latents
    appearance_known_BTV1HW: Tensor | None = None  # share of each latent pixel whose kind has a colour, in [0, 1]

    def to(self, device: torch.device | str) -> DenoiseCondition:
        """The same condition on a device."""
        return self._map(lambda _, tensor: tensor.to(device, non_blocking=True))

    def frames(self, frames: slice) -> DenoiseCondition:
        """The same condition for a slice of the frames; times and waypoints keep their origin."""
        return self._map(lambda name, tensor: tensor[:, frames] if "_BT" in name else tensor)

    def without(self, *inputs: str) -> DenoiseCondition:
        """The same condition with some of "text", "waypoints", "layout", "memory", "appearance" switched off."""
        off = {f"has_{name}_B": torch.zeros_like(getattr(self, f"has_{name}_B")) for name in inputs}
        return replace(self, **off)

    def _map(self, function: Callable[[str, Tensor], Tensor]) -> DenoiseCondition:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(name, value) for name, value in values.items() if value is not None})


def joined(conditions: Sequence[DenoiseCondition]) -> DenoiseCondition:
    """Conditions of windows of equal length as one batch; all have the same inputs."""
    names = [f.name for f in fields(DenoiseCondition) if getattr(conditions[0], f.name) is not None]
    return DenoiseCondition(**{name: torch.cat([getattr(c, name) for c in conditions]) for name in names})


def camera_rays(cameras_BVK: Tensor, rows: float, cols: float) -> Tensor:
    """Per patch [B, V, rows * cols, 8]: place in the image (u, v in [-1, 1]), ray in the ego frame, camera position / 10 m.

    A picture that is no whole number of patches high or wide has a last one that reaches beyond its edge.
    """
    fx, fy, cx, cy = cameras_BVK[..., None, :4].unbind(-1)  # [B, V, 1] each
    v, u = torch.meshgrid(
        (torch.arange(math.ceil(rows), device=cameras_BVK.device) + 0.5) / rows,
        (torch.arange(math.ceil(cols), device=cameras_BVK.device) + 0.5) / cols,
        indexing="ij",
    )
    u, v = u.flatten(), v.flatten()
    pose = rearrange(cameras_BVK[..., 4:], "b v (r c) -> b v r c", r=3)
    in_camera = torch.stack([(u - cx) / fx, (v - cy) / fy, torch.ones_like((u - cx) / fx)], dim=-1)
    with torch.autocast(pose.device.type, enabled=False):  # a degree is not to be rounded away
        rays = torch.nn.functional.normalize(in_camera @ pose[..., :3].transpose(-1, -2), dim=-1)
    place = torch.stack([2 * u - 1, 2 * v - 1], dim=-1).expand(*rays.shape[:-1], 2)
    return torch.cat([place, rays, pose[..., None, :, 3].expand_as(rays)], dim=-1)


class FrameEmbedder(nn.Module):
    """One vector per frame: noise level, time, frame rate, waypoints, and which optional inputs are there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.level = FourierEmbedder(1, width, octaves=(-2, 6))
        self.time = FourierEmbedder(1, width, octaves=(-6, 4))
        self.fps = FourierEmbedder(1, width, octaves=(-2, 3))
        self.waypoints = FourierEmbedder(WAYPOINT_SIZE, width, octaves=(-3, 5))
        self.no_waypoints = nn.Parameter(torch.randn(width) * 0.02)
        self.no_layout = nn.Parameter(torch.randn(width) * 0.02)
        self.no_memory = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, levels_BT: Tensor, condition: DenoiseCondition) -> Tensor:
        """[B, T, D]."""
        has_layout, has_memory = present(condition)
        path = self.path(condition)
        rate = self.fps((condition.fps_B / 12.0).log2()[:, None, None])
        absent = (~has_layout)[:, None, None] * self.no_layout + (~has_memory)[:, None, None] * self.no_memory
        return path + rate + absent + self.time(condition.times_BT[..., None]) + self.level(levels_BT[..., None])

    def path(self, condition: DenoiseCondition) -> Tensor:
        """What the waypoints say alone [B, T, D]."""
        path = self.waypoints(condition.waypoints_BTK)
        return torch.where(condition.has_waypoints_B[:, None, None], path, self.no_waypoints.to(path.dtype))


def present(condition: DenoiseCondition) -> tuple[Tensor, Tensor]:
    """Whether layout and memory are really there, bool [B] each: a missing tensor counts as a False flag."""
    no = torch.zeros_like(condition.has_layout_B)
    return (
        no if condition.layout_BTVCHW is None else condition.has_layout_B,
        no if condition.memory_BTVCHW is None else condition.has_memory_B,
    )


class TextEmbedder(nn.Module):
    """Token table with a learned null prompt."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.table.weight, std=0.02)
        self.null = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, condition: DenoiseCondition) -> tuple[Tensor, Tensor]:
        """Tokens [B, 1 + L, D] and their mask [B, 1 + L]; the first is the null token, seen exactly when nothing else is."""
        mask = (condition.text_BL != PAD_TOKEN) & condition.has_text_B[:, None]
        first = ~mask.any(dim=1, keepdim=True)
        null = self.null.expand(len(mask), 1, -1)
        return torch.cat([null, self.table(condition.text_BL)], dim=1), torch.cat([first, mask], dim=1)


class TextFeatureEmbedder(nn.Module):
    """Outside text features through two layers (PixArt's caption projection), with a learned null prompt."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.layers = mlp(features, width, width)
        self.null = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, condition: DenoiseCondition) -> tuple[Tensor, Tensor]:
        """As ``TextEmbedder``: ``text_BL`` says where text is. Without features every prompt is the null prompt."""
        features, tokens = condition.text_features_BLK, condition.text_BL
        null = self.null.expand(len(tokens), 1, -1)
        if features is None:
            return null, torch.ones_like(tokens[:, :1], dtype=torch.bool)
        mask = (tokens != PAD_TOKEN) & condition.has_text_B[:, None]
        return torch.cat([null, self.layers(features)], dim=1), torch.cat([~mask.any(dim=1, keepdim=True), mask], dim=1)
