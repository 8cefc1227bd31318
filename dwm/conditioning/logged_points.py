"""Everything that a log's LiDAR met, with the colours its cameras saw: streets as they stand, things in their boxes.

This is what memory mode ``log`` knows: the whole log, also what was driven past later than the clip's start. Points on
labelled things are kept in the box's own coordinates and appear wherever the box is; the rest is taken to stand still.

Shapes: P points, V cameras of one shot, A agents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from dwm.conditioning.photos import Boxes, Photos, Shot, collect
from dwm.conditioning.splat import NEAR_M, Surfels, front
from dwm.scenes.types import Camera

Array = NDArray[np.float64]
VOXEL_M = 0.1  # points of the street nearer to each other than this are one
RANGE_M = 90.0
_STREET = -1  # stands where things have their number
_THING_VOXEL_M = 0.05
_LEVELS = 4  # each with twice the voxel of the one before
_TILE_M = 8.0
_VOXELS_PER_RAD = 60.0  # a voxel of the level in use is two to three pixels of the front camera at the world model's size
_AROUND_BOX_M = 0.25  # what lies this close to a box is neither street nor surely on the thing
_FLOOR_M = 0.12  # what lies lower in a box is the ground
_MOVING_MPS = 0.5
_PENDING = 2_000_000  # points held before they are thinned
_PLANE_VOXEL_M, _THING_PLANE_VOXEL_M, _PLANE_POINTS = 0.25, 0.12, 12  # of what a normal is measured on
_FLAT, _LINE = 0.08, 0.06  # least over middle, middle over largest spread of a plane's points
_NEIGHBOUR, _REACH = 6, 0.8  # a disc's radius in distances to that neighbour ...
_RADIUS_M, _LOOSE_RADIUS_M = (0.06, 0.6), 0.2  # ... within these bounds; the largest one in no plane
_ALONE_M, _ALONE = (
    0.3,
    0.03,
)  # a point whose neighbours are further away than this and this share of its range stands for nothing
_COLOUR_RANGE_M = 60.0
_VISIBLE, _VISIBLE_M = 1.03, 0.15
_DEPTH_HW = (128, 224)  # of the images that tell what a picture shows
_DENSE, _FILLED = 0.4, 0.5  # share of the 5 x 5 pixels around that must be known


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One turn of the LiDAR."""

    xyz_m: Array  # [P, 3] global
    origin_m: Array  # [3] where the sensor was
    boxes: Boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The log's points as cameras elsewhere would see them."""

    images_V3HW: Tensor  # in [-1, 1]; 0 where nothing is known
    known_VHW: Tensor  # bool
    sharpness_VHW: Tensor  # true pixels per pixel along a side, in [0, 1], as ``reprojection.Trace``
    depth_VHW: Tensor  # z-depth in metres, inf where nothing is known
    thing_VHW: Tensor  # int64 number of the thing seen, -1 on none


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedPoints:
    """The street as surfels at several resolutions, each sorted into tiles; the things in metres of their boxes; pictures."""

    levels: tuple[Surfels, ...]
    tiles: tuple[NDArray[np.int64], ...]  # per level [K, 4]: x and y of the tile in _TILE_M, first and last + 1 of its surfels
    things: dict[int, Surfels]
    photos: Photos | None  # None while the points have no colours yet

    def ahead(self, camera: Camera, ego_to_global: Array, boxes: Boxes) -> Surfels:
        """What may be in sight of a camera: near streets finely, far ones coarsely, and things where they are now."""
        parts = []
        for n, (level, tiles) in enumerate(zip(self.levels, self.tiles, strict=True)):
            wanted = _in_view(tiles, camera, ego_to_global, _TILE_M / 2**0.5) & (_level(tiles, ego_to_global) == n)
            parts += [level.part(a, b) for a, b in tiles[wanted, 2:].tolist()]
        seen = _in_view(boxes.centers_m[:, :2] / _TILE_M - 0.5, camera, ego_to_global, boxes.sizes_wlh_m.max(1, initial=0.0))
        for i in np.flatnonzero(seen):
            if own := self.things.get(int(boxes.agents[i])):
                parts.append(_placed(own, boxes.centers_m[i], boxes.rotations[i]))
        return Surfels.concatenate(parts or [self.levels[0].part(0, 0)])

    def draw(self, cameras: Sequence[Camera], ego_to_global: Array, boxes: Boxes, height: int, width: int) -> Drawn:
        """What cameras at one pose [4, 4] see of it, with every thing in its present box."""
        views = [self._draw(camera, ego_to_global, boxes, height, width) for camera in cameras]
        images, known, sharpness, depth, thing = (torch.stack(column) for column in zip(*views, strict=True))
        images, known, sharpness = _closed(images.movedim(-1, 1), known, sharpness)
        return Drawn(images_V3HW=images, known_VHW=known, sharpness_VHW=sharpness, depth_VHW=depth, thing_VHW=thing)

    def _draw(self, camera: Camera, ego_to_global: Array, boxes: Boxes, height: int, width: int) -> tuple[Tensor, ...]:
        """One view: image [H, W, 3], known, sharpness, depth and thing [H, W]."""
        surfels = self.ahead(camera, ego_to_global, boxes)
        seen = front(surfels, camera, ego_to_global, height, width)
        index, depth = seen.index_HW.flatten(), seen.depth_HW.flatten()
        pixel = (index >= 0).nonzero()[:, 0]
        own = surfels.select(index.index_select(0, pixel))
        size = float(camera.resized(width, height).intrinsics[0, 0]) / depth.index_select(0, pixel)
        image, sharpness = torch.zeros(height * width, 3, device=depth.device), torch.zeros_like(depth)
        known, thing = torch.zeros_like(depth, dtype=torch.bool), torch.full_like(index, _STREET)
        thing[pixel], sharpness[pixel] = own.thing_P, (own.detail_P / size).clamp(max=1)
        if self.photos is not None:
            then = self._then(own, seen.points_HW3.view(-1, 3).index_select(0, pixel), boxes)
            image[pixel], known[pixel] = self.photos.look(own.photo_P, then, size)
        return image.view(height, width, 3), *(a.view(height, width) for a in (known, sharpness, depth, thing))

    def _then(self, own: Surfels, xyz_P3: Tensor, boxes: Boxes) -> Tensor:
        """Where points [P, 3] were when their pictures were taken."""
        assert self.photos is not None
        out = xyz_P3.clone()
        there = set(own.thing_P.unique().tolist())
        for i, agent in enumerate(boxes.agents.tolist()):
            if agent in there:
                on = (own.thing_P == agent).nonzero()[:, 0]
                turn, centre = (torch.from_numpy(a[i]).to(out) for a in (boxes.rotations, boxes.centers_m))
                out[on] = self.photos.where_it_was(agent, own.photo_P[on], (xyz_P3[on] - centre) @ turn)
        return out

    @property
    def count(self) -> int:
        """Points at the finest resolution."""
        return len(self.levels[0]) + sum(map(len, self.things.values()))

    def to(self, device: torch.device) -> LoggedPoints:
        return replace(
            self, levels=tuple(s.to(device) for s in self.levels), things={a: s.to(device) for a, s in self.things.items()},
            photos=self.photos.to(device) if self.photos else None,
        )  # fmt: skip


