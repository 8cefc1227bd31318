"""Worn inputs: what is spared stays exact, what is worn fades towards the mean and loses its fine channels first."""

import pytest
import torch

from dwm.training.wear import WearConfig, draw_wear


def test_without_wear_latents_come_back_exactly():
    latents = torch.randn(3, 2, 6, 16, 4, 4)
    wear = draw_wear(torch.Generator().manual_seed(0), 3, 6, 16, WearConfig(share=0.0))
    assert torch.equal(wear(latents), latents)


def test_views_forget_their_memory_one_by_one():
    kept = draw_wear(torch.Generator().manual_seed(0), 2000, 6, 16, WearConfig(forgotten_views=0.3)).kept_BV
    assert set(kept.flatten().tolist()) == {0.0, 1.0}
    assert float(kept.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(torch.corrcoef(kept.T)[0, 1]) == pytest.approx(0, abs=0.06)


def test_the_stated_share_of_clips_is_worn():
    wear = draw_wear(torch.Generator().manual_seed(0), 4000, 6, 16, WearConfig(share=0.4))
    assert float((wear.gain_BC[:, 0] < 1).float().mean()) == pytest.approx(0.4, abs=0.03)


def test_fine_channels_fade_before_coarse_ones_and_nothing_is_amplified():
    wear = draw_wear(torch.Generator().manual_seed(0), 500, 6, 16, WearConfig(share=1.0))
    assert (wear.gain_BC.diff(dim=1) <= 0).all()
    assert float(wear.gain_BC.max()) <= 1.0
    assert float(wear.gain_BC[:, 0].min()) >= 1 - 0.8 - 1e-6


def test_colour_shifts_touch_coarse_channels_and_are_alike_in_all_views():
    shift = draw_wear(torch.Generator().manual_seed(0), 2000, 6, 16, WearConfig(share=1.0)).shift_BVC
    assert float(shift[..., 0].std()) > 20 * float(shift[..., -1].std())
    a, b = shift[:, 0, 0], shift[:, 3, 0]
    assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) == pytest.approx(0.64, abs=0.06)
