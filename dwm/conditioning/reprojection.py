"""Carries an earlier frame along the commanded path: each target pixel asks where it was in the source frame.

Backward warping with the layout's depth. Pixels on a box move with their box; what the source cameras did not see, or
saw hidden behind something else, or saw so small that it would be a blur here, is marked invalid. This is the memory mode ``past``: it uses the source frame only.

Shapes: S source views, V target views, H W layout pixels, P = V*H*W.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dwm.conditioning.layout import Layout, LayoutBoxes
from dwm.geometry import invert
from dwm.scenes.types import Camera

_NEAR_M = 0.3
# What has been enlarged more than this is better painted anew than carried on.
LEAST_SHARPNESS = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFrame:
    """A six-camera frame to carry along."""

    images_SCHW: Tensor  # float32 in [-1, 1]
    cameras: tuple[Camera, ...]  # at any resolution
    ego_to_global: NDArray[np.float64]  # [4, 4]
    layout: Layout
    boxes: LayoutBoxes
    sharpness_SHW: Tensor | None = None  # see ``Trace``, of this frame's own pixels; None: sharp throughout


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Where in the source frame each pixel of a target is."""

    view_VHW: Tensor  # source view
    uv_VHW2: Tensor  # place in its image, which spans [-1, 1]
    valid_VHW: Tensor  # bool: the source saw it, sharply enough to be of use
    sharpness_VHW: Tensor  # true pixels per pixel, along a side, in [0, 1]: below 1 where the picture has been enlarged


