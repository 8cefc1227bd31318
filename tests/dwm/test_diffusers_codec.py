"""Codecs of diffusers: the adapter against diffusers itself, on tiny random autoencoders."""

import json
import sys
from pathlib import Path

import pytest
import torch

from dwm.codec.diffusers_codec import load_diffusers_codec
from dwm.errors import InputError
from tests.dwm.outside_models import save_image_codec

IMAGES = torch.rand(7, 3, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return save_image_codec(tmp_path / "vae")


@pytest.fixture
def video_folder(tmp_path: Path) -> Path:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2, up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4, temporal_compression_ratio=2,
        scaling_factor=0.7,
    ).save_pretrained(tmp_path / "video")  # fmt: skip
    return tmp_path / "video"


@torch.no_grad()
def test_images_are_encoded_and_decoded_as_by_diffusers_but_for_scale_and_shift(image_folder):
    import diffusers

    codec, plain = load_diffusers_codec(str(image_folder)), diffusers.AutoencoderKL.from_pretrained(image_folder)
    assert (codec.latent_channels, codec.downsample) == (4, 4)
    mean = plain.encode(IMAGES).latent_dist.mean
    latents = codec.encode(IMAGES)
    assert latents.shape == (7, 4, 4, 8)
    torch.testing.assert_close(latents, (mean - 0.3) * 0.5, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(codec.decode(latents), plain.decode(mean).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_video_codec_sees_one_frame_at_a_time(video_folder):
    import diffusers

    codec, plain = load_diffusers_codec(str(video_folder)), diffusers.AutoencoderKLCogVideoX.from_pretrained(video_folder)
    assert (codec.latent_channels, codec.downsample) == (4, 2)
    latents = codec.encode(IMAGES)
    for image, latent in zip(IMAGES, latents, strict=True):
        mean = plain.encode(image[None, :, None]).latent_dist.mean
        torch.testing.assert_close(latent, mean[0, :, 0] * 0.7, atol=1e-5, rtol=1e-5)
    shown = plain.decode(latents[3:4, :, None] / 0.7).sample
    assert shown.shape[2] == 1
    torch.testing.assert_close(codec.decode(latents)[3], shown[0, :, 0], atol=1e-5, rtol=1e-5)


def test_a_subfolder_of_a_pipeline_is_found_and_gradients_are_off(image_folder):
    codec = load_diffusers_codec(str(image_folder.parent), subfolder="vae")
    assert not any(p.requires_grad for p in codec.parameters())
    assert not codec.training


def test_an_image_that_is_no_whole_number_of_latents_is_refused(image_folder):
    with pytest.raises(ValueError, match=r"18x32 is not a multiple of 4"):
        load_diffusers_codec(str(image_folder)).encode(torch.zeros(1, 3, 18, 32))


def test_other_folders_are_input_errors(image_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no autoencoder of diffusers"):
        load_diffusers_codec(str(tmp_path / "empty"))
    config = json.loads((image_folder / "config.json").read_text())
    (image_folder / "config.json").write_text(json.dumps({**config, "_class_name": "VQModel"}))
    with pytest.raises(InputError, match="holds a 'VQModel'"):
        load_diffusers_codec(str(image_folder))


def test_without_diffusers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"pip install 'roadreel\[full-scale\]'"):
        load_diffusers_codec("anywhere")
