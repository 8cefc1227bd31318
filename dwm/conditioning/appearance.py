"""What the log's first frame looked like, laid over every later frame's layout.

The layout says what each pixel shows; the frame says how such things look in this street (``looks``). So new ground, new
fronts and new cars have a look where no memory reaches, and it stays the same for a minute.

Shapes: V views, H W rays of a layout, P pixels of one kind of surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dwm.conditioning.frontage import Frontage
from dwm.conditioning.layout import LAYOUT_CHANNELS, Layout
from dwm.conditioning.looks import BoxLook, FrontLook, GroundLook, Kerb, SkyLook
from dwm.scenes.types import MAP_LAYERS, SceneMap

_HORIZON_M = 90.0  # an imagined wall farther away is the end of sight, not a front


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A layout with what is known about its boxes."""

    layout: Layout
    tokens: tuple[str, ...]  # per box: which thing it is
    classes: NDArray[np.int64]  # per box: index into DETECTION_CLASSES


class Street:
    """The map's part in appearance."""

    def __init__(self, scene_map: SceneMap) -> None:
        self.kerb, self.frontage = Kerb(scene_map), Frontage(scene_map)


class Appearance:
    """The look of one true frame."""

    def __init__(self, street: Street, view: View, images_V3HW: Tensor) -> None:
        """``images`` [V, 3, H', W'] in [-1, 1] belong to ``view``, at any resolution."""
        self._street, here = street, _Pixels(street, view)
        height, width = view.layout.depth_VHW.shape[-2:]
        colours = F.adaptive_avg_pool2d(images_V3HW.float(), (height, width)).permute(0, 2, 3, 1).cpu().numpy()
        self._ground = GroundLook(*here.ground(), colours[here.is_ground])
        self._sky = SkyLook(here.sky(), colours[here.is_sky])
        self._fronts = FrontLook(*here.fronts(), here.depth_m[here.is_wall], colours[here.is_wall])
        self._boxes = BoxLook(view.tokens, view.classes, *here.boxes(), colours[here.is_box])

    def paint(self, view: View) -> tuple[Tensor, Tensor]:
        """Images [V, 3, H, W] in [-1, 1] of another moment, and the share [V, 1, H, W] that the frame gave a look."""
        there = _Pixels(self._street, view)
        images, known = np.zeros((*there.depth_m.shape, 3), np.float32), np.zeros(there.depth_m.shape, np.float32)
        for where, (colours, share) in (
            (there.is_ground, self._ground.at(*there.ground())),
            (there.is_sky, self._sky.at(there.sky())),
            (there.is_wall, self._fronts.at(*there.fronts(), there.depth_m[there.is_wall])),
            (there.is_box, self._boxes.at(view.tokens, view.classes, *there.boxes())),
        ):
            images[where], known[where] = colours, share
        device = view.layout.depth_VHW.device
        return torch.from_numpy(images).to(device).permute(0, 3, 1, 2), torch.from_numpy(known).to(device)[:, None]


class _Pixels:
    """The pixels of a layout by kind of surface, each with its own coordinates."""

    def __init__(self, street: Street, view: View) -> None:
        self._street, layout = street, view.layout
        self._fine, self._points = layout.fine_VHWC.cpu().numpy(), layout.points_VHW3.cpu().numpy()
        self._edges, self._box = layout.edge_xy_VW2.cpu().numpy(), layout.box_VHW.cpu().numpy()
        self.depth_m = layout.depth_VHW.cpu().numpy()
        self.is_box, self.is_ground = self._box >= 0, self._of("is_ground") > 0
        self.is_wall = (self._of("is_wall") > 0) & (self.depth_m < _HORIZON_M)
        self.is_sky = ~(self.is_box | self.is_ground | self.is_wall)

    def ground(self) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.int64]]:
        """Shares of the map's layers [P, L], nearness [P], bins of the distance from the road's edge [P]."""
        layers = self._fine[self.is_ground][:, : len(MAP_LAYERS)]
        kerb = self._street.kerb.bins(self._points[self.is_ground][:, :2])
        return layers, self._of("nearness")[self.is_ground], kerb

    def sky(self) -> NDArray[np.floating]:
        """Tangent of the elevation [P], about: the horizon lies so far away that a camera's height is nothing."""
        return self._points[self.is_sky][:, 2] / self.depth_m[self.is_sky]

    def fronts(self) -> tuple[NDArray[np.int64], NDArray[np.floating], NDArray[np.floating]]:
        """Outline [P], metres along it [P] and height in metres [P]."""
        name, arc = self._street.frontage.locate(self._edges.reshape(-1, 2))
        view, _, column = self.is_wall.nonzero()
        at = view * self._edges.shape[1] + column
        return name[at], arc[at], self._points[self.is_wall][:, 2]

    def boxes(self) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        """Which box [P], and the part of it [P, 3] in [-1, 1]."""
        first, last = LAYOUT_CHANNELS.index("part_x"), LAYOUT_CHANNELS.index("part_z")
        return self._box[self.is_box], self._fine[self.is_box][:, first : last + 1]

    def _of(self, name: str) -> NDArray[np.floating]:
        return self._fine[..., LAYOUT_CHANNELS.index(name)]
