"""Replayed drives: what each clip begins with is the model's, what it should have become is the truth."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from dwm.codec.autoencoder import Autoencoder, CodecConfig
from dwm.conditioning.build import images_to_tensor
from dwm.conditioning.things import Things
from dwm.errors import InputError
from dwm.models.dit import IMAGE_HW
from dwm.rollout.world_model import WorldModel
from dwm.scenes.proving_ground.city import FIRST_HELD_OUT_TOWN, build_city
from dwm.training import replay as module
from dwm.training import sequences
from dwm.training.config import ReplayConfig
from dwm.training.sequences import Town


def fading(latents, levels, condition):
    """A model that carries the memory along and loses a tenth of it every time."""
    return 0.9 * condition.memory_BTVCHW * condition.memory_valid_BTV1HW


def pictures(town: Town, scenario, weather: str, frames: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Uniform grey that grows with the frame, in place of a render."""
    return np.repeat(np.uint8(frames * 2)[:, None, None, None, None], 6, 1) * np.ones((1, 1, *image_hw, 3), np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReplayConfig, Autoencoder, list[dict]]:
    codec = Autoencoder(CodecConfig()).eval()
    noise = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    codec.fit_blocks(noise)
    town = Town(city=build_city(3, 200.0), renderer=None)
    config = ReplayConfig(
        out=str(tmp_path_factory.mktemp("replay")),
        device="cpu",
        first_town=3,
        towns=1,
        drives_per_town=1,
        windows=3,
        duration_s=10.0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "open_town", lambda *_, **__: town)
        patch.setattr(module, "drive", lambda town, seed, duration_s: sequences.drive(town, seed, duration_s, n_agents=8))
        patch.setattr(module, "render_frames", pictures)
        world = WorldModel(codec=codec, denoiser=fading, device=torch.device("cpu"), things=Things.none())
        patch.setattr(WorldModel, "load", staticmethod(lambda *_, **__: world))
        module.replay(config, progress=False)
    paths = sorted(Path(config.out).glob("clip-0003-0000-r*.pt"))
    return config, codec, [torch.load(path, weights_only=True) for path in paths]


def test_every_window_is_a_clip_with_one_given_frame(made):
    _, _, clips = made
    assert len(clips) == 3
    assert [clip["given"] for clip in clips] == [1, 1, 1]
    assert all(clip["latents"].shape == (8, 6, 16, 16, 28) for clip in clips)


def test_a_window_begins_with_what_the_model_made_last(made):
    _, _, clips = made
    for before, after in pairwise(clips):
        share = before["memory_valid"][-1].float() / 255
        made, told = after["latents"][0].float(), 0.9 * before["memory"][-1].float() * share
        # The memory gives way to what is painted on boxes; there the roll-out's look and the clip's own may differ.
        assert (made - told).abs().quantile(0.995) < 0.02


@torch.no_grad()
def test_what_it_should_have_made_is_the_truth(made):
    _, codec, clips = made
    drive = images_to_tensor(pictures(None, None, "", np.arange(120), IMAGE_HW))[:, 0]  # type: ignore[arg-type]
    known = codec.encode(drive)[:, :, 0, 0]  # [frame, C]
    targets = torch.cat([clip["latents"][1:, 0, :, 0, 0].float() for clip in clips])
    frames = torch.cdist(targets, known).argmin(1)
    windows = frames.view(3, 7)
    assert (windows.diff(dim=1) > 0).all()
    assert windows[:, -1].diff().tolist() == [23, 23]
    assert (windows[1:, 0] > windows[:-1, -1]).all()
    torch.testing.assert_close(targets, known[frames], atol=5e-3, rtol=1e-3)


def test_finished_drives_are_left_alone(made, monkeypatch):
    config, codec, _ = made
    world = WorldModel(codec=codec, denoiser=fading, device=torch.device("cpu"), things=Things.none())
    monkeypatch.setattr(WorldModel, "load", staticmethod(lambda *_, **__: world))
    monkeypatch.setattr(module, "open_town", lambda *_, **__: pytest.fail("a town was built"))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(config.out).iterdir()}
    module.replay(config, progress=False)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(config.out).iterdir()} == before


def test_held_out_towns_are_refused(tmp_path):
    with pytest.raises(InputError, match="held out"):
        module.replay(ReplayConfig(out=str(tmp_path / "none"), first_town=FIRST_HELD_OUT_TOWN - 1, towns=2), progress=False)
    assert not (tmp_path / "none").exists()
