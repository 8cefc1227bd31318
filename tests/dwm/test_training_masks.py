"""Training MaskGWM: masks, how many frames are given, and that it learns."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dwm.errors import InputError
from dwm.flow.rectified import NoiseConfig
from dwm.models.masking import TokenMask
from dwm.training.clips import TrainingClip, collate
from dwm.training.config import LoopConfig, TrainConfig, WorldTraining
from dwm.training.world_trainer import WorldTask
from tests.dwm.test_maskgwm import COLS, ROWS, TINY, C, T, V

SMALL = replace(TINY, image_hw=(16 * ROWS, 16 * COLS))


class ToyClips:
    """Two clips of random latents with nothing else to go by."""

    def __len__(self) -> int:
        return 2

    def get(self, index: int, generator: np.random.Generator) -> TrainingClip:
        g = torch.Generator().manual_seed(index)
        latents = torch.randn(1, V, C, 2 * ROWS, 2 * COLS, generator=g).expand(T, -1, -1, -1, -1)
        return TrainingClip(
            latents_TVCHW=latents,
            memory_TVCHW=latents,
            memory_valid_TV1HW=torch.full((T, V, 1, 2 * ROWS, 2 * COLS), 255, dtype=torch.uint8),
            appearance_TVCHW=torch.zeros_like(latents),
            appearance_known_TV1HW=torch.zeros(T, V, 1, 2 * ROWS, 2 * COLS, dtype=torch.uint8),
            layout_TVCHW=torch.rand(T, V, 5, 4 * ROWS, 4 * COLS, generator=g),
            waypoints_TK=torch.randn(T, 6, generator=g),
            cameras_VK=torch.cat([torch.tensor([0.8, 1.4, 0.5, 0.5]), torch.eye(4)[:3].flatten()]).expand(V, 16),
            times_T=torch.arange(T) / 12,
            fps=12.0,
            text_L=torch.tensor([1, 2, 0]),
            given=1,
        )


def make_task(**settings) -> WorldTask:
    world = WorldTraining(
        model=SMALL, held_out=1, drop_memory=1.0, dirty_condition_share=0.0, anchor_share=0.0,
        noise=NoiseConfig(robust=0.0, pure_noise_share=0.0), **settings,
    )  # fmt: skip
    return WorldTask(TrainConfig(world=world, loop=LoopConfig(device="cpu")), ToyClips())


def make_batch(task: WorldTask, clips: int = 4):
    return task.load([0] * clips, np.random.default_rng(0)).to(torch.device("cpu"))


def test_gradients_of_a_masked_step_reach_every_part_of_the_reconstruction():
    task = make_task()
    for parameter in task.model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    loss, _ = task.loss(task.model, make_batch(task, 8), torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.isfinite()
    gradients = {name: p.grad for name, p in task.model.named_parameters() if name.startswith("reconstruction")}
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all() and gradient.abs().max() > 0, name
    assert {"reconstruction.noise.weight", "reconstruction.learned"} < gradients.keys()


def test_the_loss_goes_down_over_steps_with_masks():
    """Always with the same draws: levels alone move the loss more than a few steps do."""
    task = make_task()
    batch, optimizer = make_batch(task), torch.optim.AdamW(task.model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss, _ = task.loss(task.model, batch, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_masks_come_from_the_steps_generator_with_the_noise_that_frames_carry():
    seen: list[tuple[Tensor, Tensor, TokenMask | None]] = []

    def model(latents, levels, condition, mask):
        seen.append((latents, levels, mask))
        return latents

    task = make_task()
    batch = make_batch(task)
    for seed in (0, 0, 1):
        task.loss(model, batch, torch.Generator().manual_seed(seed))
    masks = [mask for *_, mask in seen]
    assert torch.equal(masks[0].dropped_BTVRK, masks[1].dropped_BTVRK)
    assert not torch.equal(masks[0].dropped_BTVRK, masks[2].dropped_BTVRK)
    latents, levels, mask = seen[0]
    t = levels[:, :, None, None, None, None]
    assert (mask.noise_BTVCHW[:, 0] == 0).all(), "a given frame has no noise to tell of"
    mixed = t * batch.latents_BTVCHW + (1 - t) * mask.noise_BTVCHW
    torch.testing.assert_close(latents[:, 1:], mixed[:, 1:])


@pytest.mark.parametrize("change", [{"mask_ratio": 0.0}, {"model": replace(SMALL, system="mila")}])
def test_nothing_is_masked_at_ratio_zero_and_in_other_systems(change):
    task = make_task()
    task.config = replace(task.config, world=replace(task.config.world, **change))
    seen: list[TokenMask | None] = []

    def model(latents, levels, condition, mask):
        seen.append(mask)
        return latents

    task.loss(model, make_batch(task), torch.Generator().manual_seed(0))
    assert seen == [None]


def test_as_many_leading_frames_are_given_as_the_settings_ask_for():
    task = make_task(most_given=3)
    chance = np.random.default_rng(0)
    batches = [task.load([0, 0], chance) for _ in range(30)]
    given = torch.cat([batch.given_B for batch in batches])
    assert set(given.tolist()) == {0, 1, 2, 3}
    covered = torch.cat([batch.memory_valid_BTV1HW.flatten(1).any(dim=1) for batch in batches])
    assert torch.equal(covered, given >= 1), "the memory of a frame that is not given is not told"
    thin = make_task(most_given=3, frames_per_clip=2)
    assert {int(b.given_B) for b in (thin.load([0], chance) for _ in range(20))} == {0, 1}
    all_but_one = make_task(most_given=9)
    assert {int(b.given_B) for b in (all_but_one.load([0], chance) for _ in range(30))} == {0, 1, 2, 3}
    assert make_task().load([0, 0], chance).given_B.tolist() == [1, 1]


@pytest.mark.parametrize("given", [0, 1, 2, 3])
def test_a_clip_with_any_number_of_given_frames_can_be_learnt(given):
    task = make_task()
    clip = ToyClips().get(0, np.random.default_rng(0)).giving(given)
    batch = collate([clip, clip]).to(torch.device("cpu"))
    levels: list[Tensor] = []
    task.model.frame.register_forward_hook(lambda _, inputs, __: levels.append(inputs[0]))
    loss, _ = task.loss(task.model, batch, torch.Generator().manual_seed(0))
    assert float(loss.detach()) > 0 and math.isfinite(float(loss.detach()))
    assert ((levels[0] == 1).sum(dim=1) == given).all()


def test_shares_out_of_range_are_refused_by_name():
    for settings in ({"mask_ratio": 1.0}, {"mask_ratio": -0.1}, {"mask_time_share": 1.5}, {"most_given": -1}):
        (name,) = settings
        with pytest.raises(InputError, match=f"world.{name}"):
            make_task(**settings)
