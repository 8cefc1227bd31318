"""How well the world model continues held-out scenes, and whether it follows a path that nobody drove.

1. The next 12 frames against repeating the last one: PSNR to the true video, front of everything else a video model does.
2. Lateral offsets of 2 m and hard brakes: is the roll-out closer to the render of its own commanded path than to the
   render of the logged path, at 1-3 s? With layout, appearance and memory, without memory, and with none of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dwm.rollout.config import RolloutConfig
from dwm.rollout.world_model import WorldModel
from dwm.scenario.perturbations import BASELINE
from evaluators.counterfactual import psnr_db
from evaluators.protocol import bootstrap_interval
from pipelines.bench.rollouts import (
    ASIDE,
    HARD_BRAKE,
    Moment,
    first_feasible,
    generate,
    rejections,
    size,
    starting_moments,
    true_frames,
)
from pipelines.logged_frames import leading_images

_LONG_S = 3.0
_NEXT = tuple(range(1, 13))
_JUDGED = tuple(range(12, 37, 6))  # frames at 1, 1.5, 2, 2.5 and 3 s
_MOVES = (*ASIDE, HARD_BRAKE)
_MODES = {
    "layout, appearance and memory": RolloutConfig(),
    "layout and appearance": RolloutConfig(memory="none"),
    "none of them": RolloutConfig(layout=False, appearance=False, memory="none"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figures:
    """What one mode reaches, in dB of PSNR; an entry a clip."""

    own: list[float] = field(default_factory=list)  # of the next 12 frames
    gains: list[float] = field(default_factory=list)  # over the last given frame, repeated
    margins: dict[str, list[float]] = field(default_factory=dict)  # by move: own path's render minus the log path's


def bench_world_model(dataroot: Path, version: str, codec: Path, weights: Path, things: Path, cases: int, steps: int) -> str:
    """The tables as Markdown; ``cases`` starting moments, one seed each."""
    world, rejected = WorldModel.load(codec, weights, things), Counter[str]()
    modes = {name: replace(mode, steps=steps) for name, mode in _MODES.items()}
    figures = {name: _Figures() for name in modes}
    moments = starting_moments(dataroot, version, cases, _LONG_S)
    for moment in tqdm(moments, desc="moments", disable=None):
        _judge(world, moment, modes, figures, rejected)
    scenes = len({moment.scene.name for moment in moments})
    lines = [
        f"{len(moments)} starting moments of {scenes} scenes, {steps} denoising steps, six cameras, {size(world.image_hw)}"
    ]
    for name, found in figures.items():
        lines += ["", f"**{name}**", "", *_table(found)]
    return "\n".join([*lines, *rejections(rejected)])


def _judge(
    world: WorldModel, moment: Moment, modes: dict[str, RolloutConfig], figures: dict[str, _Figures], rejected: Counter[str]
) -> None:
    """Adds what a moment shows to the figures of every mode."""
    baseline = first_feasible(moment, (BASELINE,), _LONG_S, rejected, "as driven")
    if baseline is None:
        return
    conditioner, next_truth = world.conditioner(baseline), true_frames(moment, baseline, _NEXT, world.image_hw)
    last = leading_images(baseline, 1, world.image_hw)
    still = float(psnr_db(np.repeat(last, len(_NEXT), axis=0), next_truth).mean())
    for name, mode in modes.items():
        figures[name].own.append(float(psnr_db(generate(world, conditioner, mode, _NEXT).images, next_truth).mean()))
        figures[name].gains.append(figures[name].own[-1] - still)
    logged = true_frames(moment, baseline, _JUDGED, world.image_hw)
    for move in _MOVES:
        moved = first_feasible(moment, (move,), _LONG_S, rejected, move.name)
        if moved is None:
            continue
        conditioner, commanded = world.conditioner(moved), true_frames(moment, moved, _JUDGED, world.image_hw)
        for name, mode in modes.items():
            made = generate(world, conditioner, mode, _JUDGED).images
            margin = float((psnr_db(made, commanded) - psnr_db(made, logged)).mean())
            figures[name].margins.setdefault(move.name, []).append(margin)


def _table(found: _Figures) -> list[str]:
    rng = np.random.default_rng(0)
    gain = bootstrap_interval(np.array(found.gains), rng)
    lines = ["| figure | value | 95 % interval | n |", "|---|---|---|---|"]
    lines.append(f"| next 12 frames, PSNR [dB] | {np.mean(found.own):.2f} | | {len(found.own)} |")
    lines.append(
        f"| gain over repeating the last frame [dB] | {gain.value:+.2f} | {gain.low:+.2f} to {gain.high:+.2f} | {len(found.gains)} |"
    )
    for move, margins in found.margins.items():
        share, margin = np.mean(np.array(margins) > 0), bootstrap_interval(np.array(margins), rng)
        lines.append(f"| {move}: closer to its own path than to the log's | {share:.0%} | | {len(margins)} |")
        lines.append(
            f"| {move}: PSNR own minus log [dB] | {margin.value:+.2f} | {margin.low:+.2f} to {margin.high:+.2f} | {len(margins)} |"
        )
    return lines
