"""The critic and its pull: gradients against closed forms, and a training run with one."""

import json
from dataclasses import replace

import pytest
import torch

from dwm.errors import InputError
from dwm.models.dit import MultiViewDiT
from dwm.models.weights import load_model
from dwm.training.adversary import LatentCritic, critic_loss, persuasion, pulled
from dwm.training.config import TrainConfig
from dwm.training.loop import fit
from dwm.training.world_trainer import WorldTask
from tests.dwm.test_trainer_loop import ToyClips, make_config


@pytest.fixture
def critic() -> LatentCritic:
    torch.manual_seed(0)
    return LatentCritic(3, 2, width=8)


def pictures(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 4, 8, generator=g), torch.rand(n, 2, 8, 16, generator=g)


def test_logits_are_one_per_patch_of_two_latent_pixels(critic):
    assert critic(*pictures()).shape == (4, 1, 2, 4)


def test_a_step_against_the_gradient_convinces_the_critic(critic):
    made, layout = pictures()
    before = critic(made, layout).mean()
    step = persuasion(critic, made, layout)
    assert critic(made - 0.1 * step / step.norm(), layout).mean() > before
    assert all(p.grad is None for p in critic.parameters())


def test_the_critics_loss_is_the_hinge_and_stops_at_the_latents(critic):
    (made, layout), real = pictures(), torch.randn(4, 3, 4, 8)
    critic.eval()  # spectral norms stand still
    made.requires_grad_()
    loss = critic_loss(critic, real, made, layout)
    margin = (1 - critic(real, layout)).clamp_min(0).mean() + (1 + critic(made, layout)).clamp_min(0).mean()
    assert float(loss.detach()) == pytest.approx(float(margin.detach()) / 2, rel=1e-5)
    loss.backward()
    assert made.grad is None
    assert all(p.grad is not None for p in critic.parameters())


def test_the_pull_is_a_share_of_the_losss_own_gradient():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    predicted = 2 * weight
    loss, pull = predicted.square().sum() / 2, torch.tensor([0.0, -7.0])
    both = pulled(loss, predicted, pull, share=0.5)
    assert float(both.detach()) == float(loss.detach())
    both.backward()
    # d loss / d predicted = (6, 8), norm 10: the pull becomes (0, -5); twice that at the weights.
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([12.0, 16.0 - 10.0]))


def make_duel(out) -> TrainConfig:
    return make_config(out, adversary=0.5, steps=12)


def test_training_with_a_critic_exports_the_denoiser_alone(tmp_path):
    config = make_duel(tmp_path)
    path = fit(WorldTask(config, ToyClips()), config.loop)
    model, _ = load_model(path, "multi_view_dit")
    assert isinstance(model, MultiViewDiT)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    doubts = [row["critic_loss"] for row in rows if row.get("critic_loss")]
    assert len(doubts) >= 6
    assert all(0 < doubt < 3 for doubt in doubts)


def test_a_critic_joins_trained_weights_and_not_a_run_without_one(tmp_path):
    plain = make_config(tmp_path / "plain")
    weights = fit(WorldTask(plain, ToyClips()), plain.loop)
    joined = WorldTask(replace(make_duel(tmp_path / "duel"), initial_weights=str(weights)), ToyClips())
    trained = load_model(weights)[0].state_dict()
    for name, tensor in joined.model.denoiser.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(tensor, trained[name]), name
    with pytest.raises(InputError, match="another world"):
        fit(joined, plain.loop)
