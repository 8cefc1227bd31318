"""The codec's shapes, its normalisation, its loss and its training data."""

import numpy as np
import pytest
import torch

from dwm.codec.autoencoder import Autoencoder, CodecConfig
from dwm.errors import InputError
from dwm.training.codec_trainer import open_images, psnr_db, reconstruction_loss, to_model_range, to_pixels

SMALL = CodecConfig(latent_channels=4, widths=(8, 16, 16), blocks_per_level=1, norm_groups=4)


def small_codec() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(SMALL).eval()


def test_latents_are_sixteen_times_smaller_and_decode_to_the_image_size():
    codec, images = small_codec(), torch.rand(2, 3, 128, 224) * 2 - 1
    latents = codec.encode(images)
    assert codec.downsample == 16
    assert latents.shape == (2, 4, 8, 14)
    assert codec.decode(latents).shape == images.shape


def test_an_image_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="100x224 is not a multiple of 16"):
        small_codec().encode(torch.zeros(1, 3, 100, 224))


def test_normalisation_gives_unit_variance_and_leaves_reconstructions_alone():
    codec, images = small_codec(), torch.rand(8, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before = codec.decode(codec.encode(images))
        for _ in range(2):  # the second time starts from normalised latents
            codec.set_normalisation(codec.encode(images) * 1.0)
        latents, after = codec.encode(images), codec.decode(codec.encode(images))
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_reconstruction_loss_of_a_constant_offset_is_the_offset():
    images = torch.rand(1, 3, 4, 5)
    loss, parts = reconstruction_loss(images + 0.25, images, gradient_weight=0.5)
    assert float(loss) == pytest.approx(0.25, abs=1e-6)
    assert float(parts["edge_error"]) == pytest.approx(0.0, abs=1e-10)


def test_reconstruction_loss_of_a_ramp_is_its_mean_and_its_squared_slope():
    ramp = 0.1 * torch.arange(5.0).expand(1, 3, 4, 5)
    loss, _ = reconstruction_loss(ramp, torch.zeros_like(ramp), gradient_weight=0.5)
    assert float(loss) == pytest.approx(0.2 + 0.5 * 0.01, abs=1e-6)


def test_pixels_survive_the_model_range():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert torch.equal(to_pixels(to_model_range(pixels)), pixels)


def test_psnr_of_an_error_of_one_grey_level():
    assert psnr_db(torch.full((4,), 10), torch.full((4,), 11)) == pytest.approx(20 * np.log10(255))


def test_images_of_several_files_are_numbered_through(tmp_path):
    for i in range(2):
        np.save(tmp_path / f"images_{i}.npy", np.full((2, 3, 4, 6, 3), i + 1, np.uint8))  # [clips, views, H, W, 3]
    images = open_images(tmp_path)
    assert len(images) == 12
    assert [int(images[i].max()) for i in (0, 5, 6, 11)] == [1, 1, 2, 2]


def test_a_folder_without_images_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no images"):
        open_images(tmp_path)