def build_logged_points(sweeps: Iterable[Sweep], shots: Iterable[Shot]) -> LoggedPoints:
    """Merge sweeps and find the picture that shows each point largest, among those where nothing hides it.

    What no picture shows is dropped. Pictures are of one size.
    """
    street, things = gather(sweeps)
    bare = {_STREET: as_surfels(street, _PLANE_VOXEL_M)}
    bare |= {agent: as_surfels(points, _THING_PLANE_VOXEL_M) for agent, points in things.items()}
    scene, kept = _tiled(bare, None), []
    for shot in shots:
        _take(scene, shot, len(kept))
        kept.append(shot)
    coloured = {_STREET: scene.levels[0], **scene.things}
    seen = {agent: own.select((own.detail_P > 0).nonzero()[:, 0]) for agent, own in coloured.items()}
    return _tiled(seen, collect(kept) if kept else None)


def _closed(images_V3HW: Tensor, known_VHW: Tensor, sharpness_VHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Small holes take the mean of what is around them; what stands alone is dropped."""
    around = F.avg_pool2d(known_VHW[:, None].float(), 5, stride=1, padding=2, count_include_pad=False)[:, 0]
    known = known_VHW & (around >= _DENSE)
    weight = known[:, None].float()
    values = torch.cat([images_V3HW, sharpness_VHW[:, None]], 1) * weight
    near = F.avg_pool2d(weight, 3, stride=1, padding=1)
    fill = (~known & (around >= _FILLED))[:, None] & (near > 0)
    values = torch.where(fill, F.avg_pool2d(values, 3, stride=1, padding=1) / near.clamp(min=1e-6), values)
    return values[:, :3], known | fill[:, 0], values[:, 3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Points as they were measured."""

    xyz_P3: Array
    towards_P3: Array  # unit, to the sensor
    range_P: Array  # metres from the sensor

    def select(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Points:
        return Points(xyz_P3=self.xyz_P3[index], towards_P3=self.towards_P3[index], range_P=self.range_P[index])

    def thinned(self, voxel_m: float) -> Points:
        """One point of every voxel, the one measured from nearest."""
        order = np.argsort(self.range_P, kind="stable")
        _, first = np.unique(_cells(self.xyz_P3[order], voxel_m), return_index=True)
        return self.select(order[first])

    @staticmethod
    def concatenate(parts: Sequence[Points]) -> Points:
        empty = [np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0)]
        columns = [[p.xyz_P3 for p in parts], [p.towards_P3 for p in parts], [p.range_P for p in parts]]
        xyz, towards, ranges = (np.concatenate([e, *c]) for e, c in zip(empty, columns, strict=True))
        return Points(xyz_P3=xyz, towards_P3=towards, range_P=ranges)


def gather(sweeps: Iterable[Sweep]) -> tuple[Points, dict[int, Points]]:
    """Thinned points of the street, global, and of each thing, in metres along its box's axes from its middle."""
    street: list[Points] = []
    things: dict[int, list[Points]] = {}
    for sweep in sweeps:
        line = sweep.origin_m - sweep.xyz_m
        distance = np.linalg.norm(line, axis=1)
        points = Points(xyz_P3=sweep.xyz_m, towards_P3=line / np.maximum(distance, 1e-6)[:, None], range_P=distance)
        still, on = _sorted_by_box(points, sweep.boxes)
        street.append(still.thinned(VOXEL_M))
        for agent, own in on.items():
            things.setdefault(agent, []).append(own)
        if sum(len(p.range_P) for p in street) > _PENDING:
            street = [Points.concatenate(street).thinned(VOXEL_M)]
    whole = {agent: Points.concatenate(parts).thinned(_THING_VOXEL_M) for agent, parts in things.items()}
    return Points.concatenate(street).thinned(VOXEL_M), whole


def _sorted_by_box(points: Points, boxes: Boxes) -> tuple[Points, dict[int, Points]]:
    """Points that stand still, and those on each thing."""
    still, on = np.ones(len(points.range_P), bool), {}
    for i, agent in enumerate(boxes.agents.tolist()):
        half = boxes.sizes_wlh_m[i, [1, 0, 2]] / 2
        reach = float(np.linalg.norm(half)) + _AROUND_BOX_M
        near = np.flatnonzero((np.abs(points.xyz_P3 - boxes.centers_m[i]) < reach).all(-1))
        local = (points.xyz_P3[near] - boxes.centers_m[i]) @ boxes.rotations[i]
        about = (np.abs(local) <= half + _AROUND_BOX_M).all(-1)
        low = local[:, 2] < _FLOOR_M - half[2]
        still[near[about & (~low | (boxes.speeds_mps[i] > _MOVING_MPS))]] = False
        inside = (np.abs(local) <= half).all(-1) & ~low
        if inside.any():
            own = points.select(near[inside])
            on[agent] = replace(own, xyz_P3=local[inside], towards_P3=own.towards_P3 @ boxes.rotations[i])
    return points.select(still), on


def as_surfels(points: Points, plane_voxel_m: float) -> Surfels:
    """Discs as large as the gaps between the points, in the plane of the points around; no picture shows them yet."""
    gap = np.full(len(points.range_P), np.inf)
    if len(gap) > _NEIGHBOUR:
        gap = KDTree(points.xyz_P3).query(points.xyz_P3, k=_NEIGHBOUR + 1)[0][:, -1]
    company = gap < _ALONE_M + _ALONE * points.range_P
    points, gap = points.select(company), gap[company]
    normal = _normals(points, plane_voxel_m)
    normal = np.where((normal * points.towards_P3).sum(-1, keepdims=True) < 0, -normal, normal)
    largest = np.where((normal != 0).any(-1), _RADIUS_M[1], _LOOSE_RADIUS_M)
    count = len(gap)
    return Surfels(
        xyz_P3=torch.from_numpy(points.xyz_P3).float(), normal_P3=torch.from_numpy(normal).float(),
        radius_P=torch.from_numpy((_REACH * gap).clip(_RADIUS_M[0], largest)).float(),
        thing_P=torch.full((count,), _STREET), photo_P=torch.zeros(count, dtype=torch.long), detail_P=torch.zeros(count),
    )  # fmt: skip


def _normals(points: Points, voxel_m: float) -> Array:
    """Unit normals [P, 3] of the planes that points lie in; 0 where they form a line or a cloud."""
    coarse = points.thinned(voxel_m).xyz_P3
    if len(coarse) < _PLANE_POINTS:
        return np.zeros_like(points.xyz_P3)
    tree = KDTree(coarse)
    _, nearest = tree.query(coarse, k=_PLANE_POINTS)
    around = coarse[nearest] - coarse[nearest].mean(1, keepdims=True)
    spread, axes = np.linalg.eigh(np.einsum("pki,pkj->pij", around, around))
    plane = (spread[:, 0] < _FLAT * spread[:, 1]) & (spread[:, 1] > _LINE * spread[:, 2])
    _, own = tree.query(points.xyz_P3)
    return np.where(plane[:, None], axes[:, :, 0], 0.0)[own]


def _take(scene: LoggedPoints, shot: Shot, number: int) -> None:
    """Point to one picture everywhere where it shows the scene's finest surfels larger than any before it; these change."""
    depth = front(
        scene.ahead(shot.camera, shot.ego_to_global, shot.boxes), shot.camera, shot.ego_to_global, *_DEPTH_HW
    ).depth_HW
    level, tiles = scene.levels[0], scene.tiles[0]
    near = tiles[_in_view(tiles, shot.camera, shot.ego_to_global, _TILE_M / 2**0.5, _COLOUR_RANGE_M), 2:]
    rows = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *(np.arange(a, b) for a, b in near)]))
    _point_to(number, level, rows, *_better(level.select(rows), shot, depth))
    for i, agent in enumerate(shot.boxes.agents.tolist()):
        own = scene.things.get(agent)
        if own is not None:
            placed = _placed(own, shot.boxes.centers_m[i], shot.boxes.rotations[i])
            _point_to(number, own, torch.arange(len(own)), *_better(placed, shot, depth))


