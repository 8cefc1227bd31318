"""Told the truth: where, how often, and how soft."""

import math

import pytest
import torch

from dwm.training.clips import ClipBatch
from dwm.training.faith import FaithConfig, draw_faith

B, T, V, C, H, W = 3, 4, 2, 8, 3, 5


def batch_of() -> ClipBatch:
    g = torch.Generator().manual_seed(0)
    shape = (B, T, V, C, H, W)
    latents, memory, appearance = (torch.randn(shape, generator=g) for _ in range(3))
    share = torch.rand(B, T, V, 1, H, W, generator=g)
    none = torch.zeros(B)
    return ClipBatch(
        latents_BTVCHW=latents, memory_BTVCHW=memory, memory_valid_BTV1HW=share, appearance_BTVCHW=appearance,
        appearance_known_BTV1HW=share, layout_BTVCHW=none, waypoints_BTK=none, cameras_BVK=none, times_BT=none, fps_B=none,
        text_BL=none, given_B=none,
    )  # fmt: skip


def told(batch: ClipBatch, covered: torch.Tensor, **config: float) -> ClipBatch:
    return draw_faith(torch.Generator().manual_seed(1), B, V, C, FaithConfig(**config))(batch, covered)


def test_without_faith_a_batch_stays_what_it_is():
    batch = batch_of()
    same = told(batch, batch.memory_valid_BTV1HW)
    for name in ("memory_BTVCHW", "appearance_BTVCHW", "appearance_known_BTV1HW", "latents_BTVCHW"):
        assert torch.equal(getattr(same, name), getattr(batch, name))


def test_appearance_is_true_where_no_memory_covers_and_its_own_where_one_does():
    batch = batch_of()
    covered = (torch.arange(W) < 2).float().expand(B, T, V, 1, H, W)
    true = told(batch, covered, appearance_share=1.0, blur=0.0)
    torch.testing.assert_close(true.appearance_BTVCHW[..., 2:], batch.latents_BTVCHW[..., 2:])
    assert torch.equal(true.appearance_BTVCHW[..., :2], batch.appearance_BTVCHW[..., :2])
    assert torch.equal(true.appearance_known_BTV1HW[..., :2], batch.appearance_known_BTV1HW[..., :2])
    assert float(true.appearance_known_BTV1HW[..., 2:].min()) == 1.0
    assert torch.equal(true.memory_BTVCHW, batch.memory_BTVCHW)


def test_memory_is_true_clip_by_clip_and_soft_in_its_fine_channels():
    batch = batch_of()
    true = told(batch, batch.memory_valid_BTV1HW, memory_share=1.0, blur=2.0)
    gain = (true.memory_BTVCHW / batch.latents_BTVCHW).mean(dim=(1, 2, 4, 5))
    torch.testing.assert_close(gain[:, 0], torch.ones(B))
    assert (gain.diff(dim=1) < 0).all()
    assert float(gain.min()) > math.exp(-2.0)
    assert len(set(gain[:, -1].tolist())) == B
    assert torch.equal(true.latents_BTVCHW, batch.latents_BTVCHW)


def test_the_stated_shares_are_told():
    drawn = draw_faith(torch.Generator().manual_seed(0), 4000, 6, 16, FaithConfig(memory_share=0.3, appearance_share=0.8))
    assert float(drawn.memory_B.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert float(drawn.appearance_BV.float().mean()) == pytest.approx(0.8, abs=0.02)
