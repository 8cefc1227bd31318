"""Ego motion: paths against closed forms, odometry on a painted plane, the network on footage it can learn."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from dwm.errors import InputError
from dwm.geometry import transform_from_xy_yaw
from dwm.models.weights import load_model
from dwm.scenes.proving_ground.rig import make_rig
from dwm.training.config import LoopConfig
from evaluators.ego_motion.footage import Footage, mirrored
from evaluators.ego_motion.inference import EgoMotionReader
from evaluators.ego_motion.network import EgoMotion, EgoMotionConfig, rays_of
from evaluators.ego_motion.odometry import ground_steps
from evaluators.ego_motion.path import filled, path_error, path_of, steps_of
from evaluators.ego_motion.score import ReadingConfig, score_ego_motion
from evaluators.ego_motion.training import EgoMotionTask, EgoMotionTraining, _collate, _pair, train_ego_motion

HW = (128, 224)


def poses(steps):
    """Poses [T, 4, 4] of a path from the origin."""
    path = path_of(np.asarray(steps, dtype=np.float64))
    return transform_from_xy_yaw(path[:, 0], path[:, 1], path[:, 2])


def test_steps_and_path_are_each_others_inverse():
    steps = np.random.default_rng(0).normal(size=(20, 3)) * [2.0, 0.3, 0.2]
    np.testing.assert_allclose(steps_of(poses(steps)), steps, atol=1e-12)


def test_a_quarter_circle_ends_where_it_must():
    n, radius = 90, 10.0
    angle = np.pi / 2 / n
    chord = [radius * np.sin(angle), radius * (1 - np.cos(angle)), angle]
    np.testing.assert_allclose(path_of(np.array([chord] * n))[-1], [radius, radius, np.pi / 2], atol=1e-9)


def test_errors_of_a_path_by_hand():
    told = np.array([[1.0, 0.0, 0.0]] * 4)
    error = path_error(told * [1.5, 1, 1], told, 0.5)  # half a metre further, step by step
    assert (error.ade_m, error.fde_m) == (pytest.approx((0.5 + 1 + 1.5 + 2) / 4), pytest.approx(2.0))
    assert (error.heading_rad, error.speed_mps, error.steps) == (0.0, pytest.approx(1.0), 4)
    turned = told.copy()
    turned[0, 2] = 0.1
    error = path_error(turned, told, 0.5)
    assert error.heading_rad == pytest.approx(0.1)
    assert error.fde_m == pytest.approx(2 * 3 * np.sin(0.05))
    assert path_error(-told, told, 0.5).speed_mps == pytest.approx(4.0), "backwards is not the same speed"


def test_a_missing_step_repeats_the_one_before():
    gap = np.full(3, np.nan)
    steps = np.array([gap, [1, 0, 0], gap, [2, 0, 0], gap])
    assert filled(steps)[:, 0].tolist() == [1, 1, 1, 2, 2]
    assert not filled(np.array([gap])).any()


def test_paths_of_different_lengths_are_refused():
    with pytest.raises(InputError, match="3 estimated and 2 commanded"):
        path_error(np.zeros((3, 3)), np.zeros((2, 3)), 0.1)


def test_stretches_start_afresh():
    told = np.array([[1.0, 0.0, 0.0]] * 80)
    config = ReadingConfig(step_s=0.25)
    score = score_ego_motion(told * [1.1, 1, 1], np.full_like(told, np.nan), poses(told), config)
    assert len(score.learnt) == 2
    assert score.learnt[0].fde_m == pytest.approx(score.learnt[1].fde_m) == pytest.approx(4.0)
    assert score.metrics()["ego_motion.odometry_known"] == 0.0
    assert score.metrics()["ego_motion.odometry.fde_m"] == pytest.approx(40.0)


def painted_plane(path, hw=HW):
    """Images [T, V, H, W, 3] of a patterned ground seen by the rig from poses [T, 4, 4], and the cameras."""
    rng = np.random.default_rng(3)
    texture = cv2.GaussianBlur(
        cv2.resize(rng.integers(0, 256, (400, 400), np.uint8), (1600, 1600), interpolation=cv2.INTER_NEAREST), (0, 0), 1.5
    )
    cameras = [c.resized(hw[1], hw[0]) for c in make_rig()]
    rows, cols = np.mgrid[: hw[0], : hw[1]] + 0.0
    frames = []
    for pose in path:
        views = []
        for camera in cameras:
            to_global = pose @ camera.camera_to_ego
            rays = np.stack([cols, rows, np.ones_like(rows)], -1) @ np.linalg.inv(camera.intrinsics).T @ to_global[:3, :3].T
            with np.errstate(divide="ignore", invalid="ignore"):
                reach = -to_global[2, 3] / rays[..., 2]
            shown = (rays[..., 2] < 0) & (reach < 60)
            xy = (to_global[:2, 3] + np.where(shown, reach, 0)[..., None] * rays[..., :2]) * 16 + 800  # 16 px a metre
            view = cv2.remap(texture, xy[..., 0].astype(np.float32), xy[..., 1].astype(np.float32), cv2.INTER_LINEAR)
            views.append(np.where(shown, view, 200).astype(np.uint8))
        frames.append(views)
    grey = np.array(frames)
    return (
        np.repeat(grey[..., None], 3, axis=-1),
        np.stack([c.intrinsics for c in cameras]),
        np.stack([c.camera_to_ego for c in cameras]),
    )


def test_odometry_on_a_painted_plane_knows_the_way():
    told = np.array([[1.0, 0.0, 0.0], [0.8, 0.05, 0.04], [0.4, -0.02, -0.05], [0.0, 0.0, 0.0], [-0.5, 0.0, 0.02]])
    found = ground_steps(*painted_plane(poses(told)))
    np.testing.assert_allclose(found[:, :2], told[:, :2], atol=0.03)
    np.testing.assert_allclose(found[:, 2], told[:, 2], atol=0.006)


def test_odometry_has_no_answer_without_corners():
    images, intrinsics, cameras = painted_plane(poses([[0.5, 0, 0]]))
    assert np.isnan(ground_steps(np.full_like(images, 90), intrinsics, cameras)).all()


def test_the_world_in_a_mirror_is_seen_by_the_mirrored_cameras():
    told = np.array([[0.7, 0.06, 0.05]])
    images, intrinsics, cameras = painted_plane(poses(told))
    flipped, k, m = mirrored(list(images), intrinsics, cameras)
    found = ground_steps(np.stack(flipped), k, m)[0]
    np.testing.assert_allclose(found, [0.7, -0.06, -0.05], atol=0.03)
    again, k, m = mirrored(flipped, k, m)
    assert np.array_equal(np.stack(again), images)
    np.testing.assert_allclose(k, intrinsics)
    np.testing.assert_allclose(m, cameras)


def test_rays_point_where_the_cameras_look():
    cameras = [c.resized(112, 64) for c in make_rig()]
    intrinsics = torch.from_numpy(np.stack([c.intrinsics for c in cameras]))[None].float()
    mounts = torch.from_numpy(np.stack([c.camera_to_ego for c in cameras]))[None].float()
    rays = rays_of(intrinsics, mounts, (64, 112), 2.0)
    assert rays.shape == (1, 6, 6, 64, 112)
    torch.testing.assert_close(rays[:, :, :3].norm(dim=2), torch.ones(1, 6, 64, 112))
    torch.testing.assert_close(rays[0, :, 3:, 5, 7] * 2, mounts[0, :, :3, 3])
    assert float(rays[0, 0, 0, 32, 56]) > 0.99, "the front camera looks ahead"
    assert float(rays[0, 3, 0, 32, 56]) < -0.99, "the back camera looks back"


SMALL = EgoMotionConfig(image_hw=(32, 56), widths=(16, 24), reading=16, hidden=32)


def footage(seed, moments=12):
    rng = np.random.default_rng(seed)
    path = poses(
        np.column_stack([rng.uniform(0, 1.2, moments - 1), np.zeros(moments - 1), rng.uniform(-0.05, 0.05, moments - 1)])
    )
    images, intrinsics, cameras = painted_plane(path, (32, 56))
    return Footage(
        images=images, times_s=np.arange(moments) / 4, ego_to_global=path, intrinsics=intrinsics, camera_to_ego=cameras
    )


def training(tmp_path, **more):
    loop = LoopConfig(
        out=str(tmp_path / "run"), steps=100, batch_size=8, learning_rate=2e-3, warmup_steps=5, sample_every=0, ema_decay=0.9
    )
    return EgoMotionTraining(**{"model": SMALL, "loop": loop, "held_out": 1, "apart_s": (0.25, 0.25), **more})


def test_pairs_are_as_far_apart_as_asked():
    stretch = footage(0, 5)
    assert stretch.pairs(0.25, 0.25) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert (0, 2) in stretch.pairs(0.25, 0.5)
    np.testing.assert_allclose(stretch.step(1, 2), steps_of(stretch.ego_to_global)[1])
    there, back = (stretch.step(*pair) for pair in ((1, 3), (3, 1)))
    assert np.sign(back[0]) == -np.sign(there[0]) and back[2] == pytest.approx(-there[2])


def test_training_learns_and_what_it_writes_is_read_back(tmp_path, monkeypatch):
    parts = [footage(seed) for seed in range(4)]
    monkeypatch.setattr("evaluators.ego_motion.training.footage_of_logs", lambda *_: parts)
    config = training(tmp_path, trained_on="a painted plane")
    task = EgoMotionTask(config, parts)
    shown = _collate([_pair(parts[0], k, k + 1) for k in range(10)], SMALL)
    path = train_ego_motion(config)
    model, loaded = load_model(path, "ego_motion")
    assert loaded == SMALL
    found = model(shown.before_BV3HW, shown.after_BV3HW, shown.rays_BV6HW)
    off, still = ((part - shown.step_B3)[:, 0].square().mean().sqrt() for part in (found, shown.step_B3 * 0))
    assert float(off) < 0.5 * float(still), "what it was shown, it has learnt"
    figures = task.evaluate(model, torch.device("cpu"))[0]
    told = np.stack([parts[3].step(k, k + 1) for k in range(11)])
    assert figures["held_out_x_m_of_zero"] == pytest.approx(np.sqrt(np.square(told[:, 0]).mean()))
    assert figures["held_out_yaw_rad_of_zero"] == pytest.approx(np.sqrt(np.square(told[:, 2]).mean()))
    reader = EgoMotionReader.load(path)
    big, intrinsics, cameras = painted_plane(parts[3].ego_to_global[:3], (64, 112))
    assert reader.steps(big, intrinsics, cameras).shape == (2, 3)
    assert len(reader.sha256) == 64


def test_too_little_footage_is_told(tmp_path):
    with pytest.raises(InputError, match="1 stretches with 11 pairs, the last 1 held out"):
        EgoMotionTask(training(tmp_path), [footage(0)])


def test_a_pair_in_a_mirror_moves_the_other_way(tmp_path):
    parts = [footage(0), footage(1)]
    plain = EgoMotionTask(training(tmp_path, mirrored_share=0.0, backwards_share=0.0, brightness=0.0, noise=0.0), parts)
    flipped = EgoMotionTask(training(tmp_path, mirrored_share=1.0, backwards_share=0.0, brightness=0.0, noise=0.0), parts)
    a, b = (task.load([2], np.random.default_rng(0)) for task in (plain, flipped))
    torch.testing.assert_close(a.step_B3 * torch.tensor([1.0, -1.0, -1.0]), b.step_B3)
    torch.testing.assert_close(a.before_BV3HW[:, 0], b.before_BV3HW[:, 0].flip(-1))
    torch.testing.assert_close(a.before_BV3HW[:, 1], b.before_BV3HW[:, 5].flip(-1))


def test_the_loss_counts_each_part_in_its_scale(tmp_path):
    task = EgoMotionTask(training(tmp_path), [footage(0), footage(1)])
    batch = task.load([0, 1], np.random.default_rng(0))

    class Exact(EgoMotion):
        def forward(self, before_BV3HW, after_BV3HW, rays_BV6HW):
            return batch.step_B3 + torch.tensor([0.0, 0.0, 0.03]) * self.config.scale[2] / 0.03

    loss, _ = task.loss(Exact(SMALL), batch, torch.Generator())
    assert float(loss) == pytest.approx(0.5 / 3)
    assert json.loads(task.fingerprint)["ego_motion"]["reading"] == 16
