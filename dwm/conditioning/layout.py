"""Layout maps: labelled boxes and the map projected into every camera, with a depth for every pixel.

The ray caster meets the labels instead of the world: boxes as boxes, the map as painted ground, and, because no
nuScenes map knows buildings, a wall some metres beyond the first stretch that is neither road nor walkway in each
image column. That depth is what carries earlier frames along a new path (``dwm.conditioning.reprojection``).

Shapes: V views, H W pixels of the layout, A boxes, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from dwm.mipmap import Mipmap, pixel_footprint_m
from dwm.raycast import GROUND, SKY, PinholeViews, Primitives, cast
from dwm.scenes.types import DETECTION_CLASSES, MAP_LAYERS, Camera, SceneMap

LAYOUT_CHANNELS = (
    *MAP_LAYERS, "nearness", "is_ground", "is_wall", *DETECTION_CLASSES,
    "sin_heading", "cos_heading", "identity", "part_x", "part_y", "part_z", "speed",
)  # fmt: skip
_RANGE_M = 150.0
_WALL_SETBACK_M = 4.5
_WALL_SUBSTEPS = 5
_WALL_STEPS_M = np.concatenate([np.arange(2.0, 40.0, 1.0), np.arange(40.0, 110.0, 3.0)])


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutBoxes:
    """The boxes of one frame, in the global frame."""

    classes: NDArray[np.int64]  # [A] index into DETECTION_CLASSES
    centers_m: NDArray[np.float64]  # [A, 3]
    sizes_wlh_m: NDArray[np.float64]  # [A, 3]
    yaws_rad: NDArray[np.float64]  # [A]
    speeds_mps: NDArray[np.float64]  # [A]
    identities: NDArray[np.float64]  # [A] in [0, 1), constant over time


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What the labels say about one moment."""

    maps_VCHW: Tensor  # float32, LAYOUT_CHANNELS at half the cast's resolution
    points_VHW3: Tensor  # global position of what each pixel shows, metres; sky lies far away
    depth_VHW: Tensor  # z-depth in metres
    box_VHW: Tensor  # index of the box seen, -1 elsewhere
    wall_depth_VW: Tensor  # z-depth of each image column's wall, metres
    edge_xy_VW2: Tensor  # global position where the open ground before it ends, metres


