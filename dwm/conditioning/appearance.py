"""What the log's first frame looked like, laid over every later frame's layout.

The layout says what stands where; the frame says how such things look in this street, and examples from other logs
(``things``) say it of things that the frame does not show. So new ground, new fronts and new cars have a look where no
memory reaches, and it stays the same for a minute. Everything is drawn at the images' own resolution.

Shapes: V views, H W pixels of an image, P pixels of one kind of surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dwm.conditioning.frontage import Frontage
from dwm.conditioning.layout import Layout, LayoutBoxes
from dwm.conditioning.looks.boxes import BoxLook, BoxPixels, Surroundings
from dwm.conditioning.looks.fronts import FrontLook, FrontPixels
from dwm.conditioning.looks.ground import Crossings, GroundLook, GroundPixels, Kerb
from dwm.conditioning.looks.sky import SkyLook
from dwm.conditioning.things import Things
from dwm.mipmap import Mipmap, pixel_footprint_m
from dwm.raycast import PinholeViews
from dwm.scenario.conditions import CLEAR, Air
from dwm.scenes.types import MAP_LAYERS, Camera, SceneMap

Pixels = NDArray[np.int64]  # [P] places in flat images
_HORIZON_M = 90.0  # an imagined wall farther away is the end of sight, not a front
_RANGE_M = 150.0  # of the ground
_SKY_ALIKE = 0.1  # a wall's pixels that differ from the sky by this share of its brightness show the sky above the true front


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A moment's layout and what it was cast from."""

    cameras: tuple[Camera, ...]  # for images of the size to be painted
    ego_to_global: NDArray[np.float64]  # [4, 4]
    layout: Layout
    boxes: LayoutBoxes
    tokens: tuple[str, ...]  # per box: which thing it is


class Street:
    """The map's part in appearance."""

    def __init__(self, scene_map: SceneMap) -> None:
        self.kerb, self.crossings, self.frontage = Kerb(scene_map), Crossings(scene_map), Frontage(scene_map)
        x, y = scene_map.origin_xy_m.tolist()
        self.layers = Mipmap(torch.from_numpy(scene_map.layers), scene_map.metres_per_pixel, (x, y))


class Appearance:
    """The look of one true frame."""

    def __init__(self, street: Street, things: Things, view: View, images_V3HW: Tensor, air: Air = CLEAR) -> None:
        """``images`` [V, 3, H, W] in [-1, 1] belong to ``view``; in its ``air`` things that they do not show will be seen."""
        self._street, here = street, _Surfaces(street, view)
        colours = images_V3HW.float().permute(0, 2, 3, 1).reshape(-1, 3).cpu().numpy()
        ground, wall, heaven = here.without(here.is_box)
        self._ground = GroundLook(here.ground(ground), colours[ground])
        self._sky = SkyLook(here.tangent(heaven), colours[heaven])
        at_wall, (above, known) = colours[wall], self._sky.at(here.tangent(wall))
        brightness = (above + 1).mean(-1)  # at night everything is near to black
        is_sky = (np.abs(at_wall - above).mean(-1) < _SKY_ALIKE * brightness) & (known > 0)
        self._fronts = FrontLook(here.fronts(wall), at_wall, is_sky)
        self._boxes = BoxLook(things, here.boxes(), colours[np.flatnonzero(here.is_box)], self._surroundings(air))

    def _surroundings(self, air: Air) -> Surroundings:
        """Air of the sky's colour at the horizon; clear where no sky was seen."""
        colour, known = self._sky.at(np.zeros(1))
        return Surroundings(
            extinction_per_m=air.extinction_per_m * float(known[0] > 0), haze_3=colour[0], road_3=self._ground.road, lamps_on=air.lamps_on
        )  # fmt: skip

    def paint(self, view: View) -> tuple[Tensor, Tensor]:
        """Images [V, 3, H, W] in [-1, 1] of another moment, and the share [V, 1, H, W] that has a look."""
        there = _Surfaces(self._street, view)
        views, height, width = there.is_box.shape
        things, certain, solid = self._boxes.at(there.boxes())
        hidden = np.zeros_like(there.is_box)
        hidden[there.is_box] = solid
        ground, wall, heaven = there.without(hidden)
        images, known = np.zeros((hidden.size, 3), np.float32), np.zeros(hidden.size, np.float32)
        images[ground], known[ground] = self._ground.at(there.ground(ground))
        images[heaven], known[heaven] = self._sky.at(there.tangent(heaven))
        fronts, share, sky = self._fronts.at(there.fronts(wall))
        above, _ = self._sky.at(there.tangent(wall))
        images[wall], known[wall] = fronts + sky[:, None] * (above - fronts), share
        thing = np.flatnonzero(hidden)
        images[thing], known[thing] = things[solid], certain[solid]
        device = view.layout.depth_VHW.device
        painted = torch.from_numpy(images).to(device).view(views, height, width, 3).permute(0, 3, 1, 2)
        return painted, torch.from_numpy(known).to(device).view(views, 1, height, width)


