"""Footage, mirror, augmentation, the training loop and the runner."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluators.vad.training as training
from dwm.conditioning.build import ScenarioConditioner
from dwm.errors import InputError
from dwm.geometry import apply, invert
from dwm.models.weights import load_model
from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from dwm.training.cache import render_drives
from dwm.training.config import DrivesConfig, LoopConfig
from evaluators.drive import Drive
from evaluators.mapping import MapLine
from evaluators.vad.augment import GRID_RATIO, grid_masked, relit
from evaluators.vad.config import CAMERA_ORDER, COMMANDS, CONFIGS
from evaluators.vad.footage import VadFootage, footage_of_drives, key_frames_of, seen_agents
from evaluators.vad.inputs import path_motion
from evaluators.vad.mirror import mirrored_frame, mirrored_targets
from evaluators.vad.model import VAD
from evaluators.vad.runner import run_stretch
from evaluators.vad.training import VadTask, VadTraining, train_vad
from tests.evaluators.vad.vad_factories import TINY
from tests.factories import make_scene

FRAMES = tuple(range(0, 49, 6))
LINE = MapLine(class_name="divider", points_m=np.array([[-1.8, -20.0], [-1.8, 20.0]]))


def make_footage(seed=0) -> VadFootage:
    made = build_scenario(make_scene(), BASELINE, 0, duration_s=7.0)
    assert isinstance(made, Scenario)
    images = np.random.default_rng(seed).integers(0, 256, (len(FRAMES), 6, 32, 64, 3), np.uint8)
    return VadFootage(
        drive=Drive.of(made), frames=FRAMES, images=images, lines=((LINE,),) * len(FRAMES),
        seen=np.ones((len(FRAMES), len(made.agents.instance_tokens)), dtype=bool),
    )  # fmt: skip


@pytest.fixture(scope="module")
def footage() -> VadFootage:
    return make_footage()


def test_key_frames_are_half_a_second_apart_and_end_at_a_gap(footage):
    assert key_frames_of(footage.drive.fps, [3, 4, 9, 15, 20, 21, 33]) == [0, 2, 3, 5]


def test_a_place_on_the_road_is_where_the_camera_shows_it(footage):
    lidar_to_image = footage.frame(2, TINY).lidar_to_image_V44.double().numpy()
    drive, pose = footage.drive, footage.drive.ego_to_global[FRAMES[2]]
    place = np.array([0.5, 12.0, -1.0])
    at = apply(pose @ drive.lidar_to_ego, place[None])[0]
    for v, name in enumerate(CAMERA_ORDER):
        camera = next(c for c in drive.cameras if c.channel == name).resized(64, 32)
        seen = apply(np.linalg.inv(pose @ camera.camera_to_ego), at[None])[0]
        if seen[2] > 0.1:
            u, w, depth = camera.intrinsics @ seen
            own = lidar_to_image[v] @ np.append(place, 1)
            np.testing.assert_allclose(own[:2] / own[2], [u / depth, w / depth], atol=1e-3)


def test_seen_agents_are_those_of_the_layouts_rays(footage):
    scenario = build_scenario(make_scene(), BASELINE, 0, duration_s=7.0)
    assert isinstance(scenario, Scenario)
    conditioner = ScenarioConditioner(scenario)
    seen = seen_agents(conditioner, FRAMES[:2])
    assert seen.shape == (2, len(scenario.agents.instance_tokens)) and seen.any()
    assert np.array_equal(seen[1], conditioner.seen_rays(FRAMES[1]) > 0)


def test_the_mirror_shows_a_place_where_its_mirror_image_is(footage):
    frame, pose = footage.frame(1, TINY), footage.drive.ego_to_global[FRAMES[1]]
    other = mirrored_frame(frame, 64, pose)
    place = torch.tensor([3.0, 14.0, 0.5, 1.0])
    flipped = place * torch.tensor([-1.0, 1.0, 1.0, 1.0])
    pairs = {"CAM_FRONT": "CAM_FRONT", "CAM_FRONT_RIGHT": "CAM_FRONT_LEFT", "CAM_BACK_LEFT": "CAM_BACK_RIGHT"}
    for name, partner in pairs.items():
        a, b = CAMERA_ORDER.index(name), CAMERA_ORDER.index(partner)
        u, v, depth, _ = frame.lidar_to_image_V44[a] @ place
        mu, mv, mdepth, _ = other.lidar_to_image_V44[b] @ flipped
        torch.testing.assert_close(mdepth, depth)
        torch.testing.assert_close(
            torch.stack([mu / mdepth, mv / mdepth]), torch.stack([63 - u / depth, v / depth]), atol=1e-3, rtol=1e-4
        )
        torch.testing.assert_close(other.images_V3hw[b], frame.images_V3hw[a].flip(-1))
    again = mirrored_frame(other, 64, pose * 0 + np.diag([1.0, -1.0, 1.0, 1.0]) @ pose @ np.diag([1.0, -1.0, 1.0, 1.0]))
    torch.testing.assert_close(again.lidar_to_image_V44, frame.lidar_to_image_V44)
    np.testing.assert_allclose(again.can_bus_18, frame.can_bus_18, atol=1e-9)
    mirror = np.diag([1.0, -1.0, 1.0, 1.0])
    path = mirror @ footage.drive.ego_to_global @ mirror
    np.testing.assert_allclose(other.can_bus_18[7:16], path_motion(path, footage.drive.fps, FRAMES[1]), atol=1e-9)


def test_targets_in_a_mirror_twice_are_the_targets(footage):
    target = replace(footage.targets(3, TINY), command=COMMANDS.index("left"))
    other = mirrored_targets(target)
    assert COMMANDS[other.command] == "right"
    torch.testing.assert_close(other.boxes_N10[:, 0], -target.boxes_N10[:, 0])
    yaw = -torch.atan2(target.boxes_N10[:, 6], target.boxes_N10[:, 7]) - math.pi / 2
    turned = -torch.atan2(other.boxes_N10[:, 6], other.boxes_N10[:, 7]) - math.pi / 2
    torch.testing.assert_close(turned.cos(), -yaw.cos())
    torch.testing.assert_close(turned.sin(), yaw.sin(), atol=1e-6, rtol=0)
    back = mirrored_targets(other)
    for name in ("boxes_N10", "steps_NT2", "map_points_IGP2", "plan_T2"):
        torch.testing.assert_close(getattr(back, name), getattr(target, name), equal_nan=True)
    assert back.command == target.command


def test_holes_cover_a_quarter_and_are_the_same_in_all_cameras():
    images, shares = torch.ones(6, 3, 64, 96), []
    for seed in range(60):
        masked = grid_masked(images, np.random.default_rng(seed))
        assert torch.equal(masked[0], masked[5]) and torch.equal(masked[:, 0], masked[:, 2])
        shares.append(float(1 - masked.mean()))
    hit = [share for share in shares if share > 0]
    assert 0.5 < len(hit) / 60 < 0.9
    assert np.mean(hit) == pytest.approx(GRID_RATIO**2, abs=0.05)


def test_light_changes_by_no_more_than_told():
    images = torch.randn(6, 3, 8, 8)
    changed = relit(images, 0.1, np.random.default_rng(0))
    assert float((changed - images).abs().max()) <= 0.13 * (float(images.abs().max()) + 1) + 1e-6
    assert torch.equal(relit(images, 0.0, np.random.default_rng(0)), images)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(CONFIGS, "vad_proving_ground", TINY)


def make_training(tmp_path, **more):
    loop = LoopConfig(
        out=str(tmp_path / "run"), steps=30, batch_size=2, learning_rate=2e-3, warmup_steps=5, sample_every=0, ema_decay=0.5
    )
    return VadTraining(**{"loop": loop, "held_out": 1, "past_frames": 1, "drives": ("nowhere",), **more})


def test_training_lowers_the_loss_and_what_it_writes_runs_over_a_stretch(tmp_path, small, monkeypatch, footage):
    parts = [footage, make_footage(1)]
    monkeypatch.setattr(training, "footage_of_drives", lambda *_: parts)
    monkeypatch.setitem(CONFIGS, "vad_proving_ground", replace(TINY, can_motion=False))
    config = make_training(tmp_path, mirrored_share=0.0, light=0.0, grid_mask=False)
    task = VadTask(config, parts)
    batch = task.load([2, 3], np.random.default_rng(0))
    helped = task.model.eval()
    before = float(task.loss(helped, batch, torch.Generator())[0].detach())
    figures = task.evaluate(helped, torch.device("cpu"))[0]
    assert figures["held_out_loss"] == pytest.approx(sum(v for k, v in figures.items() if k != "held_out_loss"), rel=1e-4)
    model, loaded = load_model(train_vad(config), "vad")
    assert loaded == replace(TINY, can_motion=False), "the size it was asked for"
    assert set(model.state_dict()) == set(VAD(TINY).state_dict()), "what helped is left out"
    helped.vad = model
    assert float(task.loss(helped, batch, torch.Generator())[0].detach()) < 0.8 * before
    frames = [footage.frame(k, TINY) for k in range(3)]
    outputs = list(run_stretch(model, frames))
    assert len(outputs) == 3
    alone = next(run_stretch(model, frames[2:]))
    assert not torch.equal(outputs[2].bev_BQD, alone.bev_BQD), "the past counts"
    torch.testing.assert_close(next(run_stretch(model, frames)).bev_BQD, outputs[0].bev_BQD)


def test_samples_of_a_batch_share_the_shortest_past(tmp_path, small, footage):
    task = VadTask(make_training(tmp_path), [footage, footage])
    seen = {task.load([5, 6], np.random.default_rng(seed)).images_BNV3hw.shape[1] for seed in range(8)}
    assert seen == {1, 2}, "none or one before, by turns"
    first = task.load([0, 6], np.random.default_rng(0))
    assert first.images_BNV3hw.shape[1] == 1 and float(first.can_bus_BN18[:, 0, :3].abs().max()) == 0.0
    assert len(task) == len(FRAMES)


def test_missing_footage_and_unknown_sizes_are_told(tmp_path, footage):
    with pytest.raises(InputError, match="no size is called 'huge'"):
        train_vad(make_training(tmp_path, size="huge"))
    with pytest.raises(InputError, match="no folder of rendered drives"):
        train_vad(make_training(tmp_path, drives=()))
    with pytest.raises(InputError, match="1 stretches, the last 1 held out"):
        VadTask(make_training(tmp_path), [footage])
    with pytest.raises(InputError, match="no rendered drives"):
        footage_of_drives(tmp_path)


@pytest.mark.slow
def test_drives_become_footage_with_the_map_of_their_town(tmp_path):
    render_drives(DrivesConfig(out=str(tmp_path), towns=1, drives_per_town=1, frames_12hz=13, low_fps=(), device="cpu"))
    stretch = footage_of_drives(tmp_path, progress=False)[0]
    assert len(stretch) == 3 and stretch.images.shape == (3, 6, 128, 224, 3)
    assert {line.class_name for lines in stretch.lines for line in lines} >= {"divider", "boundary"}
    target = stretch.targets(0, CONFIGS["vad_proving_ground"])
    assert target.map_points_IGP2.shape[1:] == (38, 20, 2) and bool(target.plan_known_T.all())
    assert isinstance(VAD(CONFIGS["vad_proving_ground"]), VAD)


def test_the_operating_score_is_that_of_the_held_out_stretches(small, monkeypatch, footage):
    monkeypatch.setitem(CONFIGS, "vad_proving_ground", replace(TINY, can_motion=False))
    kept = make_footage(1)
    task = VadTask(make_training(Path("nowhere")), [footage, kept])
    truth = [kept.drive.seen_boxes(frame, seen)[0] for frame, seen in zip(kept.frames, kept.seen, strict=True)]

    def boxes_of(detector, frame):
        """True boxes with 0.7 in every other frame, boxes 4 m aside with 0.4 in the others."""
        shown = [kept.frame(k, detector.model.config) for k in range(len(kept))]
        k = next(k for k, own in enumerate(shown) if torch.equal(own.images_V3hw, frame.images_V3hw))
        assert np.allclose(frame.can_bus_18, shown[k].can_bus_18)
        found, off = truth[k], k % 2
        moved = found.centers_m + off * np.array([0, 4.0, 0])
        return replace(found, scores=np.full(len(found), 0.4 if off else 0.7), centers_m=moved).moved(
            invert(kept.drive.lidar_to_ego)
        )

    monkeypatch.setattr(training.VadDetector, "boxes_of", boxes_of)
    assert task.metadata == {"trained_on": ""}
    task.finish(task.model, torch.device("cpu"))
    assert task.metadata["operating_score"] == "0.7000"
