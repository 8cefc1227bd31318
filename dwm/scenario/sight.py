"""What cameras see of labelled boxes: which share of each is hidden, and which lies outside every image.

A box is sampled on the faces it turns to the rig, every point weighted by the solid angle of its patch, so that a far cone
is measured as finely as a bus beside the ego. A point counts as hidden when another box, or the imagined wall where one is
given, stands before it in every image it falls into. The ground hides nothing: boxes stand on it.

Shapes: A boxes, S points of a box, V cameras, P pairs (camera, box, box before it), R rays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.conditioning.things import crossed
from dwm.geometry import apply, invert, project, rotation_from_yaw
from dwm.scenes.types import Camera

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
FACE_POINTS = 7  # a side: 147 points on the three faces of a box that a rig can see
_NEAR_M = 0.1
_BEFORE = 1 - 1e-3  # what a ray meets earlier than this share of its way hides its end


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes3D:
    """Upright boxes in the global frame."""

    centers_m: Array  # [A, 3]
    sizes_wlh_m: Array  # [A, 3]
    yaws_rad: Array  # [A]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Shares of a box's outline as the rig sees it. Of what is truncated nothing is said about hiding."""

    occlusion: Array  # [A] hidden share of what lies in an image; NaN where nothing does
    truncation: Array  # [A] share outside every image
    behind_wall: Array  # [A] share of what lies in an image that the wall hides

    @property
    def visible(self) -> Array:
        """Share [A] of the pixels in the images that show the box; 0 where it lies in none."""
        return np.where(np.isnan(self.occlusion), 0.0, 1 - self.occlusion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """The layout's imagined wall, and which boxes it may hide."""

    depth_VW: Array  # z-depth in W columns of each image (``Layout.wall_depth_VW``)
    hides_A: Mask


def look(cameras: tuple[Camera, ...], ego_to_global: Array, boxes: Boxes3D, wall: Wall | None = None) -> Sight:
    """What the rig sees of boxes at one moment. ``ego_to_global`` is [4, 4]: the images are simultaneous."""
    poses = np.stack([ego_to_global @ camera.camera_to_ego for camera in cameras])
    points_AS3, weight_AS = surface_points(boxes, poses[:, :3, 3].mean(0))
    in_image_VAS, pixel_u, depth = _projected(cameras, poses, points_AS3)
    in_image_VAS &= weight_AS > 0
    hidden_VAS = _behind_boxes(poses[:, :3, 3], boxes, points_AS3, in_image_VAS)
    walled_VAS = np.zeros_like(hidden_VAS)
    if wall is not None:
        walled_VAS = in_image_VAS & wall.hides_A[:, None] & (depth > _wall_depth(wall, cameras, pixel_u))
    total, within, before_wall, visible = (
        (weight_AS * shown.any(0)).sum(1)
        for shown in (weight_AS[None] > 0, in_image_VAS, in_image_VAS & ~walled_VAS, in_image_VAS & ~walled_VAS & ~hidden_VAS)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        # A box around the rig itself shows no face: it is nowhere in the images.
        outside = np.where(total > 0, 1 - within / total, 1.0)
        return Sight(
            occlusion=1 - visible / within, truncation=outside, behind_wall=np.where(within > 0, 1 - before_wall / within, 0.0)
        )


def visibility_level(visible: Array) -> NDArray[np.int8]:
    """nuScenes levels 1 to 4 of visible shares: up to 40, 60, 80 and 100 %."""
    return (1 + np.searchsorted([0.4, 0.6, 0.8], visible, side="left")).astype(np.int8)


def surface_points(boxes: Boxes3D, eye_m: Array) -> tuple[Array, Array]:
    """Points [A, S, 3] on the faces of boxes and the solid angles [A, S] of their patches seen from ``eye_m``; 0 on backs."""
    unit_S3, normal_S3 = _cube()
    half = boxes.sizes_wlh_m[:, [1, 0, 2]][:, None] / 2  # length, width, height
    turn = np.swapaxes(rotation_from_yaw(boxes.yaws_rad), -1, -2)
    points = (unit_S3 * half) @ turn + boxes.centers_m[:, None]
    area = np.where(normal_S3 != 0, 1.0, 2 * half / FACE_POINTS).prod(-1)
    to_eye = eye_m - points
    facing = np.einsum("ask,ask->as", to_eye, (normal_S3 * np.ones_like(half)) @ turn)
    return points, facing.clip(min=0) * area / np.linalg.norm(to_eye, axis=-1) ** 3


def _cube() -> tuple[Array, Array]:
    """Points [S, 3] in the middle of patches on the cube [-1, 1]^3, and their outward normals [S, 3]."""
    grid = (np.arange(FACE_POINTS) + 0.5) * 2 / FACE_POINTS - 1
    a, b = (x.ravel() for x in np.meshgrid(grid, grid, indexing="ij"))
    faces, normals = [], []
    for axis in range(3):
        for side in (-1.0, 1.0):
            faces.append(np.insert(np.stack([a, b], -1), axis, side, axis=1))
            normals.append(np.tile(np.eye(3)[axis] * side, (len(a), 1)))
    return np.concatenate(faces), np.concatenate(normals)


def _projected(cameras: tuple[Camera, ...], poses: Array, points_AS3: Array) -> tuple[Mask, Array, Array]:
    """Whether points lie in an image [V, A, S], their pixel columns and their z-depths."""
    shape = (len(cameras), *points_AS3.shape[:2])
    flat = points_AS3.reshape(-1, 3)
    inside, columns, depths = np.zeros(shape, bool), np.zeros(shape), np.zeros(shape)
    for v, (camera, pose) in enumerate(zip(cameras, poses, strict=True)):
        uv, depth = project(apply(invert(pose), flat), camera.intrinsics)
        on = (uv >= 0).all(-1) & (uv < [camera.width_px, camera.height_px]).all(-1) & (depth > _NEAR_M)
        inside[v], columns[v], depths[v] = on.reshape(shape[1:]), uv[:, 0].reshape(shape[1:]), depth.reshape(shape[1:])
    return inside, columns, depths


def _behind_boxes(origins_V3: Array, boxes: Boxes3D, points_AS3: Array, asked_VAS: Mask) -> Mask:
    """Which of the asked points another box stands before."""
    hidden = np.zeros_like(asked_VAS)
    view_P, box_P, before_P = np.nonzero(_may_hide(origins_V3, boxes) & np.any(asked_VAS, axis=2, keepdims=True))
    pair_R, point_R = np.nonzero(asked_VAS[view_P, box_P])
    v, a, b = view_P[pair_R], box_P[pair_R], before_P[pair_R]
    origin = origins_V3[v] - boxes.centers_m[b]
    ray = points_AS3[a, point_R] - origins_V3[v]
    half = boxes.sizes_wlh_m[b][:, [1, 0, 2]] / 2
    enter, leave = crossed(_turned(origin, boxes.yaws_rad[b]) / half, _turned(ray, boxes.yaws_rad[b]) / half)
    blocked = (enter < leave) & (enter > 0) & (enter < _BEFORE)
    hidden[v[blocked], a[blocked], point_R[blocked]] = True
    return hidden


def _may_hide(origins_V3: Array, boxes: Boxes3D) -> Mask:
    """Pairs [V, A, A] of a box and another that may stand before it: near enough, and in the same directions."""
    offset = boxes.centers_m[None, :, :2] - origins_V3[:, None, :2]
    distance, azimuth = np.linalg.norm(offset, axis=-1), np.arctan2(offset[..., 1], offset[..., 0])
    radius = np.linalg.norm(boxes.sizes_wlh_m[:, :2], axis=-1) / 2
    spread = np.where(distance > radius, np.arcsin((radius / np.maximum(distance, 1e-9)).clip(max=1)), np.pi)
    apart = np.abs((azimuth[:, :, None] - azimuth[:, None] + np.pi) % (2 * np.pi) - np.pi)
    same_way = np.less(apart, spread[:, :, None] + spread[:, None])
    near_enough = np.less((distance - radius)[:, None], (distance + radius)[:, :, None])
    return same_way & near_enough & ~np.eye(len(radius), dtype=bool)


def _turned(vectors: Array, yaw_rad: Array) -> Array:
    """Global vectors [R, 3] in the axes of boxes with headings [R]."""
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    x, y, z = vectors.T
    return np.stack([cos * x + sin * y, cos * y - sin * x, z], axis=-1)


def _wall_depth(wall: Wall, cameras: tuple[Camera, ...], columns_VAS: Array) -> Array:
    """Depth of the wall [V, A, S] in the columns of points."""
    count = wall.depth_VW.shape[1]
    scale = np.array([count / camera.width_px for camera in cameras])[:, None, None]
    index = np.floor(columns_VAS * scale).clip(0, count - 1).astype(np.int64)
    return np.take_along_axis(wall.depth_VW[:, None], index, axis=2)
