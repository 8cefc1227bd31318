"""The codec's shapes, its normalisation, its loss and its training data."""

import numpy as np
import pytest
import torch

from dwm.codec.autoencoder import Autoencoder, CodecConfig, from_blocks, to_blocks
from dwm.errors import InputError
from dwm.training.codec_trainer import open_images, psnr_db, reconstruction_loss, to_model_range, to_pixels

SMALL = CodecConfig(latent_channels=6, downsample=4, width=8, blocks=1)


def fitted_codec(images: torch.Tensor, config: CodecConfig = SMALL) -> Autoencoder:
    torch.manual_seed(0)
    codec = Autoencoder(config).eval()
    codec.fit_blocks(images)
    return codec


def smooth_images(n: int = 8) -> torch.Tensor:
    noise = torch.rand(n, 3, 40, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return torch.nn.functional.avg_pool2d(noise, 9, stride=1) * 3


def test_latents_have_the_stated_grid_and_decode_to_the_image_size():
    codec, images = Autoencoder(CodecConfig()).eval(), torch.rand(2, 3, 128, 224) * 2 - 1
    latents = codec.encode(images)
    assert (codec.downsample, latents.shape) == (8, (2, 16, 16, 28))
    assert codec.decode(latents).shape == images.shape


def test_an_image_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="101x224 is not a multiple of 8"):
        Autoencoder(CodecConfig()).encode(torch.zeros(1, 3, 101, 224))


def test_blocks_put_together_again_are_the_image():
    images = torch.rand(2, 3, 16, 24)
    assert torch.equal(from_blocks(to_blocks(images, 4), 4), images)


def test_with_all_components_an_untrained_codec_is_exact():
    images = smooth_images()
    codec = fitted_codec(images, CodecConfig(latent_channels=48, downsample=4, width=8, blocks=1))
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(codec.encode(images)), images, atol=2e-5, rtol=0)


def test_the_error_of_fewer_components_is_the_variance_left_out():
    images = smooth_images()
    codec = fitted_codec(images)
    blocks = to_blocks(images, 4).reshape(-1, 48).double()
    left_out = torch.linalg.eigvalsh(torch.cov(blocks.T))[: 48 - 6].sum() / 48
    with torch.no_grad():
        error = (codec.decode(codec.encode(images)) - images).double().square().mean()
    assert float(error) == pytest.approx(float(left_out), rel=0.01)


def test_latents_have_zero_mean_and_unit_variance_over_all_channels():
    images = smooth_images()
    with torch.no_grad():
        latents = fitted_codec(images).encode(images)
    assert float(latents.mean(dim=(0, 2, 3)).abs().max()) < 1e-4
    assert float(latents.var(dim=(0, 2, 3)).mean()) == pytest.approx(1.0, abs=0.02)


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
    with pytest.raises(InputError, match=r"no .*npy files"):
        open_images(tmp_path)