class _Surfaces:
    """What each pixel of a view shows, boxes aside, and which box is before it; each surface with its own coordinates.

    P pixels are named by their places in the flat [V * H * W] images.
    """

    def __init__(self, street: Street, view: View) -> None:
        self._street, self._view = street, view
        camera = view.cameras[0]
        poses = torch.from_numpy(np.stack([view.ego_to_global @ c.camera_to_ego for c in view.cameras])).float()
        intrinsics = torch.from_numpy(np.stack([c.intrinsics for c in view.cameras])).float()
        rays = PinholeViews(poses, intrinsics, camera.height_px, camera.width_px)
        self._origins, directions = rays.origins_V3.numpy(), rays.directions_VHW3.numpy()
        self._rays, self._shape = directions.reshape(-1, 3), directions.shape[:3]
        self._focal_px = float(intrinsics[:, 0, 0].mean())
        box = view.layout.box_VHW.cpu().numpy()
        rows, columns = (np.arange(n) * m // n for n, m in zip(self._shape[1:], box.shape[1:], strict=True))
        self._box = box[:, rows[:, None], columns]
        self.is_box = self._box >= 0
        wall, self._edges = self._walls()
        down = directions[..., 2]
        plane = np.where(down < 0, -self._origins[:, None, None, 2] / np.minimum(down, -1e-6), np.inf)
        self.is_wall = (wall[:, None] < plane) & (wall[:, None] < _HORIZON_M)
        self.is_ground = ~self.is_wall & (plane < np.minimum(wall[:, None], _RANGE_M))
        self.is_sky = ~(self.is_wall | self.is_ground)
        self._depth_m = np.where(self.is_wall, wall[:, None], np.minimum(plane, _RANGE_M)).astype(np.float32).ravel()

    def without(self, hidden: NDArray[np.bool_]) -> list[Pixels]:
        """Pixels of ground, wall and sky that are not hidden [V, H, W]."""
        return [np.flatnonzero(surface & ~hidden) for surface in (self.is_ground, self.is_wall, self.is_sky)]

    def ground(self, at: Pixels) -> GroundPixels:
        xy, depth_m = self._points(at)[:, :2], self._depth_m.take(at)
        x, y, z = (torch.from_numpy(np.ascontiguousarray(a)) for a in (xy[:, 0], xy[:, 1], depth_m))
        height_m = max(float(self._origins[:, 2].mean()), 0.5)
        layers = self._street.layers.sample(x, y, pixel_footprint_m(z, self._focal_px, height_m)).numpy()
        kerb, crossing, place = (np.zeros(len(xy), np.int64) for _ in range(3))
        on_road, on_crossing = (layers[:, MAP_LAYERS.index(name)] > 0 for name in ("drivable", "ped_crossing"))
        kerb[on_road] = self._street.kerb.bins(xy[on_road])
        crossing[on_crossing], place[on_crossing] = self._street.crossings.locate(xy[on_crossing])
        return GroundPixels(layers=layers, depth_m=depth_m, kerb=kerb, crossing=crossing, place=place)

    def tangent(self, at: Pixels) -> NDArray[np.floating]:
        """Tangent of the elevation [P], about: the sky lies so far away that a camera's height is nothing."""
        return self._rays[:, 2].take(at)

    def fronts(self, at: Pixels) -> FrontPixels:
        name, arc = self._street.frontage.locate(self._edges.reshape(-1, 2))
        along = np.abs(np.gradient(arc.reshape(self._edges.shape[:2]), axis=1)).ravel()
        _, height, width = self._shape
        column = at // (height * width) * width + at % width
        footprint_m = np.maximum(along[column], self._depth_m.take(at) / self._focal_px)
        return FrontPixels(name=name[column], arc_m=arc[column], z_m=self._points(at)[:, 2], footprint_m=footprint_m)

    def boxes(self) -> BoxPixels:
        """The rays that enter boxes."""
        boxes, which = self._view.boxes, self._box[self.is_box]
        at = np.flatnonzero(self.is_box)
        half = boxes.sizes_wlh_m[:, [1, 0, 2]] / 2
        cos, sin = np.cos(boxes.yaws_rad)[which], np.sin(boxes.yaws_rad)[which]

        def local(xyz: NDArray[np.floating]) -> NDArray[np.floating]:
            return np.stack([cos * xyz[:, 0] + sin * xyz[:, 1], cos * xyz[:, 1] - sin * xyz[:, 0], xyz[:, 2]], -1) / half[which]

        return BoxPixels(
            tokens=self._view.tokens, classes=boxes.classes, heights_m=boxes.sizes_wlh_m[:, 2], which=which,
            origin=local(self._views_origin(at) - boxes.centers_m[which]), ray=local(self._rays.take(at, axis=0)),
        )  # fmt: skip

    def _points(self, at: Pixels) -> NDArray[np.floating]:
        """Global positions [P, 3] in metres."""
        return self._views_origin(at) + self._rays.take(at, axis=0) * self._depth_m.take(at)[:, None]

    def _views_origin(self, at: Pixels) -> NDArray[np.floating]:
        """Where the camera of each pixel stands [P, 3]."""
        _, height, width = self._shape
        return self._origins.take(at // (height * width), axis=0)

    def _walls(self) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """z-depth [V, W] of the imagined wall and where the open ground before it ends [V, W, 2], in every column of pixels.

        Between the layout's columns they are interpolated, unless the wall jumps there.
        """
        depth, edges = self._view.layout.wall_depth_VW.cpu().numpy(), self._view.layout.edge_xy_VW2.cpu().numpy()
        n, width = depth.shape[1], self._shape[2]
        at = ((np.arange(width) + 0.5) * n / width - 0.5).clip(0, n - 1)
        left = at.astype(np.int64).clip(max=max(n - 2, 0))
        right, nearest = np.minimum(left + 1, n - 1), at.round().astype(np.int64)
        share = at - left
        smooth = np.abs(depth[:, right] - depth[:, left]) < 0.1 * depth[:, left] + 0.5
        between = depth[:, left] * (1 - share) + depth[:, right] * share
        edge = edges[:, left] * (1 - share)[:, None] + edges[:, right] * share[:, None]
        return np.where(smooth, between, depth[:, nearest]), np.where(smooth[..., None], edge, edges[:, nearest])
