"""Rigid transforms, quaternions and pinhole projection.

Frames as nuScenes: global, ego (x forward, y left, z up), camera (x right, y down, z forward). Metres and radians;
quaternions w,x,y,z; transforms are 4x4 float64, row major, named ``<from>_to_<to>`` and applied to column vectors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def rotation_from_quaternion(wxyz: ArrayLike) -> Array:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4]; normalises its input."""
    q = np.asarray(wxyz, dtype=np.float64)
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    w, x, y, z = np.moveaxis(q, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternion_from_rotation(rotation: ArrayLike) -> Array:
    """Quaternions [..., 4] with w >= 0 of rotation matrices [..., 3, 3]."""
    m = np.asarray(rotation, dtype=np.float64)
    t = np.einsum("...ii->...", m)
    d = np.stack([t, m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]], axis=-1)
    # Every row of this symmetric matrix is the quaternion times one of its components: take the largest.
    k = np.empty((*m.shape[:-2], 4, 4))
    k[..., 0, 0] = 1 + t
    k[..., 1, 1], k[..., 2, 2], k[..., 3, 3] = (1 + 2 * m[..., i, i] - t for i in range(3))
    k[..., 0, 1] = k[..., 1, 0] = m[..., 2, 1] - m[..., 1, 2]
    k[..., 0, 2] = k[..., 2, 0] = m[..., 0, 2] - m[..., 2, 0]
    k[..., 0, 3] = k[..., 3, 0] = m[..., 1, 0] - m[..., 0, 1]
    k[..., 1, 2] = k[..., 2, 1] = m[..., 1, 0] + m[..., 0, 1]
    k[..., 1, 3] = k[..., 3, 1] = m[..., 0, 2] + m[..., 2, 0]
    k[..., 2, 3] = k[..., 3, 2] = m[..., 2, 1] + m[..., 1, 2]
    best = np.argmax(d, axis=-1)
    q = np.take_along_axis(k, best[..., None, None], axis=-2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    return np.where(q[..., :1] < 0, -q, q)


def rotation_from_yaw(yaw_rad: ArrayLike) -> Array:
    """Rotation matrices [..., 3, 3] about z."""
    yaw = np.asarray(yaw_rad, dtype=np.float64)
    c, s, o, one = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw), np.ones_like(yaw)
    return np.stack([np.stack([c, -s, o], -1), np.stack([s, c, o], -1), np.stack([o, o, one], -1)], -2)


def quaternion_from_yaw(yaw_rad: ArrayLike) -> Array:
    """Quaternions [..., 4] about z."""
    half = np.asarray(yaw_rad, dtype=np.float64) / 2
    zero = np.zeros_like(half)
    return np.stack([np.cos(half), zero, zero, np.sin(half)], axis=-1)


def yaw_from_rotation(rotation: ArrayLike) -> Array:
    """Heading of the x axis in the xy plane, of rotation matrices (or transforms) [..., >=3, >=3]."""
    m = np.asarray(rotation, dtype=np.float64)
    return np.arctan2(m[..., 1, 0], m[..., 0, 0])


def wrap_angle(angle_rad: ArrayLike) -> Array:
    """Angles in [-pi, pi)."""
    return (np.asarray(angle_rad, dtype=np.float64) + np.pi) % (2 * np.pi) - np.pi


def transform(translation_m: ArrayLike, rotation: ArrayLike) -> Array:
    """Transforms [..., 4, 4] from translations [..., 3] and rotation matrices [..., 3, 3]."""
    translation, rot = np.asarray(translation_m, dtype=np.float64), np.asarray(rotation, dtype=np.float64)
    out = np.zeros((*rot.shape[:-2], 4, 4))
    out[..., :3, :3], out[..., :3, 3], out[..., 3, 3] = rot, translation, 1.0
    return out


def transform_from_xy_yaw(x_m: ArrayLike, y_m: ArrayLike, yaw_rad: ArrayLike) -> Array:
    """Planar poses as transforms [..., 4, 4] at z = 0."""
    x, y = np.asarray(x_m, dtype=np.float64), np.asarray(y_m, dtype=np.float64)
    return transform(np.stack([x, y, np.zeros_like(x)], axis=-1), rotation_from_yaw(yaw_rad))


def invert(transforms: ArrayLike) -> Array:
    """Inverse of rigid transforms [..., 4, 4]."""
    m = np.asarray(transforms, dtype=np.float64)
    rot = np.swapaxes(m[..., :3, :3], -1, -2)
    return transform(-np.einsum("...ij,...j->...i", rot, m[..., :3, 3]), rot)


def apply(transforms: ArrayLike, points_m: ArrayLike) -> Array:
    """Points [..., N, 3] moved by transforms [..., 4, 4]."""
    m, p = np.asarray(transforms, dtype=np.float64), np.asarray(points_m, dtype=np.float64)
    return p @ np.swapaxes(m[..., :3, :3], -1, -2) + m[..., None, :3, 3]


def box_corners(centers_m: ArrayLike, sizes_wlh_m: ArrayLike, yaws_rad: ArrayLike) -> Array:
    """Corners [..., 8, 3] of upright boxes: centres [..., 3], nuScenes sizes (width, length, height) [..., 3].

    The first four corners face forward (+x of the box), as in the nuScenes devkit.
    """
    w, length, h = np.moveaxis(np.asarray(sizes_wlh_m, dtype=np.float64)[..., None], -2, 0) / 2
    signs = np.array([[1, 1, 1], [1, -1, 1], [1, -1, -1], [1, 1, -1], [-1, 1, 1], [-1, -1, 1], [-1, -1, -1], [-1, 1, -1]])
    local = signs * np.stack([length, w, h], axis=-1)
    return local @ np.swapaxes(rotation_from_yaw(yaws_rad), -1, -2) + np.asarray(centers_m, dtype=np.float64)[..., None, :]


def project(points_camera_m: ArrayLike, intrinsics: ArrayLike) -> tuple[Array, Array]:
    """Pixels [..., N, 2] (u right, v down) and depths [..., N] of camera-frame points [..., N, 3].

    Points at or behind the camera keep a depth <= 0; their pixels are meaningless.
    """
    p, k = np.asarray(points_camera_m, dtype=np.float64), np.asarray(intrinsics, dtype=np.float64)
    uvw = p @ np.swapaxes(k, -1, -2)
    depth = p[..., 2]
    safe = np.where(np.abs(depth) < 1e-9, 1e-9, depth)
    return uvw[..., :2] / safe[..., None], depth
