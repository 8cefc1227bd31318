"""What a model costs on a GPU before one is bought or booked: memory and time of training and of roll-outs, by reading the model.

FLOPs and bytes: ``dwm.models.accounts``. Time is FLOPs over the GPU's dense bfloat16 peak times ``UTILISATION``; rendering, decoding and
scoring are not in it. Peaks and memories are the vendors' data sheets'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from dwm.errors import InputError
from dwm.models.accounts import Accounts, Clip, account
from dwm.models.dit import DiTConfig
from dwm.models.weights import load_config_of
from dwm.rollout.config import RolloutConfig
from dwm.training.config import TrainConfig
from pipelines.config import RunConfig

UTILISATION = 0.4  # of the peak: what a well-fed transformer of this kind reaches
_GUIDED_PASSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device."""

    tflops: float  # dense bfloat16
    memory_bytes: float


GPUS = {
    "H200": Gpu(tflops=989, memory_bytes=141e9), "H100": Gpu(tflops=989, memory_bytes=80e9),
    "A100": Gpu(tflops=312, memory_bytes=80e9), "L40S": Gpu(tflops=362, memory_bytes=48e9),
    "RTX 4090": Gpu(tflops=165, memory_bytes=24e9),
}  # fmt: skip


def training_costs(config: TrainConfig, clip: Clip, processes: int) -> str:
    """Memory of each of ``processes`` GPUs and hours of the configured steps, for every known GPU."""
    loop, world = config.loop, config.world
    found, taught = account(world.model, clip), _teacher(config, clip)
    recomputed = world.recompute_blocks
    step = found.step_flops_recomputed if recomputed else found.step_flops
    watching = taught.forward_flops * world.key_frames.gaps if taught else 0
    flops = (step + watching) * loop.accumulate * loop.steps
    spread = processes if loop.shard else 1
    activations = found.activation_bytes_recomputed if recomputed else found.activation_bytes
    memory = found.state_bytes / spread + activations + (taught.forward_bytes if taught else 0)
    again = "blocks computed again" if recomputed else "all activations kept (world.recompute_blocks=true keeps less)"
    share = f"spread over {processes}" if spread > 1 else "a copy in each"
    lines = [
        _model_line(found, clip),
        f"step    {_tera(found.step_flops * loop.accumulate)} forward and backward, {again}",
        *([f"teacher {_tera(watching * loop.accumulate)}: {world.key_frames.gaps} windows of {world.key_frames.stride + 1} frames forward"] if taught else []),
        f"memory  about {memory / 1e9:.1f} GB a GPU: {found.state_bytes / spread / 1e9:.1f} GB of state ({share}), {activations / 1e9:.1f} GB of activations",
    ]  # fmt: skip
    ends = f", or the first {loop.max_minutes:g} minutes of them" if loop.max_minutes else ""
    return "\n".join(
        [*lines, *_by_gpu(flops, memory, f"{loop.steps} steps of {processes} x {clip.batch * loop.accumulate} clips{ends}")]
    )


def frames_of(config: TrainConfig) -> int:
    """Frames of a clip that a step looks at, where the configuration says it, else those of ``ClipsConfig``."""
    world = config.world
    if config.target == "distillation":
        return world.key_frames.gaps + 1
    cut = {"coarse": world.key_frames.gaps + 1, "dense": world.key_frames.stride + 1}
    total = cut.get(world.cut, config.clips.window_frames)
    return min(world.frames_per_clip or total, total)


def _teacher(config: TrainConfig, clip: Clip) -> Accounts | None:
    """A distillation's teacher on one window between key frames; before it is trained it counts as its student."""
    if config.target != "distillation":
        return None
    weights = Path(config.world.distillation.teacher_weights)
    model = load_config_of(weights, "multi_view_dit") if weights.is_file() else config.world.model
    return account(model, replace(clip, frames=config.world.key_frames.stride + 1))


def rollout_costs(config: RunConfig, frames: list[int]) -> str:
    """Memory of a GPU and time of clips of so many ``frames``, for every known GPU."""
    model: DiTConfig = load_config_of(Path(config.model.world_model), "multi_view_dit")
    rollout = config.rollout
    window = Clip(frames=rollout.window_frames, height_px=model.image_hw[0], width_px=model.image_hw[1])
    found = account(model, window)
    passes = rollout.steps * (1 if rollout.guidance == 1 else _GUIDED_PASSES)
    windows = sum(windows_of(rollout, count, config.scenario.fps) for count in frames)
    flops = found.forward_flops * passes * windows
    lines = [
        _model_line(found, window),
        f"window  {_tera(found.forward_flops * passes)} in {passes} passes; {windows:.0f} windows of {rollout.window_frames} frames",
    ]
    return "\n".join([*lines, *_by_gpu(flops, found.forward_bytes, f"{len(frames)} clips")])


def windows_of(rollout: RolloutConfig, frames: int, fps: float) -> float:
    """Windows of full length that a clip's new frames take, in work: shorter ones count by their frames."""
    new, full = frames - rollout.logged_frames, rollout.window_frames
    if rollout.strategy == "recurrent":
        return math.ceil(new / (full - rollout.condition_frames))
    stride = max(1, round(fps / rollout.anchor_fps))
    low_rate = new / stride / full  # anchors or key frames
    return low_rate + new * (stride + 1) / stride / full


def _model_line(found: Accounts, clip: Clip) -> str:
    parts = ", ".join(f"{name} {count / 1e6:.2f}" for name, count in sorted(found.parameters.items(), key=lambda p: -p[1])[:4])
    size = f"{clip.frames} frames, {clip.height_px}x{clip.width_px} px: {found.tokens // clip.batch:,} tokens"
    return f"model   {found.total_parameters / 1e6:.1f} M parameters ({parts}, ...); a clip of {size}"


def _by_gpu(flops: float, memory: float, what: str) -> list[str]:
    lines = [f"time    {what}, at {UTILISATION:.0%} of the peak:"]
    for name, gpu in GPUS.items():
        hours = flops / (gpu.tflops * 1e12 * UTILISATION) / 3600
        fits = "" if memory <= gpu.memory_bytes else f"  DOES NOT FIT in {gpu.memory_bytes / 1e9:.0f} GB"
        lines.append(f"        {name:<9}{hours:10.2f} h{fits}")
    return lines


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.2f} TFLOP"


def clip_of(frames: int, size: str, batch: int) -> Clip:
    """A clip as the command line names it, ``size`` as HEIGHTxWIDTH."""
    try:
        height, width = (int(part) for part in size.split("x"))
        if min(frames, height, width, batch) < 1:
            raise ValueError
    except ValueError:
        raise InputError("--size", f"'{size}' with {frames} frames", "give HEIGHTxWIDTH in pixels, e.g. 360x640") from None
    return Clip(batch=batch, frames=frames, height_px=height, width_px=width)
