"""The training configurations that ship: readable, complete, and chained without a gap."""

from __future__ import annotations

from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dwm.conditioning.build import cast_size
from dwm.conditioning.layout import LAYOUT_CHANNELS
from dwm.config import load_config
from dwm.errors import InputError
from dwm.models.dit import DiTConfig
from dwm.models.systems import build_denoiser
from dwm.models.weights import fit_tensors, load_tensors
from dwm.scenes.prompts import VOCABULARY
from dwm.scenes.proving_ground.city import FIRST_HELD_OUT_TOWN
from dwm.scenes.types import CAMERAS
from dwm.training.config import TrainConfig
from dwm.training.distillation import DistillationConfig
from evaluators.detector.train import DetectorTrainConfig
from evaluators.ego_motion.training import EgoMotionTraining
from evaluators.vad.training import VadTraining
from pipelines import training
from pipelines.training import load_training, run_training

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "train"
FILES = sorted(FOLDER.glob("*.yaml"))
RECIPES = [path for path in FILES if "recipe" in yaml.safe_load(path.read_text())]
TARGETS = ["drives", "codec", "things", "clips", "world_model", "replay", "world_model", "detector"]


def steps_of(recipe: Path) -> list[Any]:
    """The loaded configurations of a recipe, in order."""
    return [load(FOLDER / name) for name in yaml.safe_load(recipe.read_text())["recipe"]]


OTHERS = {"detector": DetectorTrainConfig, "ego_motion": EgoMotionTraining, "vad": VadTraining}  # the rest is TrainConfig


def load(path: Path) -> Any:
    target = yaml.safe_load(path.read_text()).get("target", "world_model")
    return load_config(OTHERS.get(target, TrainConfig), path)


def test_there_is_a_recipe_for_a_cpu_and_one_for_a_gpu():
    assert [path.name for path in RECIPES] == ["recipe_cpu.yaml", "recipe_gpu.yaml"]


@pytest.mark.parametrize("path", [p for p in FILES if p not in RECIPES], ids=lambda p: p.stem)
def test_every_configuration_fills_its_dataclass(path: Path):
    assert load(path).target in (*TARGETS, *OTHERS)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_each_step_of_a_recipe_reads_what_an_earlier_one_writes(recipe: Path):
    drives, codec, things, clips, world, replay, finish, detector = steps_of(recipe)
    assert [step.target for step in (drives, codec, things, clips, world, replay, finish, detector)] == TARGETS
    assert things.things.out == clips.clips.things == replay.replay.things
    assert things.things.dataroot == detector.dataroot
    assert codec.data == clips.clips.drives == detector.drives == drives.drives.out
    codec_weights = str(Path(codec.loop.out) / "weights.safetensors")
    readers = (clips.clips, world.world, replay.replay, finish.world)
    assert {reader.codec_weights for reader in readers} == {codec_weights}
    assert world.data == finish.data == clips.clips.out == replay.replay.out
    assert finish.initial_weights == replay.replay.world_weights == str(Path(world.loop.out) / "weights.safetensors")
    outs = [drives.drives.out, codec.loop.out, clips.clips.out, world.loop.out, finish.loop.out, detector.out_dir]
    assert len(set(outs)) == 6


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_the_world_models_sizes_are_those_of_its_inputs(recipe: Path):
    _, codec, _, _, world, _, finish, _ = steps_of(recipe)
    model = world.world.model
    assert model == finish.world.model
    assert model.layout_channels == DiTConfig().layout_channels == len(LAYOUT_CHANNELS)
    assert model.latent_channels == codec.codec.model.latent_channels
    assert model.views == len(CAMERAS)
    assert model.text_vocabulary >= len(VOCABULARY)
    assert model.d_model % model.heads == 0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_no_recipe_trains_on_a_held_out_town_and_the_weights_say_which_towns_they_saw(recipe: Path):
    drives, codec, _, _, world, replay, finish, _ = steps_of(recipe)
    drives, replay = drives.drives, replay.replay
    last, last_own = drives.first_town + drives.towns - 1, replay.first_town + replay.towns - 1
    assert last < replay.first_town <= last_own < FIRST_HELD_OUT_TOWN
    told = f"proving-ground towns {drives.first_town}-{last}, {drives.drives_per_town} drives each"
    assert codec.trained_on == world.trained_on == told
    assert finish.trained_on == f"{told}, and its own windows in towns {replay.first_town}-{last_own}"