def _better(placed: Surfels, shot: Shot, depth_HW: Tensor) -> tuple[Tensor, Tensor]:
    """Which surfels a shot shows larger than the picture they point to [N], and how large [N], in pixels per metre."""
    height, width = depth_HW.shape
    pose = torch.from_numpy(shot.ego_to_global @ shot.camera.camera_to_ego).float()
    k = shot.camera.resized(width, height).intrinsics
    x, y, z = ((placed.xyz_P3 - pose[:3, 3]) @ pose[:3, :3]).unbind(-1)
    u, v = float(k[0, 0]) * x + float(k[0, 2]) * z, float(k[1, 1]) * y + float(k[1, 2]) * z  # times depth
    size = float(shot.camera.resized(shot.image.shape[1], shot.image.shape[0]).intrinsics[0, 0]) / z.clamp(min=NEAR_M)
    inside = (z > NEAR_M) & (z < _COLOUR_RANGE_M) & (u >= 0) & (u < width * z) & (v >= 0) & (v < height * z)
    index = (inside & (size > placed.detail_P)).nonzero()[:, 0]
    column, row = (u[index] / z[index]).long(), (v[index] / z[index]).long()
    seen = z[index] <= depth_HW[row, column] * _VISIBLE + _VISIBLE_M
    seen &= (placed.normal_P3[index] * (placed.xyz_P3[index] - pose[:3, 3])).sum(-1) <= 0
    return index[seen], size[index[seen]]