class LayoutCaster:
    """Casts labels into cameras for one map."""

    def __init__(self, scene_map: SceneMap, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._map = scene_map
        origin = (float(scene_map.origin_xy_m[0]), float(scene_map.origin_xy_m[1]))
        self._layers = Mipmap(torch.from_numpy(scene_map.layers).to(self.device), scene_map.metres_per_pixel, origin)

    def cast(
        self, cameras: tuple[Camera, ...], ego_to_global: NDArray[np.float64], boxes: LayoutBoxes, height: int, width: int
    ) -> Layout:
        """Layout of one moment at ``height`` x ``width`` rays (the maps have half of that).

        ``ego_to_global`` is [4, 4]: one pose for all cameras, as generated frames are simultaneous.
        """
        small = [camera.resized(width, height) for camera in cameras]
        camera_to_global = torch.from_numpy(np.stack([ego_to_global @ c.camera_to_ego for c in small])).float().to(self.device)
        intrinsics = torch.from_numpy(np.stack([c.intrinsics for c in small])).float().to(self.device)
        views = PinholeViews(camera_to_global, intrinsics, height, width)
        hits = cast(views, self._primitives(boxes), _RANGE_M)
        wall, edge_xy = self._wall(views)
        depth = torch.where(hits.index_VHW == SKY, torch.full_like(hits.distance_VHW, _RANGE_M), hits.distance_VHW)
        is_wall = (wall < depth) & (hits.index_VHW < 0)
        depth = torch.where(is_wall, wall, depth)
        points = views.origins_V3[:, None, None] + views.directions_VHW3 * depth[..., None]
        is_ground = (hits.index_VHW == GROUND) & ~is_wall
        maps = self._maps(views, points, depth, is_ground, is_wall, hits.index_VHW, boxes)
        return Layout(
            maps_VCHW=F.avg_pool2d(rearrange(maps, "v h w c -> v c h w"), 2),
            points_VHW3=points, depth_VHW=depth, box_VHW=hits.index_VHW.clamp(min=-1), wall_depth_VW=wall[:, 0], edge_xy_VW2=edge_xy,
        )  # fmt: skip

    def _primitives(self, boxes: LayoutBoxes) -> Primitives:
        half = boxes.sizes_wlh_m[:, [1, 0, 2]] / 2
        return Primitives(
            center_N3=torch.from_numpy(boxes.centers_m.reshape(-1, 3)).float().to(self.device),
            half_N3=torch.from_numpy(half.reshape(-1, 3)).float().to(self.device),
            yaw_N=torch.from_numpy(boxes.yaws_rad).float().to(self.device),
            ellipsoid_N=torch.zeros(len(boxes.classes), dtype=torch.bool, device=self.device),
        )

    def _wall(self, views: PinholeViews) -> tuple[Tensor, Tensor]:
        """z-depth [V, H, W] of the imagined wall, constant along an image column of an upright camera, and where the open
        ground before it ends [V, W, 2]."""
        middle = views.directions_VHW3[:, views.height // 2]  # [V, W, 3]
        planar = middle[..., :2].norm(dim=-1, keepdim=True)
        origin, heading = views.origins_V3[:, None, None, :2], (middle[..., :2] / planar)[:, :, None]
        steps = torch.from_numpy(_WALL_STEPS_M).float().to(self.device)
        blocked = ~self._open(origin + heading * steps[:, None])
        # Before the first open stretch the camera may itself stand off the road: start counting there.
        entered = (~blocked).cumsum(-1) > 0
        ends = blocked & entered
        first = torch.where(ends.any(-1), ends.int().argmax(-1), len(steps) - 1)
        # The step before was open: look between the two.
        before, after = steps[(first - 1).clamp(min=0)], steps[first]
        between = torch.linspace(0, 1, _WALL_SUBSTEPS + 1, device=self.device)[1:]
        finer = before[..., None] + (after - before)[..., None] * between
        closed = ~self._open(origin + heading * finer[..., None])
        distance = torch.where(closed.any(-1), finer.gather(-1, closed.int().argmax(-1, keepdim=True))[..., 0], after)
        edge_xy = (origin + heading * distance[..., None, None])[:, :, 0]
        # Never entered: open country, no wall before the end of sight.
        distance = torch.where(entered.any(-1), distance + _WALL_SETBACK_M, torch.full_like(distance, _RANGE_M))
        return (distance / planar[..., 0])[:, None].expand(-1, views.height, -1), edge_xy

    def _open(self, xy: Tensor) -> Tensor:
        """Whether points [..., 2] lie on a road or a walkway."""
        flat = xy.reshape(-1, 2)
        layers = self._layers.sample(flat[:, 0], flat[:, 1], torch.full_like(flat[:, 0], 1.6))
        on = (layers[:, MAP_LAYERS.index("drivable")] > 0.5) | (layers[:, MAP_LAYERS.index("walkway")] > 0.5)
        return on.view(xy.shape[:-1])

    def _maps(
        self,
        views: PinholeViews,
        points: Tensor,
        depth: Tensor,
        is_ground: Tensor,
        is_wall: Tensor,
        index: Tensor,
        boxes: LayoutBoxes,
    ) -> Tensor:  # [V, H, W, C]
        out = torch.zeros(*depth.shape, len(LAYOUT_CHANNELS), device=self.device)
        n_layers, n_classes = len(MAP_LAYERS), len(DETECTION_CLASSES)
        xy = points[is_ground]
        focal, height = views.intrinsics[:, 0, 0].mean(), views.origins_V3[:, 2].mean().clamp(min=0.5)
        out[is_ground, :n_layers] = self._layers.sample(xy[:, 0], xy[:, 1], pixel_footprint_m(depth[is_ground], focal, height))
        out[..., n_layers] = 8.0 / (8.0 + depth)
        out[..., n_layers + 1], out[..., n_layers + 2] = is_ground.float(), is_wall.float()
        on_box = index >= 0
        if on_box.any():
            which = index[on_box]
            view = on_box.nonzero()[:, 0]
            out[on_box, n_layers + 3 : n_layers + 3 + n_classes] = F.one_hot(
                self._of(boxes.classes, which).long(), n_classes
            ).float()
            out[on_box, n_layers + 3 + n_classes :] = self._box_features(views, points[on_box], view, which, boxes)
        return out

    def _box_features(self, views: PinholeViews, points: Tensor, view: Tensor, which: Tensor, boxes: LayoutBoxes) -> Tensor:
        yaw = self._of(boxes.yaws_rad, which)
        forward = views.camera_to_global[view, :3, 2]
        relative = yaw - torch.atan2(forward[:, 1], forward[:, 0])
        offset = points - self._of(boxes.centers_m, which)
        cos, sin = yaw.cos(), yaw.sin()
        half = self._of(boxes.sizes_wlh_m, which) / 2
        part_x = (cos * offset[:, 0] + sin * offset[:, 1]) / half[:, 1]
        part_y = (-sin * offset[:, 0] + cos * offset[:, 1]) / half[:, 0]
        speed = self._of(boxes.speeds_mps, which).clamp(max=20) / 10
        identity = self._of(boxes.identities, which)
        return torch.stack([relative.sin(), relative.cos(), identity, part_x, part_y, offset[:, 2] / half[:, 2], speed], dim=-1)

    def _of(self, values: NDArray[np.generic], which: Tensor) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).float().to(self.device)[which]
