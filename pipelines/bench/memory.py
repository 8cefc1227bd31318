"""What geometric memory is worth along a path nobody drove: nearness to the true video 1, 2 and 4 m beside the log's path.

Roll-outs of held-out moments with every memory mode, against the render of the commanded path at 1-3 s and, the offset held,
at 9-10 s: PSNR, and FID-pg and FVD-pg between generated and true frames (``evaluators.frechet_features``). The log's points
splatted into the moved cameras stand beside them without a world model: what they leave open takes each camera's mean colour in
the given frame. Clips end before their log does, so all agents are logged ones. Intervals resample starting moments.

Shapes: K scored frames, V views, H W pixels, h w layout pixels.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from dwm.conditioning.build import ScenarioConditioner, images_to_tensor, tensor_to_images
from dwm.conditioning.log_reader import read_logged_points
from dwm.conditioning.logged_points import LoggedPoints
from dwm.errors import InputError
from dwm.rollout.config import RolloutConfig
from dwm.rollout.world_model import WorldModel
from dwm.scenario.types import Perturbation, Scenario
from evaluators.counterfactual import PSNR_CAP_DB, psnr_db
from evaluators.detector.inference import Detector
from evaluators.frechet_features import FrechetFeatures
from pipelines.bench.memory_table import OFF, SPLAT, TRUTH, Judged, offset_table
from pipelines.bench.rollouts import (
    Images,
    Moment,
    first_feasible,
    frames_between,
    generate,
    rejections,
    size,
    starting_moments,
    true_frames,
)
from pipelines.logged_frames import leading_images

OFFSETS_M = (1.0, 2.0, 4.0)
STRETCHES_S = ((1.0, 3.0), (9.0, 10.0))
_LEAST_KNOWN = 0.5  # of a layout pixel, to count as known


@dataclass(frozen=True, slots=True, kw_only=True)
class Splat:
    """The log's points in the cameras of a path, no world model behind them."""

    images: Images  # [K, V, H, W, 3]
    known: NDArray[np.bool_]  # [K, V, H, W]
    seconds_per_frame: float  # of the frames after it


def bench_memory(
    dataroot: Path, version: str, codec: Path, weights: Path, things: Path, detector: Path, cases: int, duration_s: float,
    steps: int,
) -> str:  # fmt: skip
    """The tables as Markdown; ``cases`` starting moments with ``duration_s`` of log to come."""
    stretches = [stretch for stretch in STRETCHES_S if stretch[1] <= duration_s + 1e-9]
    if not stretches:
        raise InputError(
            "--duration", f"{duration_s:g} s", f"give {STRETCHES_S[0][1]:g} or more: scored from {STRETCHES_S[0][0]:g} s on"
        )
    world = WorldModel.load(codec, weights, things)
    bench = _Bench(world, FrechetFeatures(Detector.load(detector)), stretches, steps)
    moments = starting_moments(dataroot, version, cases, duration_s)
    rejected = Counter[str]()
    lines = [f"{len(moments)} starting moments, {steps} denoising steps, six cameras, {size(world.image_hw)}"]
    with tqdm(total=len(OFFSETS_M) * len(moments), desc="clips", disable=None) as bar:
        for offset_m in OFFSETS_M:
            clips = []
            for moment in moments:
                scenario = _longest(moment, offset_m, [end_s for _, end_s in stretches], rejected)
                if scenario is not None:
                    clips.append(bench.clip(moment, scenario))
                bar.update()
            lines += ["", f"**{offset_m:g} m aside**, {len(clips)} clips", *offset_table(clips, stretches, bench.features)]
    return "\n".join([*lines, "", *bench.cost_lines(), *rejections(rejected)])


def splat_alone(logged: Callable[[int], tuple[Tensor, Tensor]], first_V3HW: Tensor, frames: tuple[int, ...]) -> Splat:
    """Frames of the log's points, each camera's open pixels in its mean colour in the first frame [V, 3, H, W].

    ``logged`` gives a frame's images [V, 3, H, W] in [-1, 1] and the share [V, 1, h, w] of each layout pixel that is known.
    """
    fill = first_V3HW.mean((-2, -1), keepdim=True)
    images, known, seconds = [], [], []
    for frame in frames:
        started = time.perf_counter()
        picture, share = logged(frame)
        seconds.append(time.perf_counter() - started)
        scale = picture.shape[-1] // share.shape[-1]
        there = (share >= _LEAST_KNOWN).repeat_interleave(scale, -2).repeat_interleave(scale, -1)
        images.append(tensor_to_images(torch.where(there, picture, fill)))
        known.append(there[:, 0].cpu().numpy())
    later = float(np.mean(seconds[1:])) if len(seconds) > 1 else float("nan")
    return Splat(images=np.stack(images), known=np.stack(known), seconds_per_frame=later)


