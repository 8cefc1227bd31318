"""A world model wired as the papers' with codec and text encoder of others: from a log over training to a roll-out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dwm.codec.autoencoder import Autoencoder, CodecConfig
from dwm.codec.diffusers_codec import load_diffusers_codec
from dwm.codec.load import codec_sha256, load_codec
from dwm.conditioning.build import images_to_tensor
from dwm.conditioning.layout import LAYOUT_CHANNELS
from dwm.errors import InputError
from dwm.models.dit import DiTConfig
from dwm.models.systems import build_denoiser
from dwm.models.text_encoder import load_text_encoder
from dwm.models.weights import load_model, save_model
from dwm.rollout.config import RolloutConfig
from dwm.rollout.strategies import roll_out
from dwm.rollout.world_model import WorldModel
from dwm.scenario.as_logged import as_logged
from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from dwm.scenes.clips import read_images
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.types import CAMERAS
from dwm.training.cache import ClipCache
from dwm.training.config import LogClipsConfig, LoopConfig, TrainConfig, WorldTraining
from dwm.training.log_clips import encode_log_clips
from dwm.training.run import train
from tests.conftest import VERSION
from tests.dwm.outside_models import save_image_codec, save_text_encoder

SIZE = (72, 112)  # 9 x 14 latents: no whole number of patches high


def settings(dataroot: Path, out: Path, **changed) -> LogClipsConfig:
    config = LogClipsConfig(
        dataroot=str(dataroot), version=VERSION, names=("scene-0001",), out=str(out), image_hw=SIZE, rates=(12,), window_frames=3,
        given=(1,), windows=2, device="cpu",
    )  # fmt: skip
    return replace(config, **changed)


def wired(**changed) -> DiTConfig:
    """MiLA as in conf/model/mila_700m.yaml, but small."""
    config = DiTConfig(
        d_model=48, depth=2, heads=2, mlp_ratio=2.0, latent_channels=4, local_widths=(), stem_patch=2, preconditioned=False,
        layout_channels=len(LAYOUT_CHANNELS), text_every=1, text_features=12, spatial_positions=True, rotary_time=True, open_sora=True,
        image_hw=SIZE,
    )  # fmt: skip
    return replace(config, **changed)


def test_outside_codec_and_text_lead_from_a_log_over_training_to_a_roll_out_at_the_models_own_size(pg_dataroot, tmp_path):
    vae = save_image_codec(tmp_path / "pipeline" / "vae", levels=4).parent
    t5 = save_text_encoder(tmp_path / "t5")
    codec_name = f"diffusers:{vae}#vae"
    clips = settings(
        pg_dataroot,
        tmp_path / "clips",
        codec_weights=codec_name,
        text_encoder=str(t5),
        names=(),
        split="",
        windows=1,
        given=(1,),
    )
    train(TrainConfig(target="log_clips", log_clips=clips))
    found, scene = ClipCache(Path(clips.out)), read_scene(pg_dataroot, VERSION, "scene-0001")
    assert len(found) == 2
    features, tokens = load_text_encoder(str(t5)).encode([as_logged(scene).prompt])
    clip = found.get(0, np.random.default_rng(0))
    assert clip.text_features_LK is not None
    assert clip.text_features_LK.dtype == torch.float16
    torch.testing.assert_close(clip.text_features_LK.float(), features[0], atol=2e-3, rtol=2e-3)
    assert torch.equal(clip.text_L, tokens[0])
    assert clip.latents_TVCHW.shape == (3, 6, 4, 9, 14)

    world = WorldTraining(model=wired(), held_out=1, codec_weights=codec_name, recompute_blocks=True)
    loop = LoopConfig(out=str(tmp_path / "run"), device="cpu", steps=2, warmup_steps=1, sample_every=2, checkpoint_every=2)
    weights = train(TrainConfig(target="world_model", data=clips.out, world=world, loop=loop))
    model, config = load_model(weights, "multi_view_dit")
    assert config.image_hw == SIZE
    # They start at zero, so that what they are now was learnt.
    assert float(model.head.weight.abs().max()) > 0 and float(model.head.bias.abs().max()) > 0

    loaded = WorldModel.load(codec_name, weights, None, device="cpu", text_encoder=str(t5))
    scenario = build_scenario(scene, BASELINE, 0, duration_s=5 / 12)
    assert isinstance(scenario, Scenario)
    conditioner = loaded.conditioner(scenario)
    first = images_to_tensor(np.stack([read_images(scene, channel, [0], loaded.image_hw)[0] for channel in CAMERAS]))
    window = conditioner.window([0, 1], fps=12, codec=loaded.codec).condition
    assert window.text_features_BLK is not None
    torch.testing.assert_close(window.text_features_BLK, features)
    chunks = list(roll_out(loaded, conditioner, first, RolloutConfig(window_frames=3, steps=2, guidance=3.0), 0))
    images = torch.cat([chunk.images_NV3HW for chunk in chunks])
    assert images.shape == (4, 6, 3, *SIZE)
    assert torch.isfinite(images).all()
    assert float(images.std()) > 1e-3


def test_parts_that_do_not_fit_each_other_are_told(pg_dataroot, tmp_path):
    vae, t5 = save_image_codec(tmp_path / "vae", levels=4), str(save_text_encoder(tmp_path / "t5"))

    def weights(name: str, **changed) -> Path:
        return save_model(build_denoiser(wired(**changed)), tmp_path / f"{name}.safetensors", {})

    fits, codec = weights("fits"), f"diffusers:{vae}"
    assert WorldModel.load(codec, fits, None, device="cpu", text_encoder=t5).image_hw == SIZE
    for arguments, words in (
        ((codec, fits, None), "expects 12 text features, but gets none; set text_encoder"),
        ((codec, weights("words", text_features=0), t5), "reads words of its own"),
        ((codec, weights("wide", text_features=16), t5), "expects 16 text features, but gets 12"),
        ((codec, weights("deep", latent_channels=8), t5), "expects 8 latent channels, but diffusers"),
        ((codec, weights("odd", image_hw=(70, 112)), t5), "70x112 px; give multiples of the codec's 8 px"),
        ((f"diffusers:{tmp_path}/none", fits, t5), "no autoencoder of diffusers"),
        ((str(tmp_path / "none.safetensors"), fits, t5), "no such weights file"),
    ):
        *parts, text = arguments
        with pytest.raises(InputError, match=words):
            WorldModel.load(*parts, None, device="cpu", text_encoder=text)
    with pytest.raises(InputError, match="the world model 72x112 px; use two models of one size"):
        WorldModel.load(codec, fits, None, device="cpu", fine=weights("small", image_hw=(64, 96)), text_encoder=t5)
    clips = settings(pg_dataroot, tmp_path / "clips", windows=1)
    encode_log_clips(clips, Autoencoder(CodecConfig(latent_channels=4, width=4, blocks=1)).eval(), progress=False)
    config = TrainConfig(target="world_model", data=clips.out, world=WorldTraining(model=wired(), held_out=0))
    with pytest.raises(InputError, match="the clips have 0 text features, the model reads 12"):
        train(config)
    with pytest.raises(InputError, match="the clips have 9x14 latents a view, the model's images 128x224 px"):
        train(replace(config, world=WorldTraining(model=wired(text_features=0, image_hw=(128, 224)), held_out=0)))
    with pytest.raises(InputError, match="the clips have 4 latent channels, the model reads 16"):
        train(replace(config, world=WorldTraining(model=wired(text_features=0, latent_channels=16), held_out=0)))


def test_the_same_codec_by_folder_and_by_name(tmp_path):
    folder = save_image_codec(tmp_path / "vae")
    images = torch.rand(2, 3, 16, 32) * 2 - 1
    assert torch.equal(load_codec(f"diffusers:{folder}").encode(images), load_diffusers_codec(str(folder)).encode(images))
    digest = codec_sha256(f"diffusers:{folder}")
    assert digest == codec_sha256(f"diffusers:{tmp_path}#vae")
    shutil.copytree(folder, tmp_path / "copy")
    assert codec_sha256(f"diffusers:{tmp_path}/copy") == digest
    (tmp_path / "copy" / "config.json").write_text("{}")
    assert codec_sha256(f"diffusers:{tmp_path}/copy") != digest
    with pytest.raises(InputError, match="no such folder; give the model's folder, or an id of the hub"):
        codec_sha256(f"diffusers:{tmp_path}/gone")
    with pytest.raises(InputError, match="neither a folder nor an id of the hub with a copy on this machine"):
        codec_sha256("diffusers:nobody/nothing")
