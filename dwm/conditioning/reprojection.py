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
        sharpness = sharpness * source.sharpness_SHW[view, _cell(uv[:, 1], h), _cell(uv[:, 0], w)]
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
    score = torch.full((len(points),), -torch.inf, device=points.device)
    best_view = torch.zeros(len(points), dtype=torch.long, device=points.device)
    best_u, best_v, best_depth = torch.zeros_like(score), torch.zeros_like(score), torch.ones_like(score)
    seen = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    _, h, w = source.layout.depth_VHW.shape
    for s, camera in enumerate(source.cameras):
        u, v, depth = _look(camera, source.ego_to_global, points)
        margin = torch.where(depth > _NEAR_M, 1 - torch.maximum(u.abs(), v.abs()), -torch.inf)
        hidden_m = source.layout.depth_VHW[s].flatten().index_select(0, _cell(v, h) * w + _cell(u, w)) * 1.15 + 0.8
        visible = (margin > 0) & (depth < hidden_m)
        here = margin.clamp(min=-1e6) + 4.0 * visible + 2.0 * ((own_view == s) & (margin > 0))
        better = (here > score).nonzero()[:, 0]
        best_view.index_fill_(0, better, s)
        for best, found in ((score, here), (best_u, u), (best_v, v), (best_depth, depth), (seen, visible)):
            best.index_copy_(0, better, found.index_select(0, better))
    return best_view, torch.stack([best_u, best_v], -1), best_depth, seen


def _cell(place: Tensor, n: int) -> Tensor:
    """Which of ``n`` cells between -1 and 1 each place is in."""
    return ((place + 1) / 2 * n).long().clamp(0, n - 1)


def _look(camera: Camera, ego_to_global: NDArray[np.float64], points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns and rows [P] of global points in an image that spans [-1, 1], and z-depths [P]."""
    pose = torch.from_numpy(invert(ego_to_global @ camera.camera_to_ego)).float().to(points.device)
    k = camera.resized(2, 2).intrinsics
    x, y, depth = pose[:3, :3] @ points.T + pose[:3, 3:]
    z = depth.clamp(min=_NEAR_M)
    return float(k[0, 0]) * x / z + float(k[0, 2]) - 1, float(k[1, 1]) * y / z + float(k[1, 2]) - 1, depth


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
    grid, view, colours = grid.reshape(-1, 2), view.flatten(), images_SCHW.shape[1]
    out = torch.empty(colours, len(view), device=images_SCHW.device)
    for s in range(len(images_SCHW)):
        at = (view == s).nonzero()[:, 0]
        if len(at):
            places = grid.index_select(0, at)[None, None]
            sampled = F.grid_sample(images_SCHW[s : s + 1], places, padding_mode="border", align_corners=False)
            out.index_copy_(1, at, sampled[0, :, 0])
    return out.view(colours, n_views, height, width).transpose(0, 1).contiguous()
