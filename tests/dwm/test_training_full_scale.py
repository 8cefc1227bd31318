"""Training as at full scale, on toys: a start from Open-Sora's weights, and blocks that are computed twice."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dwm.errors import InputError
from dwm.models.accounts import Clip, blank_inputs, kept_bytes
from dwm.models.dit import MultiViewDiT
from dwm.models.systems import SYSTEMS
from dwm.models.weights import load_tensors, save_model
from dwm.training.clips import TrainingClip
from dwm.training.loop import fit
from dwm.training.world_trainer import WorldTask
from tests.dwm.test_open_sora import CONFIG, checkpoint, save
from tests.dwm.test_trainer_loop import COLS, ROWS, ToyClips, make_config


class FourChannelClips(ToyClips):
    """With the latents of an image codec."""

    def get(self, index: int, generator: np.random.Generator) -> TrainingClip:
        clip = super().get(index, generator)
        dense = ("latents_TVCHW", "memory_TVCHW", "appearance_TVCHW")
        text = torch.ones(len(clip.text_L), CONFIG.text_features)
        return replace(
            clip, text_features_LK=text, **{name: torch.cat([t := getattr(clip, name), t[:, :, :1]], dim=2) for name in dense}
        )


def test_a_run_starts_from_open_soras_weights_and_says_what_became_of_them(tmp_path):
    path = save(tmp_path / "sora.safetensors", checkpoint())
    config = make_config(tmp_path / "run", steps=1, accumulate=1, learning_rate=0.0)
    model = replace(CONFIG, views=2, layout_channels=2, image_hw=(8 * ROWS, 8 * COLS))
    config = replace(config, initial_open_sora=str(path), world=replace(config.world, model=model))
    tensors, _ = load_tensors(fit(WorldTask(config, FourChannelClips()), config.loop))
    assert torch.equal(tensors["blocks.1.mlp.0.weight"], checkpoint()["blocks.1.mlp.fc1.weight"])
    report = json.loads((tmp_path / "run" / "open_sora.json").read_text())
    assert report["taken"]["blocks.1.mlp.fc1.weight"] == "blocks.1.mlp.0.weight"
    assert set(report["taken"]) | set(report["reshaped"]) | set(report["left"]) == set(checkpoint())


def test_two_starts_at_once_and_a_wrong_file_are_refused(tmp_path):
    config = replace(make_config(tmp_path), initial_open_sora=str(tmp_path / "none.safetensors"))
    with pytest.raises(InputError, match="initial_weights is given too"):
        WorldTask(replace(config, initial_weights="other.safetensors"), ToyClips())
    with pytest.raises(InputError, match="is not how STDiT2 is wired"):
        fit(WorldTask(config, ToyClips()), config.loop)
    wired = replace(config, world=replace(config.world, model=replace(CONFIG, image_hw=(8 * ROWS, 8 * COLS))))
    with pytest.raises(InputError, match="no such weights file"):
        fit(WorldTask(wired, FourChannelClips()), wired.loop)


def test_blocks_computed_again_give_the_same_gradients_and_keep_less(tmp_path):
    torch.manual_seed(0)
    model = MultiViewDiT(CONFIG)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    inputs = blank_inputs(CONFIG, Clip(frames=2, height_px=32, width_px=32))
    inputs = (torch.randn(inputs[0].shape), *inputs[1:])
    gradients, kept = [], []
    for model.recompute in (False, True):
        model.zero_grad()
        predicted, held = kept_bytes(lambda: model(*inputs), list(model.parameters()))
        predicted.square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        kept.append(held)
    assert len(gradients[0]) == len(gradients[1]) > 50
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert max(float(g.abs().max()) for g in gradients[0]) > 1e-3
    assert kept[1] < 0.4 * kept[0]


@pytest.mark.parametrize("system", SYSTEMS)
def test_recomputing_changes_no_bit_of_a_run_nor_what_is_stored(system, tmp_path):
    stored = []
    for again in (False, True):
        config = make_config(tmp_path / str(again), steps=3)
        model = replace(config.world.model, system=system, decoder_depth=1, injected_depth=1)
        config = replace(config, world=replace(config.world, model=model, recompute_blocks=again))
        task = WorldTask(config, ToyClips())
        assert task.model.recompute is again
        stored.append(load_tensors(fit(task, config.loop)))
    (tensors, metadata), (again_tensors, again_metadata) = stored
    assert metadata == again_metadata
    assert all(torch.equal(tensor, again_tensors[name]) for name, tensor in tensors.items())
    assert not MultiViewDiT(CONFIG).recompute
    assert "recompute" not in load_tensors(save_model(task.model, tmp_path / "w.safetensors", {}))[1]["config"]


def test_a_shortcut_is_solved_only_where_there_is_one(tmp_path):
    config = make_config(tmp_path)
    world = replace(config.world, shortcut_clips=2, model=replace(config.world.model, preconditioned=False))
    with pytest.raises(InputError, match=r"world\.shortcut_clips: 2 of a model without a shortcut; set it to 0"):
        WorldTask(replace(config, world=world), ToyClips())
