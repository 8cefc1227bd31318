"""Visual odometry on the ground plane: corners of the road's paint, tracked from one moment to the next, in known cameras.

A corner below the horizon is taken to lie on the ground (z = 0 of the ego frame), so its pixel is a place in metres. Corners are tracked
by pyramidal Lucas-Kanade, there and back; the rigid motion that most of them agree on is found by RANSAC (Fischler and Bolles, 1981) and
fitted to those in closed form (Kabsch, 1976). What stands up or drives by disagrees and is left out. Nothing is learnt, all cameras
count, and the scale is the cameras' height.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Images = NDArray[np.uint8]
UNKNOWN = np.full(3, np.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class OdometryConfig:
    """What counts as a corner on the ground, and as agreement."""

    corners: int = 120  # in each camera, at most
    nearest_m: float = 2.0  # from the ego's origin
    farthest_m: float = 20.0
    there_and_back_px: float = 0.5  # a corner tracked back must return this near
    agreement_m: float = 0.08  # plus what one pixel is there
    draws: int = 200
    min_agreeing: int = 8
    seed: int = 0


def ground_steps(images: Images, intrinsics: Array, camera_to_ego: Array, config: OdometryConfig | None = None) -> Array:
    """Steps [T - 1, 3] between images [T, V, H, W, 3] of cameras [V, 3, 3], [V, 4, 4]; NaN where too few corners agree."""
    config = config or OdometryConfig()
    hw = (images.shape[2], images.shape[3])
    grounds = [_Ground.of(k, pose, hw, config) for k, pose in zip(intrinsics, camera_to_ego, strict=True)]
    grey = np.stack([[cv2.cvtColor(view, cv2.COLOR_RGB2GRAY) for view in frame] for frame in images])
    rng = np.random.default_rng(config.seed)
    return np.stack([_step(before, after, grounds, config, rng) for before, after in pairwise(grey)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """Where the ground is in one camera."""

    to_ground: Array  # [3, 3] homography: pixel -> (x, y, 1) of the ego frame, up to scale
    mask: NDArray[np.uint8]  # [H, W] 255 where a pixel's ray meets the ground within reach

    @staticmethod
    def of(intrinsics: Array, camera_to_ego: Array, image_hw: tuple[int, int], config: OdometryConfig) -> _Ground:
        ego_to_camera = np.linalg.inv(camera_to_ego)
        to_pixel = intrinsics @ ego_to_camera[:3][:, [0, 1, 3]]
        height, width = image_hw
        rows, cols = np.mgrid[:height, :width] + 0.0
        rays = np.stack([cols, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(intrinsics).T @ camera_to_ego[:3, :3].T
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = -camera_to_ego[2, 3] / rays[..., 2]
            away = np.linalg.norm(camera_to_ego[:2, 3] + reach[..., None] * rays[..., :2], axis=-1)
        seen = (rays[..., 2] < 0) & (away > config.nearest_m) & (away < config.farthest_m)
        return _Ground(to_ground=np.linalg.inv(to_pixel), mask=seen.astype(np.uint8) * 255)

    def places(self, pixels: Array) -> Array:
        """Places [N, 2] of pixels [N, 2] on the ground, in the ego frame [m]."""
        flat = np.column_stack([pixels, np.ones(len(pixels))]) @ self.to_ground.T
        return flat[:, :2] / flat[:, 2:]


def _step(before: Images, after: Images, grounds: list[_Ground], config: OdometryConfig, rng: np.random.Generator) -> Array:
    tracks = [_tracked(a, b, ground, config) for a, b, ground in zip(before, after, grounds, strict=True)]
    old, new, pixel_m = (np.concatenate(part) for part in zip(*tracks, strict=True))
    return _agreed_motion(old, new, config.agreement_m + pixel_m, config, rng)


def _tracked(before: Images, after: Images, ground: _Ground, config: OdometryConfig) -> tuple[Array, Array, Array]:
    """Places [N, 2] of corners then and now, and what a pixel is there [N], in metres."""
    nothing = (np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
    corners = cv2.goodFeaturesToTrack(before, config.corners, 0.01, 3, mask=ground.mask, blockSize=5)
    if corners is None:
        return nothing
    window = {"winSize": (11, 11), "maxLevel": 3}
    moved, found, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, None, **window)  # type: ignore[call-overload]
    back, returned, _ = cv2.calcOpticalFlowPyrLK(after, before, moved, None, **window)  # type: ignore[call-overload]
    old, new, again = (points.reshape(-1, 2).astype(np.float64) for points in (corners, moved, back))
    good = (found.ravel() > 0) & (returned.ravel() > 0) & (np.linalg.norm(old - again, axis=1) < config.there_and_back_px)
    col, row = np.clip(np.rint(new), 0, np.array(ground.mask.shape)[::-1] - 1).astype(np.int64).T
    good &= ground.mask[row, col] > 0
    old, new = old[good], new[good]
    half_px = np.array([0.0, 0.5])
    pixel_m = np.linalg.norm(ground.places(new - half_px) - ground.places(new + half_px), axis=1)
    return ground.places(old), ground.places(new), pixel_m


def _agreed_motion(old: Array, new: Array, tolerance_m: Array, config: OdometryConfig, rng: np.random.Generator) -> Array:
    """The step by which most places [N, 2] moved: a still point at ``new`` now was at ``old`` = R new + t then."""
    if len(old) < config.min_agreeing:
        return UNKNOWN
    best = np.zeros(len(old), dtype=bool)
    for _ in range(config.draws):
        pair = rng.choice(len(old), 2, replace=False)
        agreeing = _misses(_rigid(old[pair], new[pair], np.ones(2)), old, new) < tolerance_m
        if agreeing.sum() > best.sum():
            best = agreeing
    if best.sum() < config.min_agreeing:
        return UNKNOWN
    return _rigid(old[best], new[best], 1 / tolerance_m[best] ** 2)


def _misses(step: Array, old: Array, new: Array) -> Array:
    cos, sin = np.cos(step[2]), np.sin(step[2])
    return np.linalg.norm(new @ np.array([[cos, sin], [-sin, cos]]) + step[:2] - old, axis=1)


def _rigid(old: Array, new: Array, weights: Array) -> Array:
    """(x, y, yaw) with least weighted squares of R new + t - old (Kabsch, in the plane)."""
    weights = weights / weights.sum()
    a, b = weights @ old, weights @ new
    p, q = old - a, new - b
    yaw = np.arctan2(weights @ (q[:, 0] * p[:, 1] - q[:, 1] * p[:, 0]), weights @ (q * p).sum(axis=1))
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([*(a - np.array([[cos, -sin], [sin, cos]]) @ b), yaw])
