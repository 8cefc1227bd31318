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
from dwm.scenes.clips import read_images
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.proving_ground.rig import make_rig
from dwm.scenes.types import CAMERAS
from dwm.training.config import LoopConfig
from evaluators.ego_motion.footage import Footage, footage_of_logs, mirrored
from evaluators.ego_motion.inference import EgoMotionReader
from evaluators.ego_motion.network import (
    EgoMotion,
    EgoMotionConfig,
    before_to_after,
    compared,
    composed,
    elected,
    ground_of,
    ground_places,
    seen_from_above,
    small_motion,
    to_input,
    wholly_seen,
)
from evaluators.ego_motion.odometry import ground_steps
from evaluators.ego_motion.path import filled, path_error, path_of, steps_of
from evaluators.ego_motion.score import ReadingConfig, score_ego_motion
from evaluators.ego_motion.training import EgoMotionTask, EgoMotionTraining, _collate, _pair, train_ego_motion
from evaluators.splits import scenes_of_split

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


def test_a_short_last_stretch_counts_by_its_steps():
    told, config = np.array([[1.0, 0.0, 0.0]] * 61), ReadingConfig()
    whole, one_more = (score_ego_motion(told[:n] * [1.1, 1, 1], told[:n], poses(told[:n]), config).metrics() for n in (60, 61))
    assert whole["ego_motion.ade_m"] == pytest.approx(3.05)
    assert one_more["ego_motion.ade_m"] == pytest.approx((60 * 3.05 + 0.1) / 61)


def test_a_video_is_read_in_whole_frames_and_speeds_are_by_its_own_step():
    config = ReadingConfig().for_video(10.0)
    assert config.step_s == pytest.approx(0.2) and config.moments(10.0, 0, 6) == [0, 2, 4]
    assert len(config.first_stretch(config.moments(10.0, 0, 600))) == 51
    assert ReadingConfig().for_video(12.0) == ReadingConfig()
    told = np.array([[1.0, 0.0, 0.0]] * 50)
    assert score_ego_motion(told * [1.2, 1, 1], told, poses(told), config).learnt[0].speed_mps == pytest.approx(1.0)


def test_a_camera_strays_where_neither_opinion_finds_it_on_its_path():
    told = np.array([[1.0, 0.0, 0.0]] * 80)
    slow, fast, lost = told * [0.9, 1, 1], told * [1.3, 1, 1], np.full_like(told, np.nan)
    config = ReadingConfig(step_s=0.25)

    def agreed(learnt, seen):
        return score_ego_motion(learnt, seen, poses(told), config).metrics()["ego_motion.agreed_ade_m"]

    mean = np.arange(1, 41).mean()  # of a metre a step
    assert agreed(slow, fast) == agreed(fast, slow) == pytest.approx(0.1 * mean)
    by_stretch = agreed(np.concatenate([slow[:40], fast[40:]]), np.concatenate([fast[:40], told[40:]]))
    assert by_stretch == pytest.approx(0.05 * mean)
    few = np.where(np.arange(80)[:, None] % 40 < 19, told, lost)
    assert agreed(fast, few) == pytest.approx(0.3 * mean), "19 of 40 steps are no opinion"
    assert agreed(fast, np.where(np.arange(80)[:, None] % 40 < 20, told, lost)) == pytest.approx(0.0)


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


def as_tensors(images, intrinsics, cameras):
    """Images [T, V, 3, H, W], and homographies of the ground [1, V, 3, 3]."""
    return to_input(images), ground_of(torch.from_numpy(intrinsics).float(), torch.from_numpy(cameras).float())[None]


def test_a_place_on_the_ground_is_where_its_camera_shows_it():
    images, intrinsics, cameras = painted_plane(poses([[0.5, 0, 0]]))
    _, ground = as_tensors(images, intrinsics, cameras)
    place = np.array([6.0, 0.5, 0.0, 1.0])
    seen = intrinsics[0] @ (np.linalg.inv(cameras[0]) @ place)[:3]
    own = ground[0, 0] @ torch.tensor([6.0, 0.5, 1.0])
    np.testing.assert_allclose(own.numpy(), seen, rtol=1e-4)


def test_from_above_both_moments_lie_on_each_other_if_the_later_one_is_moved_back():
    told = np.array([[0.9, 0.1, 0.06]])
    images, ground = as_tensors(*painted_plane(poses(told)))
    config = EgoMotionConfig()
    places = ground_places(config)
    step = torch.from_numpy(told).float()
    before = seen_from_above(images[:1], ground, places[None], config.places_xy)
    plain = seen_from_above(images[1:], ground, places[None], config.places_xy)
    moved = seen_from_above(images[1:], ground, before_to_after(step, places), config.places_xy)
    near = (places[:, :2].norm(dim=-1) < 12).reshape(config.places_xy)  # what is far is a few pixels
    both = (before[0, 3] > 0) & (moved[0, 3] > 0) & near
    assert float(both.float().mean()) > 0.25
    apart = [float((before - other)[0, :3].abs().mean(0)[both].mean()) for other in (plain, moved)]
    assert apart[1] < 0.25 * apart[0]
    assert not before[0, :, 63:65, 39:41].any(), "nobody sees the ground under the car"


