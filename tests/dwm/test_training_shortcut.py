"""The solved shortcut: what is linear in the inputs is found exactly, without a step of training."""

import torch

from dwm.models.dit import MultiViewDiT
from dwm.training.shortcut import fit_shortcut
from tests.dwm.test_dit_model import TINY, B, T, make_condition


def linear_truth(condition) -> torch.Tensor:
    """Clean latents that are a fixed blend of one layout layer and the appearance."""
    layer = condition.layout_BTVCHW[:, :, :, 3:4, ::2, ::2]  # one of the four layout pixels of a latent pixel
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0]).view(4, 1, 1)
    return layer * weights + 0.5 * condition.appearance_BTVCHW + 0.25


def examples(seeds: range):
    for seed in seeds:
        condition = make_condition(seed)
        levels = torch.zeros(B, T)
        levels[:, 0] = 1
        yield linear_truth(condition), levels, condition


@torch.no_grad()
def error(model: MultiViewDiT, seed: int) -> float:
    clean, levels, condition = next(iter(examples(range(seed, seed + 1))))
    latents = torch.where(levels.bool()[:, :, None, None, None, None], clean, torch.randn(clean.shape))
    return float((model(latents, levels, condition) - clean)[:, 1:].square().mean())


def test_a_linear_world_is_found_at_once():
    torch.manual_seed(0)
    model = MultiViewDiT(TINY).eval()
    # Without a memory the prior's deviation is the same everywhere, and the world stays linear in the inputs.
    model.prior_log_variance.data[:] = 0.0
    before = error(model, 99)
    fit_shortcut(model, examples(range(60)))
    assert before > 0.5
    assert error(model, 99) < 0.15 * before  # what is left is the ridge's shrinkage


@torch.no_grad()
def test_a_second_fit_finds_nothing_more():
    torch.manual_seed(0)
    model = MultiViewDiT(TINY).eval()
    fit_shortcut(model, examples(range(40)))
    once = model.shortcut.weight.clone()
    fit_shortcut(model, examples(range(40)))
    assert float((model.shortcut.weight - once).norm()) < 0.25 * float(once.norm())