def reproject(
    source: SourceFrame, target: Layout, target_boxes: LayoutBoxes, same_box: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """The source as the target's cameras would see it: images [V, 3, H', W'] and validity [V, 1, h, w] in {0, 1}.

    H' W' is the source's resolution, h w the layout cast's. ``same_box`` [A] gives, for each target box, its index
    among the source's boxes, or -1 when it was not there.
    """
    found = trace(source, target, target_boxes, same_box)
    return fetched(source, found), found.valid_VHW[:, None].float()


def fetched(source: SourceFrame, found: Trace) -> Tensor:
    """The source's colours [V, 3, H', W'] at the places of a trace."""
    return _sample(source.images_SCHW, found.view_VHW, found.uv_VHW2)


def trace(source: SourceFrame, target: Layout, target_boxes: LayoutBoxes, same_box: NDArray[np.int64]) -> Trace:
    """Where the target's pixels are in the source; arguments as for ``reproject``."""
    v, h, w, _ = target.points_VHW3.shape
    points, gone = _where_it_was(source, target, target_boxes, same_box)
    own_view = torch.arange(v, device=points.device).repeat_interleave(h * w)
    view, uv, depth, seen = _best_view(source, points, own_view)
    focal = torch.tensor([c.resized(w, h).intrinsics[0, 0] for c in source.cameras], device=points.device).float()
    reduced = (target.depth_VHW.flatten() / focal[own_view]) / (depth / focal[view]).clamp(min=1e-6)
    sharpness = reduced.clamp(max=1.0)
    if source.sharpness_SHW is not None:
        column, row = _cells(uv, w, h)
        sharpness = sharpness * source.sharpness_SHW[view, row, column]
    valid = seen & ~gone & (sharpness >= LEAST_SHARPNESS)
    return Trace(
        view_VHW=view.view(v, h, w), uv_VHW2=uv.view(v, h, w, 2), valid_VHW=valid.view(v, h, w),
        sharpness_VHW=sharpness.view(v, h, w),
    )  # fmt: skip


def _where_it_was(
    source: SourceFrame, target: Layout, boxes: LayoutBoxes, same_box: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Positions [P, 3] at the source's time, and which pixels show a box that did not exist then [P]."""
    points, box = target.points_VHW3.reshape(-1, 3).clone(), target.box_VHW.flatten()
    gone = torch.zeros_like(box, dtype=torch.bool)
    on_box = (box >= 0).nonzero()[:, 0]
    if not len(on_box):
        return points, gone
    device = points.device
    before = same_box.clip(min=0)
    n = len(source.boxes.yaws_rad)
    if n == 0:
        gone[on_box] = True
        return points, gone
    turn = torch.from_numpy(source.boxes.yaws_rad[before] - boxes.yaws_rad).float().to(device)
    old = torch.from_numpy(source.boxes.centers_m[before]).float().to(device)
    new = torch.from_numpy(boxes.centers_m).float().to(device)
    which = box[on_box]
    offset = points[on_box] - new[which]
    cos, sin = turn[which].cos(), turn[which].sin()
    moved = torch.stack([cos * offset[:, 0] - sin * offset[:, 1], sin * offset[:, 0] + cos * offset[:, 1], offset[:, 2]], -1)
    points[on_box] = moved + old[which]
    gone[on_box] = torch.from_numpy(same_box < 0).to(device)[which]
    return points, gone


def _best_view(source: SourceFrame, points: Tensor, own_view: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each point: the source view to take it from [P], its position there in [-1, 1] [P, 2], its z-depth [P], and
    whether it is seen [P].

    Seen before hidden, then the point's own camera before the others, then the view that has it nearest to the middle.
    """
    best_score = torch.full((len(points),), -torch.inf, device=points.device)
    best_view = torch.zeros(len(points), dtype=torch.long, device=points.device)
    best_uv = torch.zeros(len(points), 2, device=points.device)
    best_depth = torch.ones(len(points), device=points.device)
    seen = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    _, h, w = source.layout.depth_VHW.shape
    for s, camera in enumerate(source.cameras):
        uv, depth = _look(camera, source.ego_to_global, points)
        margin = torch.where(depth > _NEAR_M, 1 - uv.abs().amax(-1), -torch.inf)
        column, row = _cells(uv, w, h)
        visible = (margin > 0) & (depth < source.layout.depth_VHW[s, row, column] * 1.15 + 0.8)
        score = margin.clamp(min=-1e6) + 4.0 * visible + 2.0 * ((own_view == s) & (margin > 0))
        better = score > best_score
        best_score = torch.where(better, score, best_score)
        best_view = torch.where(better, s, best_view)
        best_uv = torch.where(better[:, None], uv, best_uv)
        best_depth = torch.where(better, depth, best_depth)
        seen = torch.where(better, visible, seen)
    return best_view, best_uv, best_depth, seen


def _cells(uv: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Columns and rows of positions [P, 2] in [-1, 1]."""
    column, row = (((uv[:, i] + 1) / 2 * n).long().clamp(0, n - 1) for i, n in ((0, width), (1, height)))
    return column, row


def _look(camera: Camera, ego_to_global: NDArray[np.float64], points: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [P, 2] of global points in an image that spans [-1, 1], and z-depths [P]."""
    pose = torch.from_numpy(invert(ego_to_global @ camera.camera_to_ego)).float().to(points.device)
    k = camera.resized(2, 2).intrinsics
    local = points @ pose[:3, :3].T + pose[:3, 3]
    z = local[:, 2].clamp(min=_NEAR_M)
    u = float(k[0, 0]) * local[:, 0] / z + float(k[0, 2]) - 1
    v = float(k[1, 1]) * local[:, 1] / z + float(k[1, 2]) - 1
    return torch.stack([u, v], dim=-1), local[:, 2]


def _sample(images_SCHW: Tensor, view_VHW: Tensor, uv_VHW2: Tensor) -> Tensor:
    """Images [V, 3, H', W'] sampled at the source's resolution with bilinearly enlarged look-up positions."""
    n_views = len(view_VHW)
    height, width = images_SCHW.shape[-2:]
    grid = F.interpolate(uv_VHW2.permute(0, 3, 1, 2), size=(height, width), mode="bilinear", align_corners=False).permute(
        0, 2, 3, 1
    )
    view = F.interpolate(view_VHW[:, None].float(), size=(height, width), mode="nearest")[:, 0].long()
    # Enlarged positions are blends across seams between views: there, fall back to the nearest position.
    sharp = F.interpolate(uv_VHW2.permute(0, 3, 1, 2), size=(height, width), mode="nearest").permute(0, 2, 3, 1)
    jump = (grid - sharp).abs().amax(-1, keepdim=True) > 0.08
    grid = torch.where(jump, sharp, grid).clamp(-1, 1)
    out = torch.zeros(n_views, images_SCHW.shape[1], height, width, device=images_SCHW.device)
    for s in view.unique().tolist():
        for v in range(n_views):
            mask = view[v] == s
            if mask.any():
                sampled = F.grid_sample(
                    images_SCHW[s : s + 1],
                    grid[v][mask][None, None],
                    mode="bilinear",
                    padding_mode="border",
                    align_corners=False,
                )
                out[v][:, mask] = sampled[0, :, 0]
    return out