def test_steps_join_as_poses_do():
    told = np.array([[0.9, 0.1, 0.4], [0.5, -0.3, -0.7]])
    path = poses(told)
    first, second = torch.from_numpy(told).float().split(1)
    np.testing.assert_allclose(composed(first, second)[0], steps_of(path[[0, 2]])[0], atol=1e-6)
    place = torch.tensor([[4.0, -2.0, 1.0]])
    after = before_to_after(composed(first, second), place)[0, 0, :2].numpy()
    np.testing.assert_allclose((path[2] @ [*after, 0, 1])[:2], (path[0] @ [4, -2, 0, 1])[:2], atol=1e-5)


def test_every_round_goes_on_from_the_guess_before():
    images, ground = as_tensors(*painted_plane(poses([[0.5, 0, 0]]), (32, 56)))
    model = EgoMotion(SMALL)
    off, first = torch.tensor([[0.3, 0.0, 0.01]]), torch.tensor([[0.3, 0.1, 0.2]])
    levels = []

    def told(level, *_):
        levels.append(level)
        return off

    model._off = told  # type: ignore[method-assign]
    guesses = model.guesses(images[:1], images[1:], ground, first)
    assert tuple(levels) == SMALL.rounds == (1, 0)
    torch.testing.assert_close(guesses[1], composed(off, composed(off, first)))


def test_cells_are_compared_with_those_around_them():
    own = torch.zeros(1, 2, 7, 9)
    own[0, :, 3, 4] = torch.tensor([2.0, 3.0])
    other = own.roll((2, -1), dims=(2, 3))
    products, shifts = compared(own, other, (2, 1))
    assert products.shape == (1, 15, 7, 9) and shifts.shape == (15, 2)
    found = products[0].nonzero()
    assert found.tolist() == [[int(found[0, 0]), 3, 4]]
    assert shifts[found[0, 0]].tolist() == [2.0, -1.0]
    assert float(products[0, found[0, 0], 3, 4]) == 13.0
    edge = torch.zeros(1, 2, 7, 9)
    edge[0, :, 0, 0] = 1.0
    assert float(compared(edge, edge, (2, 1))[0].sum()) == 2.0, "nothing lies beyond the edge"


def test_the_motion_is_that_of_the_cells_that_are_sure_and_agree():
    generator = torch.Generator().manual_seed(0)
    step, new = torch.tensor([[0.3, -0.1, 0.01], [-0.2, 0.05, -0.02]]), torch.randn(2, 40, 2, generator=generator) * 5
    old = new + step[:, None, :2] + step[:, None, 2:] * torch.stack([-new[..., 1], new[..., 0]], dim=-1)
    weights = torch.rand(2, 40, 2, generator=generator) + 0.1
    found = new - old
    found[:, :5], weights[:, :5] = 40.0, 0.0  # of no weight
    found[:, 5:25, 0], weights[:, 5:25, 0] = 0.0, 1e-4  # a line along x seems to stand still along itself
    found[:, 25:28] = 3.0  # sure, and alone with it
    torch.testing.assert_close(small_motion(new, found, weights, 0.3, step[:, :2]), step, atol=0.01, rtol=0)
    nothing = small_motion(new, found, torch.zeros(2, 40, 2), 0.3, step[:, :2])
    assert not nothing.any(), "nothing seen, nothing moved"


def test_the_first_guess_is_what_most_cells_go_with():
    """Six of ten cells moved by (1, -1), three that are surer stood still, one lies far astray."""
    products, shifts = compared(torch.zeros(1, 1, 2, 5), torch.zeros(1, 1, 2, 5), (2, 1))
    chance = torch.full_like(products, 1e-3)
    moved, still, astray = (
        int((shifts == torch.tensor(at)).all(-1).nonzero()) for at in ((1.0, -1.0), (0.0, 0.0), (-2.0, 1.0))
    )
    flat = chance.flatten(2)
    flat[0, moved, :6], flat[0, still, 6:9], flat[0, astray, 9] = 0.6, 0.98, 0.99
    counts = torch.ones(1, 1, 2, 5)
    assert elected(chance, counts, shifts).tolist() == [[1.0, -1.0]]
    counts.flatten()[:6] = 0.1
    assert elected(chance, counts, shifts).tolist() == [[0.0, 0.0]], "cells that do not count have no vote"


def test_cells_at_the_edge_of_sight_do_not_count():
    picture = torch.ones(1, 4, 20, 20)
    picture[:, 3, 10, 10] = 0.0
    seen = wholly_seen(picture, 2)[0, 0]
    assert seen.shape == (10, 10) and not seen[3:8, 3:8].any()
    assert not seen[:2].any() and not seen[:, -2:].any() and int(seen.sum()) == 36 - 25


