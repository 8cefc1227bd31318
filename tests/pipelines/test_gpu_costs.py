"""What ``roadreel plan`` says of memory and time on a GPU, against hand counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dwm.errors import InputError
from dwm.models.accounts import Clip, account
from dwm.models.dit import DiTConfig
from dwm.rollout.config import RolloutConfig
from dwm.training.config import LoopConfig, TrainConfig, WorldTraining
from dwm.training.long_clips import KeyFrames
from pipelines import cli
from pipelines.config import ModelConfig, RunConfig
from pipelines.gpu_costs import GPUS, UTILISATION, clip_of, frames_of, rollout_costs, training_costs, windows_of

SMALL = DiTConfig(d_model=32, depth=2, heads=2, local_widths=(8,), latent_channels=4, layout_channels=2)
CLIP = Clip(batch=2, frames=3, height_px=64, width_px=96)


def hours(text: str, gpu: str) -> float:
    return float(next(line for line in text.splitlines() if line.split()[: len(gpu.split())] == gpu.split()).split()[-2])


def train(**loop) -> TrainConfig:
    return TrainConfig(world=WorldTraining(model=SMALL), loop=LoopConfig(steps=10**9, **loop))


def test_time_is_flops_over_the_share_of_the_peak():
    text = training_costs(train(accumulate=3), CLIP, 1)
    flops = account(SMALL, CLIP).step_flops * 3 * 10**9
    for name, gpu in GPUS.items():
        assert hours(text, name) == pytest.approx(flops / (gpu.tflops * 1e12 * UTILISATION) / 3600, rel=0.01)


def test_a_distillation_counts_its_teachers_windows():
    world = WorldTraining(model=SMALL, key_frames=KeyFrames(gaps=2, stride=4))
    text = training_costs(TrainConfig(target="distillation", world=world, loop=LoopConfig(steps=10**9)), CLIP, 1)
    teacher = 2 * account(SMALL, replace(CLIP, frames=5)).forward_flops
    assert f"teacher {teacher / 1e12:.2f} TFLOP: 2 windows of 5 frames forward" in text
    flops = (account(SMALL, CLIP).step_flops + teacher) * 10**9
    assert hours(text, "H200") == pytest.approx(flops / (GPUS["H200"].tflops * 1e12 * UTILISATION) / 3600, rel=0.01)


@pytest.mark.parametrize(
    ("target", "settings", "frames"),
    [
        ("world_model", {}, 8),
        ("world_model", {"frames_per_clip": 5}, 5),
        ("world_model", {"cut": "coarse"}, 13),
        ("world_model", {"cut": "dense", "key_frames": KeyFrames(stride=6)}, 7),
        ("world_model", {"cut": "dense", "frames_per_clip": 6}, 6),
        ("distillation", {"key_frames": KeyFrames(gaps=3)}, 4),
    ],
)
def test_frames_of_a_clip_are_those_the_configuration_asks_for(target, settings, frames):
    assert frames_of(TrainConfig(target=target, world=WorldTraining(**settings))) == frames


def test_spreading_shares_the_state_and_recomputing_keeps_less():
    found = account(SMALL, CLIP)

    def memory(config: TrainConfig, processes: int) -> str:
        return next(line for line in training_costs(config, CLIP, processes).splitlines() if line.startswith("memory"))

    def told(state: float, activations: float) -> str:
        return f"about {(state + activations) / 1e9:.1f} GB a GPU: {state / 1e9:.1f} GB of state"

    large = replace(SMALL, d_model=1024, heads=8)
    found = account(large, CLIP)
    one = replace(train(), world=WorldTraining(model=large))
    again = replace(one, world=replace(one.world, recompute_blocks=True))
    assert told(found.state_bytes, found.activation_bytes) in memory(one, 4)
    assert "a copy in each" in memory(one, 4)
    assert told(found.state_bytes / 4, found.activation_bytes) in memory(replace(one, loop=replace(one.loop, shard=True)), 4)
    assert told(found.state_bytes, found.activation_bytes_recomputed) in memory(again, 1)


def test_what_does_not_fit_says_so():
    huge = train()
    clip = replace(CLIP, frames=400, height_px=720, width_px=1280)
    lines = training_costs(huge, clip, 1).splitlines()
    assert "DOES NOT FIT in 24 GB" in next(line for line in lines if "RTX 4090" in line)


@pytest.mark.parametrize(
    ("settings", "frames", "windows"),
    [
        ({"strategy": "recurrent", "window_frames": 24, "condition_frames": 1}, 720, 32),
        ({"strategy": "recurrent", "window_frames": 25, "condition_frames": 3}, 121, 6),
        ({"strategy": "recurrent", "window_frames": 25, "condition_frames": 3, "logged_frames": 3}, 113, 5),
        # 120 new frames: ten key frames, and ten gaps of 13 frames.
        ({"strategy": "hierarchical", "window_frames": 13, "anchor_fps": 1.0}, 121, (10 + 10 * 13) / 13),
    ],
)
def test_windows_of_a_clip(settings, frames, windows):
    assert windows_of(RolloutConfig(**settings), frames, 12.0) == pytest.approx(windows)


def test_guidance_is_two_passes_and_every_step_one():
    shipped = RunConfig(model=ModelConfig(world_model="weights/proving_ground_world.safetensors"))
    plain, guided = (
        rollout_costs(replace(shipped, rollout=RolloutConfig(steps=steps, guidance=w)), [720])
        for steps, w in ((1, 1.0), (50, 3.0))
    )
    tera = [float(next(line for line in text.splitlines() if line.startswith("window")).split()[1]) for text in (plain, guided)]
    assert tera[1] == pytest.approx(100 * tera[0], rel=0.05)
    assert "in 100 passes; 32 windows of 24 frames" in guided


def test_the_command_reads_a_training_file(tmp_path: Path, capsys):
    path = tmp_path / "train.yaml"
    path.write_text(
        "target: world_model\nworld: {model: {d_model: 32, heads: 2, depth: 2, local_widths: [8]}}\nloop: {steps: 100}\n"
    )
    assert cli.main(["plan", str(path), "--frames", "4", "--size", "64x96", "--processes", "8"]) == 0
    text = capsys.readouterr().out
    assert "4 frames, 64x96 px: 576 tokens" in text  # 4 frames x 6 views x 24 tokens of 16 px
    assert "100 steps of 8 x 1 clips" in text


@pytest.mark.parametrize("size", ["64", "0x96", "axb"])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(InputError, match="give HEIGHTxWIDTH in pixels"):
        clip_of(4, size, 1)
