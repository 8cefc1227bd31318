"""Neighbouring views of one world agree; swapped, mirrored and shifted ones do not."""

from __future__ import annotations

import numpy as np
import pytest

from dwm.scenes.proving_ground.rig import make_rig
from evaluators.cross_view import DEPTHS_M, cross_view_agreement, cross_view_metrics, overlaps

HW = (128, 224)


def rig(hw=HW):
    cameras = [c.resized(hw[1], hw[0]) for c in make_rig()]
    return np.stack([c.intrinsics for c in cameras]), np.stack([c.camera_to_ego for c in cameras])


def far_world(shift_rad=0.0):
    """Images [1, V, H, W, 3] of a sky of smooth random waves, as far away as one likes."""
    intrinsics, poses = rig()
    rng = np.random.default_rng(0)
    waves = rng.normal(size=(12, 3)) * 9
    phases = rng.uniform(0, 6.28, 12)
    rows, cols = np.mgrid[: HW[0], : HW[1]] + 0.0
    views = []
    for v, (k, pose) in enumerate(zip(intrinsics, poses, strict=True)):
        rays = np.stack([cols, rows, np.ones_like(rows)], -1) @ np.linalg.inv(k).T @ pose[:3, :3].T
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        views.append(128 + 12 * np.sin(rays @ waves.T + phases + shift_rad * v).sum(-1))
    grey = np.clip(np.stack(views), 0, 255).astype(np.uint8)
    return np.repeat(grey[None, ..., None], 3, axis=-1)


def test_every_camera_of_the_ring_overlaps_with_the_next():
    regions = overlaps(*rig(), HW)
    assert [(o[0].first, o[0].second) for o in regions] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)]
    assert all(3 <= len(o) <= len(DEPTHS_M) for o in regions), "near things may stand in the gap between two cameras"


def test_views_of_one_far_world_agree_in_every_pair():
    agreement = cross_view_agreement(far_world(), *rig())
    assert agreement.shape == (1, 6)
    assert agreement.min() > 0.98


@pytest.mark.parametrize("fault", ["two cameras swapped", "mirrored", "each its own world"])
def test_planted_faults_disagree(fault):
    images = far_world(shift_rad=2.0) if fault == "each its own world" else far_world()
    if fault == "two cameras swapped":
        images = images[:, [0, 5, 2, 3, 4, 1]]
    if fault == "mirrored":
        images = images[:, :, :, ::-1]
    assert cross_view_agreement(images, *rig()).min() < 0.6


def test_a_plain_overlap_says_nothing():
    assert np.isnan(cross_view_agreement(np.full((2, 6, *HW, 3), 100, np.uint8), *rig())).all()


def test_cameras_that_share_nothing_have_no_overlap():
    intrinsics, poses = rig()
    assert overlaps(intrinsics[[0, 3]], poses[[0, 3]], HW) == [[], []]


def test_the_worst_pair_is_worst_over_time_and_plain_ones_do_not_count():
    agreement = np.array([[1.0, 0.2, np.nan], [0.8, 0.6, np.nan]])
    assert cross_view_metrics(agreement) == {
        "cross_view.agreement": pytest.approx(0.65),
        "cross_view.worst_pair": pytest.approx(0.4),
    }
    assert cross_view_metrics(np.full((3, 2), np.nan)) == {}