def _point_to(number: int, surfels: Surfels, rows: Tensor, index: Tensor, detail: Tensor) -> None:
    """Some of a few rows of surfels now point to a picture; they change."""
    surfels.photo_P[rows[index]], surfels.detail_P[rows[index]] = number, detail


def _placed(own: Surfels, center_m: Array, rotation: Array) -> Surfels:
    """Surfels of a thing, now global."""
    turn = torch.from_numpy(rotation).to(own.xyz_P3)
    centre = torch.from_numpy(center_m).to(own.xyz_P3)
    return replace(own, xyz_P3=own.xyz_P3 @ turn.T + centre, normal_P3=own.normal_P3 @ turn.T)


def _tiled(parts: dict[int, Surfels], photos: Photos | None) -> LoggedPoints:
    """The street at every resolution, and things with their numbers."""
    levels, tiles, street = [], [], parts[_STREET]
    for n in range(_LEVELS):
        street = _coarser(street, VOXEL_M * 2**n) if n else street
        tile = np.floor(street.xyz_P3[:, :2].numpy() / _TILE_M).astype(np.int64)
        order = np.lexsort(tile.T)
        street = street.select(torch.from_numpy(order))
        levels.append(street)
        tiles.append(_runs(tile[order]))
    things = {
        agent: replace(own, thing_P=torch.full_like(own.thing_P, agent)) for agent, own in parts.items() if agent != _STREET
    }
    return LoggedPoints(levels=tuple(levels), tiles=tuple(tiles), things=things, photos=photos)