def test_untrained_features_tell_a_painted_plane_apart():
    """Nothing is learnt yet: the geometry alone finds the way."""
    told = np.array([[0.4, 0.02, 0.03]])
    images, ground = as_tensors(*painted_plane(poses(told)))
    torch.manual_seed(0)
    with torch.inference_mode():
        found = EgoMotion(EgoMotionConfig())(images[:1], images[1:], ground)
    np.testing.assert_allclose(found.numpy(), told, atol=0.1)


SMALL = EgoMotionConfig(
    image_hw=(64, 112), places_xy=(112, 96), place_m=0.2, widths=(16, 24), rounds=(1, 0), reach_xy=(3, 2)
)  # fmt: skip


def footage(seed, moments=12):
    rng = np.random.default_rng(seed)
    path = poses(
        np.column_stack([rng.uniform(0, 1.2, moments - 1), np.zeros(moments - 1), rng.uniform(-0.05, 0.05, moments - 1)])
    )
    images, intrinsics, cameras = painted_plane(path, (64, 112))
    return Footage(
        images=images, times_s=np.arange(moments) / 4, ego_to_global=path, intrinsics=intrinsics, camera_to_ego=cameras
    )


def training(tmp_path, **more):
    loop = LoopConfig(
        out=str(tmp_path / "run"), steps=30, batch_size=4, learning_rate=1e-3, warmup_steps=5, sample_every=0, ema_decay=0.9
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
    shown = _collate([_pair(parts[0], k, k + 1) for k in range(10)])
    path = train_ego_motion(config)
    model, loaded = load_model(path, "ego_motion")
    assert loaded == SMALL
    found = model(shown.before_BV3HW, shown.after_BV3HW, shown.ground_BV33)
    off, still = ((part - shown.step_B3)[:, 0].square().mean().sqrt() for part in (found, shown.step_B3 * 0))
    assert float(off) < 0.15 * float(still), "it reads what it was shown"
    figures = task.evaluate(model, torch.device("cpu"))[0]
    told = np.stack([parts[3].step(k, k + 1) for k in range(11)])
    assert figures["held_out_x_m_of_zero"] == pytest.approx(np.sqrt(np.square(told[:, 0]).mean()))
    assert figures["held_out_yaw_rad_of_zero"] == pytest.approx(np.sqrt(np.square(told[:, 2]).mean()))
    reader = EgoMotionReader.load(path)
    big, intrinsics, cameras = painted_plane(parts[3].ego_to_global[:3], (64, 112))
    assert reader.steps(big, intrinsics, cameras).shape == (2, 3)
    assert len(reader.sha256) == 64


def test_a_log_is_read_moment_by_moment_through_its_own_cameras(pg_dataroot):
    footage = footage_of_logs(pg_dataroot, "v1.0-mini", "pg_train", (16, 28))
    scene = read_scene(pg_dataroot, "v1.0-mini", scenes_of_split(pg_dataroot, "v1.0-mini", "pg_train")[0])
    times_us = np.array([frame.timestamp_us for frame in scene.frames["CAM_FRONT"]])
    np.testing.assert_allclose(footage[0].times_s, (times_us - times_us[0]) * 1e-6)
    wanted = [read_images(scene, channel, [3], (16, 28))[0] for channel in CAMERAS]
    np.testing.assert_array_equal(footage[0].images[3], wanted)
    step = np.linalg.inv(scene.ego.at(times_us[3:4])[0]) @ scene.ego.at(times_us[5:6])[0]
    np.testing.assert_allclose(footage[0].step(3, 5)[:2], step[:2, 3], atol=1e-9)
    np.testing.assert_allclose(footage[0].intrinsics[0], scene.cameras[0].resized(28, 16).intrinsics)


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
        def guesses(self, before_BV3HW, after_BV3HW, ground_BV33, first_B3):
            return [batch.step_B3 + off * self.scale for off in (0.0, torch.tensor([0.0, 0.0, 1.0]))]

    loss, parts = task.loss(Exact(SMALL), batch, torch.Generator())
    assert float(parts["first_round"]) == 0.0
    assert float(parts["last_round"]) == pytest.approx(0.5 / 3)
    assert float(loss) == pytest.approx(2 / 3 * 0.5 / 3)
    assert json.loads(task.fingerprint)["ego_motion"]["widths"] == [16, 24]


def test_first_guesses_are_zero_or_near_the_truth(tmp_path):
    batches, seen = {}, {}
    for share in (0.0, 1.0):
        task = EgoMotionTask(training(tmp_path, near_share=share), [footage(0), footage(1)])
        batches[share] = task.load(list(range(8)), np.random.default_rng(0))

        class Watched(EgoMotion):
            def guesses(self, before_BV3HW, after_BV3HW, ground_BV33, first_B3, share=share):
                seen[share] = first_B3
                return [first_B3]

        task.loss(Watched(SMALL), batches[share], torch.Generator().manual_seed(0))
    assert not seen[0.0].any()
    off = (seen[1.0] - batches[1.0].step_B3) / torch.tensor(SMALL.scale)
    assert 3.0 < float(off.std()) < 8.0