def test_a_recipe_runs_its_files_in_order_and_returns_the_last_output(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(f"target: {name}\n")
    (tmp_path / "recipe.yaml").write_text("recipe: [b.yaml, a.yaml]\n")
    ran = []
    monkeypatch.setattr(training, "_train_one", lambda path, target, overrides: ran.append((target, overrides)) or path)
    assert run_training(tmp_path / "recipe.yaml", []) == tmp_path / "a.yaml"
    assert ran == [("b", []), ("a", [])]
    assert run_training(tmp_path / "a.yaml", ["loop.steps=3"]) == tmp_path / "a.yaml"
    assert ran[-1] == ("a", ["loop.steps=3"])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_with_overrides_is_refused(recipe: Path):
    with pytest.raises(InputError, match=r"takes no overrides, got loop.steps=1"):
        run_training(recipe, ["loop.steps=1"])


def test_a_recipe_with_a_missing_file_is_refused_before_anything_runs(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("target: drives\n")
    (tmp_path / "recipe.yaml").write_text("recipe: [a.yaml, gone.yaml]\n")
    monkeypatch.setattr(training, "_train_one", lambda *_: pytest.fail("a step ran"))
    with pytest.raises(InputError, match=r"gone\.yaml: no such configuration file"):
        run_training(tmp_path / "recipe.yaml", [])


def test_an_unknown_field_and_an_unknown_target_are_told(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("target: drives\ndrives: {town: 3}\n")
    with pytest.raises(InputError, match="town"):
        run_training(path, [])
    path.write_text("target: poetry\n")
    with pytest.raises(InputError, match="'poetry' cannot be trained"):
        run_training(path, [])


@pytest.mark.parametrize("recipe", ["recipe.yaml", "recipe_gpu.yaml"])
def test_longdwms_recipe_is_one_chain_over_the_configured_models(recipe: str):
    folder = FOLDER / "longdwm"
    names = yaml.safe_load((folder / recipe).read_text())["recipe"]
    legs = {Path(name).stem.removeprefix("gpu_"): load_training(folder / name, []) for name in names if name[0] != "."}
    base = legs.pop("base", None)
    drives, clips, teacher, coarse, distillation, fine = legs.values()
    if base is not None:
        short = load_training(folder / names[1], [])
        assert (base.data, *base.more_data) == (short.clips.out, clips.clips.out) and base.world.cut == "rates"
        assert {teacher.initial_weights, coarse.initial_weights} == {f"{base.loop.out}/weights.safetensors"}
        assert fine.initial_weights == f"{teacher.loop.out}/weights.safetensors"
    assert drives.drives.out == clips.clips.drives
    assert {step.data for step in (teacher, coarse, distillation, fine)} == {clips.clips.out}
    assert drives.drives.frames_12hz == clips.clips.window_frames == distillation.world.key_frames.frames
    assert distillation.world.distillation == DistillationConfig(teacher_weights=f"{teacher.loop.out}/weights.safetensors")
    assert distillation.initial_weights == f"{coarse.loop.out}/weights.safetensors"
    assert [step.world.cut for step in (teacher, coarse, fine)] == ["dense", "coarse", "dense"]
    assert [step.world.anchor_share for step in (teacher, coarse, fine)] == [0, 0, 1]
    assert [step.world.model.injection for step in (teacher, coarse, distillation, fine)] == ["first", "first", "first", "own"]


@pytest.mark.parametrize("recipe", ["recipe.yaml", "recipe_gpu.yaml"])
def test_milas_stages_follow_one_another_and_learn_what_the_paper_says(recipe: str):
    folder = FOLDER / "mila"
    names = yaml.safe_load((folder / recipe).read_text())["recipe"]
    first, second, third = (load_training(folder / name, []) for name in names)
    assert [step.loop.steps for step in (first, second, third)] == [2000, 20000, 8000]
    assert {step.loop.learning_rate for step in (first, second, third)} == {1e-4}
    assert second.initial_weights == f"{first.loop.out}/weights.safetensors"
    assert third.initial_weights == f"{second.loop.out}/weights.safetensors"
    assert [step.world.noisy_anchor_share for step in (first, second, third)] == [0, 0, 0.75]
    assert {(step.world.drop_text, step.world.drop_waypoints) for step in (first, second, third)} == {(0.15, 0.15)}
    model = build_denoiser(first.world.model)
    fit_tensors(model, load_tensors(Path(first.initial_weights))[0], Path(first.initial_weights))  # the backbone fits
    learns = {
        step.loop.out: {name for name, _ in model.named_parameters() if any(fnmatch(name, p) for p in step.world.trainable)}
        for step in (first, second, third)
    }
    one, two, three = learns.values()
    assert {"blocks.0.spatial.out.weight", "blocks.5.mlp.0.weight", "frame.waypoints.layers.0.weight", "head.weight"} <= one
    assert not {"blocks.0.temporal.out.weight", "blocks.4.mlp.0.weight", "stem.weight", "text.table.weight"} & one
    assert one < two == three
    assert {name for name, _ in model.named_parameters()} - two == {"text.table.weight", "text.null"}


def test_mila_at_the_papers_size_follows_its_stages_on_nuscenes():
    folder = FOLDER / "mila_700m"
    names = yaml.safe_load((folder / "recipe.yaml").read_text())["recipe"]
    before, first, clips, second, third = (load_training(folder / name, []) for name in names)
    stages = (first, second, third)
    assert [step.target for step in (before, clips)] == ["log_clips"] * 2
    assert (before.log_clips.out, clips.log_clips.out) == (first.data, second.data) and second.data == third.data
    # First stage: one rate within a clip. Later: given frames at 12 Hz, the others at 12, 2 or 1 Hz.
    assert (before.log_clips.given_rate, clips.log_clips.given_rate) == (0, 12)
    for one in (before.log_clips, clips.log_clips):
        assert (tuple(one.rates), tuple(one.given), one.window_frames - max(one.given)) == ((12, 2, 1), (1, 4), 12)
        assert (tuple(one.image_hw), one.split, one.version) == ((360, 640), "train", "v1.0-trainval")
        assert {one.codec_weights} == {step.world.codec_weights for step in stages}
    model = first.world.model
    assert all(step.world.model == model for step in stages)
    assert (tuple(model.image_hw), model.text_features, model.latent_channels, model.open_sora) == ((360, 640), 4096, 4, True)
    assert cast_size(model.image_hw, 8) == (180, 320)
    assert first.initial_open_sora and not second.initial_open_sora and not third.initial_open_sora
    assert [step.initial_weights for step in stages] == ["", *(f"{step.loop.out}/weights.safetensors" for step in stages[:2])]
    assert [step.loop.steps for step in stages] == [2000, 20000, 8000]
    assert {(step.loop.learning_rate, step.loop.warmup_steps) for step in stages} == {(1e-4, 1000)}
    assert {step.loop.batch_size * step.loop.accumulate * 8 for step in stages} == {64}
    assert all(step.loop.shard and step.world.recompute_blocks for step in stages)
    assert [step.world.noisy_anchor_share for step in stages] == [0, 0, 0.75]
    assert {(step.world.drop_text, step.world.drop_waypoints) for step in stages} == {(0.15, 0.15)}
    with torch.device("meta"):
        parameters = [name for name, _ in build_denoiser(model).named_parameters()]
    one, two, three = ({n for n in parameters if any(fnmatch(n, p) for p in step.world.trainable)} for step in stages)
    assert {"blocks.0.spatial.out.weight", "blocks.27.mlp.0.weight", "frame.waypoints.layers.0.weight", "head.weight"} <= one
    assert not {"blocks.0.temporal.out.weight", "blocks.26.mlp.0.weight", "blocks.0.text_gate"} & one
    assert one < two == three
    assert set(parameters) - two == {name for name in parameters if name.startswith("text.")}


@pytest.mark.parametrize("name", ["world.yaml", "gpu_world.yaml"])
def test_maskgwm_starts_from_the_shipped_shell(name: str):
    config = load_training(FOLDER / "maskgwm" / name, [])
    assert (config.world.model.system, config.world.mask_ratio, config.world.most_given) == ("maskgwm", 0.25, 3)
    assert Path(config.initial_shell).is_file()


def test_a_model_may_stand_in_a_file_of_its_own_and_overrides_still_reach_it(tmp_path):
    (tmp_path / "model.yaml").write_text("d_model: 48\nheads: 3\n")
    path = tmp_path / "train.yaml"
    path.write_text(f"target: world_model\nworld: {{model: {tmp_path}/model.yaml, drop_text: 0.5}}\n")
    config = load_training(path, ["world.model.heads=6", "loop.steps=7"])
    assert (config.world.model.d_model, config.world.model.heads, config.world.model.depth) == (48, 6, DiTConfig().depth)
    assert (config.world.drop_text, config.loop.steps) == (0.5, 7)
    path.write_text("target: world_model\nworld: {model: nowhere.yaml}\n")
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such configuration file"):
        load_training(path, [])


@pytest.mark.parametrize("recipe", ["maskgwm/recipe.yaml", "mila/papers_inputs_recipe.yaml"])
def test_the_systems_of_short_clips_are_chains_from_rendering_to_weights(recipe: str):
    path = FOLDER / recipe
    steps = [load_training(path.parent / name, []) for name in yaml.safe_load(path.read_text())["recipe"]]
    drives, clips, worlds = ([step for step in steps if step.target == target] for target in ("drives", "clips", "world_model"))
    assert steps == [*(step for pair in zip(drives, clips, strict=True) for step in pair), *worlds]
    assert [step.drives.out for step in drives] == [step.clips.drives for step in clips]
    assert {world.data for world in worlds} == {clips[0].clips.out}
    assert {folder for world in worlds for folder in world.more_data} == {step.clips.out for step in clips[1:]}
    # Latents, and the shell that a system starts from, are of one codec.
    assert {world.world.codec_weights for world in worlds} == {step.clips.codec_weights for step in clips}
    assert worlds[0].initial_shell == "weights/proving_ground_world.safetensors"
    for before, after in pairwise(worlds):
        assert after.initial_weights == f"{before.loop.out}/weights.safetensors"


def test_the_undistilled_model_differs_from_the_distilled_by_the_teacher_alone():
    distilled, plain = (load_training(FOLDER / "longdwm" / f"{name}.yaml", []) for name in ("distillation", "undistilled"))
    assert (plain.initial_weights, plain.data) == (distilled.initial_weights, distilled.data)
    same = ("learning_rate", "warmup_steps", "decay_fraction", "ema_decay", "batch_size", "accumulate", "seed")
    assert [getattr(plain.loop, name) for name in same] == [getattr(distilled.loop, name) for name in same]
    drops = [*(f"drop_{name}" for name in ("text", "waypoints", "layout", "memory", "appearance")), "papers_inputs_share"]
    assert [getattr(plain.world, name) for name in drops] == [getattr(distilled.world, name) for name in drops]
    assert plain.world.noise == distilled.world.noise and plain.world.model == distilled.world.model
    told = (plain.world.wear.share, plain.world.faith.memory_share, plain.world.faith.appearance_share)
    assert (*told, plain.world.dirty_condition_share, plain.world.anchor_share) == (0, 0, 0, 0, 0)