def _runs(tile_P2: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sorted tiles [K, 4]: x, y, first row, last row + 1."""
    if not len(tile_P2):
        return np.zeros((0, 4), np.int64)
    first = np.flatnonzero(np.r_[True, (np.diff(tile_P2, axis=0) != 0).any(1)])
    return np.column_stack([tile_P2[first], first, np.r_[first[1:], len(tile_P2)]])


def _coarser(surfels: Surfels, voxel_m: float) -> Surfels:
    """One disc of every voxel, the one that a picture shows largest, large enough for all of them."""
    order = torch.argsort(surfels.detail_P, descending=True, stable=True)
    cells = _cells(surfels.xyz_P3.numpy().astype(np.float64), voxel_m)
    _, first = np.unique(cells[order.numpy()], return_index=True)
    kept = surfels.select(order[torch.from_numpy(first)])
    return replace(kept, radius_P=kept.radius_P.clamp(min=voxel_m))


def _level(tiles_K4: NDArray[np.int64], ego_to_global: Array) -> NDArray[np.int64]:
    """The level [K] that the distance of each tile asks for."""
    away = np.linalg.norm((tiles_K4[:, :2] + 0.5) * _TILE_M - ego_to_global[:2, 3], axis=1) - _TILE_M / 2**0.5
    return np.floor(np.log2(np.maximum(away, 1e-3) / (VOXEL_M * _VOXELS_PER_RAD))).clip(0, _LEVELS - 1).astype(np.int64)


def _in_view(
    tiles: NDArray[np.int64] | Array, camera: Camera, ego_to_global: Array, radius_m: float | Array, range_m: float = RANGE_M
) -> NDArray[np.bool_]:
    """Which tiles [K, 2 or more] a camera may see within a range, to the left and right; ``radius`` around their middles."""
    pose = ego_to_global @ camera.camera_to_ego
    offset = (tiles[:, :2] + 0.5) * _TILE_M - pose[:2, 3]
    away = np.linalg.norm(offset, axis=1)
    ahead, aside = pose[:2, 2] / np.linalg.norm(pose[:2, 2]), np.arctan(camera.width_px / 2 / camera.intrinsics[0, 0]) + 0.1
    angle = np.arccos((offset @ ahead / np.maximum(away, 1e-6)).clip(-1, 1))
    wider = aside + np.arcsin(radius_m / np.maximum(away, np.maximum(radius_m, 1e-6)))
    return (away < radius_m + 1) | ((away - radius_m < range_m) & (angle < wider))


def _cells(xyz_m: Array, voxel_m: float) -> NDArray[np.int64]:
    """A number [P] for the voxel of each point; 21 bits an axis."""
    x, y, z = (np.floor(xyz_m / voxel_m).astype(np.int64) + (1 << 20)).T
    return (x << 42) | (y << 21) | z
