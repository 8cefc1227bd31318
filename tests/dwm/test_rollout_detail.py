"""What the codec loses of the pictures behind a window comes back where the frame agrees with them, and nowhere else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dwm.rollout.detail import TOLERANCE, with_detail

SHOWN = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
COVERED = torch.ones(2, 1, 16, 24)


class Means:
    """Keeps each 8x8 block's mean colour alone."""

    latent_channels, downsample = 3, 8

    def encode(self, images_NCHW: Tensor) -> Tensor:
        return F.avg_pool2d(images_NCHW, 8)

    def decode(self, latents_NCHW: Tensor) -> Tensor:
        return latents_NCHW.repeat_interleave(8, -1).repeat_interleave(8, -2)


def test_a_frame_that_passed_the_codec_gets_all_of_it_back() -> None:
    codec = Means()
    passed = codec.decode(codec.encode(SHOWN))
    torch.testing.assert_close(with_detail(passed, SHOWN, COVERED, codec), SHOWN)


def test_a_frame_that_shows_something_else_keeps_what_it_shows() -> None:
    codec = Means()
    other = codec.decode(codec.encode(SHOWN)) + 4 * TOLERANCE
    added = with_detail(other, SHOWN, COVERED, codec) - other
    assert float(added.abs().max()) < 2 * torch.exp(torch.tensor(-16.0))


def test_a_frame_slightly_off_gets_the_share_that_the_equation_says() -> None:
    codec = Means()
    passed = codec.decode(codec.encode(SHOWN))
    near = passed + TOLERANCE  # the same everywhere, so that the surroundings do not matter
    expected = near + torch.exp(torch.tensor(-1.0)) * (SHOWN - passed)
    torch.testing.assert_close(with_detail(near, SHOWN, COVERED, codec), expected)


def test_nothing_is_added_where_nothing_was_known() -> None:
    codec, known = Means(), COVERED.clone()
    passed = codec.decode(codec.encode(SHOWN))
    known[:, :, :, :12] = 0
    made = with_detail(passed, SHOWN, known, codec)
    torch.testing.assert_close(made[..., :24], passed[..., :24])
    torch.testing.assert_close(made[..., 24:], SHOWN[..., 24:])
