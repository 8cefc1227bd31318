"""Training clips from a small proving-ground log."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dwm.codec.autoencoder import Autoencoder, CodecConfig
from dwm.conditioning.build import ScenarioConditioner, images_to_tensor
from dwm.conditioning.layout import LAYOUT_CHANNELS
from dwm.errors import InputError
from dwm.scenario.as_logged import as_logged
from dwm.scenario.types import Scenario
from dwm.scenes.clips import read_images
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.types import CAMERAS
from dwm.training.cache import ClipCache
from dwm.training.config import LogClipsConfig
from dwm.training.log_clips import encode_log_clips, frame_images, windows_of
from dwm.training.log_windows import draw_windows, frames_from
from tests.conftest import VERSION

SIZE = (72, 112)  # 9 x 14 latents: no whole number of patches high
CODEC = Autoencoder(CodecConfig(latent_channels=4, width=4, blocks=1)).eval()


def settings(dataroot: Path, out: Path, **changed) -> LogClipsConfig:
    config = LogClipsConfig(
        dataroot=str(dataroot), version=VERSION, names=("scene-0001",), out=str(out), image_hw=SIZE, rates=(12, 2), window_frames=3,
        given=(1, 2), windows=2, device="cpu",
    )  # fmt: skip
    return replace(config, **changed)


@pytest.fixture(scope="module")
def logged(pg_dataroot: Path) -> Scenario:
    return as_logged(read_scene(pg_dataroot, VERSION, "scene-0001"))


@pytest.fixture(scope="module")
def made(pg_dataroot: Path, tmp_path_factory: pytest.TempPathFactory) -> LogClipsConfig:
    config = settings(pg_dataroot, tmp_path_factory.mktemp("log") / "clips")
    encode_log_clips(config, CODEC, progress=False)
    return config


def jittered(frames: int) -> np.ndarray:
    """Times [us] as nuScenes triggers its cameras: 12 a second, 50 or 100 ms apart."""
    steps = np.resize([100_000, 50_000, 100_000], frames - 1)
    return np.concatenate([[0], np.cumsum(steps)])


def test_given_frames_are_neighbours_and_the_others_follow_at_the_windows_rate():
    times, usable = jittered(120), np.ones(120, bool)
    for fps in (12, 2, 1):
        for given in (1, 4):
            frames = frames_from(5, times, usable, (12, fps), given, 8)
            assert frames is not None
            assert frames[:given] == list(range(5, 5 + given))
            since = (times[frames[given:]] - times[frames[given - 1]]) * 1e-6
            np.testing.assert_allclose(since, np.arange(1, 9 - given) / fps, atol=0.051)
    assert frames_from(5, times, usable, (12, 12), 1, 8) == list(range(5, 13))
    alike = frames_from(5, times, usable, (2, 2), 4, 8)  # as in the first stage: one rate throughout
    assert alike == frames_from(5, times, usable, (2, 2), 1, 8)
    np.testing.assert_allclose(np.diff(times[alike]) * 1e-6, 0.5, atol=0.101)


def test_a_window_with_a_gap_or_a_missing_image_or_beyond_the_log_is_none():
    times, usable = jittered(40), np.ones(40, bool)
    assert frames_from(33, times, usable, (12, 12), 1, 8) is None
    assert frames_from(20, times, usable, (12, 1), 1, 3) is None
    frames = frames_from(5, times, usable, (12, 2), 2, 4)
    assert frames is not None
    usable[frames[2]] = False
    assert frames_from(5, times, usable, (12, 2), 2, 4) is None
    cut = np.delete(times, [6])
    assert cut[6] - cut[5] > 125_000  # no picture for longer than frames at 12 Hz are apart
    assert frames_from(4, cut, np.ones(39, bool), (12, 2), 4, 5) is None
    assert frames_from(8, np.delete(times, range(12, 18)), np.ones(34, bool), (12, 2), 1, 3) is None


def test_windows_begin_at_different_frames_and_take_the_givens_by_turns():
    times, usable = jittered(60), np.ones(60, bool)
    windows = draw_windows(times, usable, (12, 2), (1, 4), 5, 6, np.random.default_rng(0))
    assert [w.given for w in windows] == [1, 4, 1, 4, 1, 4]
    assert all(w.look in w.frames and w.frames == frames_from(w.frames[0], times, usable, (12, 2), w.given, 5) for w in windows)
    for given in (1, 4):
        assert len({w.frames[0] for w in windows if w.given == given}) == 3
    few = draw_windows(times[:8], usable[:8], (12, 12), (1,), 7, 9, np.random.default_rng(0))
    assert sorted(w.frames[0] for w in few) == [0, 1]


def test_a_logged_drive_has_the_front_cameras_times_the_logs_poses_and_speeds_by_them(logged):
    scene = logged.scene
    times = [f.timestamp_us for f in scene.frames["CAM_FRONT"]]
    assert logged.timestamps_us.tolist() == times[: len(logged.timestamps_us)]
    assert abs(int(logged.timestamps_us[-1]) - int(scene.key_timestamps_us[-1])) < 45_000
    np.testing.assert_array_equal(logged.ego_to_global, scene.ego.at(logged.timestamps_us))
    agents, seconds = logged.agents, logged.timestamps_us * 1e-6
    steady = np.flatnonzero(agents.present.all(axis=1))
    assert len(steady) > 3
    expected = np.stack([np.gradient(agents.centers_m[steady, :, i], seconds, axis=1) for i in range(2)], -1)
    np.testing.assert_allclose(agents.velocities_mps[steady], expected, atol=0.02)


@torch.inference_mode()
def test_a_stored_window_is_the_codecs_view_of_the_logs_images_with_the_conditioners_words(made, logged):
    images = frame_images(logged)
    windows = windows_of(logged, images, made)
    found = ClipCache(Path(made.out))
    assert sorted(windows) == sorted(p.name for p in Path(made.out).iterdir())
    assert {(w.fps, w.given) for w in windows.values()} == {(12, 1), (12, 2), (2, 1), (2, 2)} - (
        {(2, 2)} if len(windows) < 4 else set()
    )
    conditioner = ScenarioConditioner(logged, image_hw=SIZE)
    for index, name in enumerate(sorted(windows)):
        clip, window = found.get(index, np.random.default_rng(0)), windows[name]
        assert (clip.fps, clip.given) == (window.fps, window.given)
        for t, frame in enumerate(window.frames):
            views = [read_images(logged.scene, c, [i], SIZE)[0] for c, i in zip(CAMERAS, images[frame].tolist(), strict=True)]
            assert torch.equal(clip.latents_TVCHW[t], CODEC.encode(images_to_tensor(np.stack(views))).half())
            assert torch.equal(clip.layout_TVCHW[t], conditioner.layout(frame).maps_VCHW.half())
        assert clip.layout_TVCHW.shape == (3, 6, len(LAYOUT_CHANNELS), 18, 28)
        torch.testing.assert_close(clip.waypoints_TK, conditioner.waypoints(window.frames))
        times = logged.timestamps_us[window.frames]
        torch.testing.assert_close(clip.times_T, torch.from_numpy((times - times[0]) * 1e-6).float())
        # The memory of the last given frame is that frame as the codec gives it back, where nothing is painted over it.
        given = window.given - 1
        whole = clip.memory_valid_TV1HW[given].expand(-1, 4, -1, -1) == 255
        passed = CODEC.encode(CODEC.decode(clip.latents_TVCHW[given].float()))
        assert whole.float().mean() > 0.3
        assert (clip.memory_TVCHW[given].float() - passed)[whole].abs().median() < 0.05


def test_what_is_there_is_not_made_again_and_comes_out_the_same(made):
    path = sorted(Path(made.out).iterdir())[1]
    before = {p: p.stat().st_mtime_ns for p in Path(made.out).iterdir()}
    first = torch.load(path, weights_only=True)
    path.unlink()
    encode_log_clips(made, CODEC, progress=False)
    assert {p for p in before if p.stat().st_mtime_ns != before[p]} == {path}
    again = torch.load(path, weights_only=True)
    assert all(torch.equal(torch.as_tensor(first[key]), torch.as_tensor(again[key])) for key in first)


def test_frames_without_images_are_left_out_and_everything_that_lacks_is_told(pg_dataroot, tmp_path, caplog):
    root = Path(shutil.copytree(pg_dataroot, tmp_path / "world"))
    shutil.rmtree(root / "maps" / "expansion")
    for folder in ("samples", "sweeps"):
        shutil.rmtree(root / folder / "LIDAR_TOP", ignore_errors=True)
    scenario = as_logged(read_scene(root, VERSION, "scene-0001"))
    scenario.scene.frames["CAM_BACK"][4].path.unlink()
    config = settings(root, tmp_path / "clips", rates=(12,), windows=1, given=(1,))
    with caplog.at_level(logging.INFO):
        encode_log_clips(config, CODEC, progress=False)
    assert len(list(Path(config.out).iterdir())) == 1
    told = caplog.text
    for words in (
        "no map expansion: lanes unknown",
        "LiDAR files are missing",
        "1 of 13 frames are left out",
        "logged images are missing",
    ):
        assert words in told
    windows = windows_of(scenario, frame_images(scenario), replace(config, windows=20))
    assert windows
    assert not any(4 in window.frames for window in windows.values())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rates": (24,)}, "give rates from 1 to 12"),
        ({"given_rate": 20}, "given frames at 20 Hz; give rates from 1 to 12"),
        ({"given": (3,)}, "leave one to generate"),
        ({"image_hw": (70, 112)}, "70x112 px; give multiples of the codec's 8 px"),
        ({"names": ("scene-9",)}, "no scene named scene-9"),
        ({"names": (), "split": "poetry"}, "no split named 'poetry'"),
        ({"window_frames": 40}, "no scene holds 40 frames with images"),
    ],
)
def test_settings_of_which_no_clip_can_be_made_are_told(pg_dataroot, tmp_path, changed, words):
    with pytest.raises(InputError, match=words):
        encode_log_clips(settings(pg_dataroot, tmp_path / "clips", **changed), CODEC, progress=False)