def known_psnr_db(images: Images, truth: Images, known: NDArray[np.bool_]) -> float:
    """PSNR over known pixels [K, V, H, W] alone: all cameras of a frame together, then the mean over frames that have any."""
    values = []
    for image, true, mask in zip(images, truth, known, strict=True):
        if mask.any():
            error = np.mean(np.square(image[mask].astype(np.float64) - true[mask]))
            values.append(PSNR_CAP_DB if error == 0 else min(PSNR_CAP_DB, float(10 * np.log10(255.0**2 / error))))
    return float(np.mean(values)) if values else float("nan")


class _Bench:
    """The models, what is scored, and what it cost."""

    def __init__(
        self, world: WorldModel, features: FrechetFeatures, stretches: list[tuple[float, float]], steps: int
    ) -> None:  # fmt: skip
        self.world, self.features, self.stretches = world, features, stretches
        self.modes = {mode: RolloutConfig(memory=mode, steps=steps) for mode in (OFF, "past", "log")}
        self.costs: dict[str, list[float]] = {}
        self.known_share: list[float] = []
        self._points: dict[str, LoggedPoints | None] = {}  # reading a log costs more than a clip: once for all clips of a scene

    def clip(self, moment: Moment, scenario: Scenario) -> dict[str, list[Judged]]:
        """Every mode, and the truth itself, by stretch that the scenario holds."""
        parts = [part for part in (frames_between(*s) for s in self.stretches) if part[-1] < len(scenario.timestamps_us)]
        frames = tuple(f for part in parts for f in part)
        truth = true_frames(moment, scenario, frames, self.world.image_hw)
        pictures = {TRUTH: truth}
        for name, mode in self.modes.items():
            # A fresh conditioner each: what one mode has computed must not be the next one's head start.
            made = generate(self.world, self._conditioner(scenario, log=name == "log"), mode, frames)
            pictures[name] = made.images
            self._cost(f"memory {name}, a generated frame", made.seconds_per_frame)
        splat = self._splat(scenario, frames)
        pictures[SPLAT], known = splat.images, splat.known
        ends = np.cumsum([len(part) for part in parts])[:-1]
        cut = {name: np.split(images, ends) for name, images in pictures.items()}
        masks = np.split(known, ends)
        return {
            name: [self._judge(part, true, mask) for part, true, mask in zip(images, cut[TRUTH], masks, strict=True)]
            for name, images in cut.items()
        }

    def cost_lines(self) -> list[str]:
        """Seconds on this machine."""
        lines = [f"- {what}: {np.mean(seconds):.2f} s (n = {len(seconds)})" for what, seconds in self.costs.items()]
        if self.known_share:
            lines.append(f"- pixels that the splat knows: {np.mean(self.known_share):.0%} of the scored frames")
        return lines

    def _conditioner(self, scenario: Scenario, *, log: bool) -> ScenarioConditioner:
        name = scenario.scene.name
        if log and name not in self._points:
            started = time.perf_counter()
            self._points[name] = read_logged_points(scenario.scene)
            self._cost("reading a log's points", time.perf_counter() - started)
        return self.world.conditioner(scenario, self._points[name] if log else None)

    def _splat(self, scenario: Scenario, frames: tuple[int, ...]) -> Splat:
        conditioner = self._conditioner(scenario, log=True)
        first = images_to_tensor(leading_images(scenario, 1, self.world.image_hw)[0], self.world.device)
        with torch.inference_mode():
            splat = splat_alone(conditioner.logged, first, frames)
        self._cost("splat, a frame", splat.seconds_per_frame)
        self.known_share.append(float(splat.known.mean()))
        return splat

    def _judge(self, images: Images, truth: Images, known: NDArray[np.bool_] | None) -> Judged:
        return Judged(
            psnr_db=float(psnr_db(images, truth).mean()),
            known_psnr_db=float("nan") if known is None else known_psnr_db(images, truth, known),
            image_features=self.features.of_images(images), video_features=self.features.of_video(images),
        )  # fmt: skip

    def _cost(self, what: str, seconds: float) -> None:
        self.costs.setdefault(what, []).append(seconds)


def _aside(offset_m: float) -> list[Perturbation]:
    """To the left, or to the right where that cannot be driven."""
    return [
        Perturbation(name="lateral_offset", params={"offset_m": side, "onset_s": 0.0, "ramp_s": 2.5}, severity=1.0)
        for side in (offset_m, -offset_m)
    ]


def _longest(moment: Moment, offset_m: float, durations_s: list[float], rejected: Counter[str]) -> Scenario | None:
    """The offset held as long as it can be driven: a road that ends after some seconds still serves the first stretch."""
    for duration_s in reversed(durations_s):
        what = f"{offset_m:g} m aside for {duration_s:g} s"
        scenario = first_feasible(moment, _aside(offset_m), duration_s, rejected, what)
        if scenario is not None:
            return scenario
    return None
