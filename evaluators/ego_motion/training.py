"""Training of the ego-motion network: `roadreel train` with the target "ego_motion"."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dwm.errors import InputError
from dwm.training.config import LoopConfig
from dwm.training.loop import fit
from evaluators.ego_motion.footage import Footage, footage_of_drives, footage_of_logs, mirrored
from evaluators.ego_motion.network import EgoMotion, EgoMotionConfig, composed, ground_of, to_input

_NEAR = 5.0  # spread of first guesses near the truth, in units of the network's scale


@dataclass(frozen=True, slots=True, kw_only=True)
class EgoMotionTraining:
    """What it learns from, and how."""

    target: str = "ego_motion"  # what `roadreel train` takes this file for
    drives: tuple[str, ...] = ()  # folders of rendered drives; empty: the dataroot's split
    dataroot: str = "data/nuscenes"
    version: str = "v1.0-trainval"
    split: str = "train"
    trained_on: str = ""  # in words; stored with the weights
    held_out: int = 4  # the last stretches, never trained on
    apart_s: tuple[float, float] = (1 / 12, 0.5)  # between the two moments, shortest and longest
    backwards_share: float = 0.2  # pairs shown in reverse
    mirrored_share: float = 0.5  # pairs shown in a mirror, left cameras for right ones
    brightness: float = 0.2  # a pair's images are scaled by up to that much, and
    noise: float = 0.03  # carry noise of up to this standard deviation, of 1 for the whole range
    near_share: float = 0.5  # pairs whose first guess lies near the truth, so that all rounds learn to correct little
    model: EgoMotionConfig = field(default_factory=EgoMotionConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


def train_ego_motion(config: EgoMotionTraining) -> Path:
    """Train, or resume ``loop.out``; the path of the weights. Raises InputError for missing or too little footage."""
    hw = config.model.image_hw
    if config.drives:
        footage = [part for folder in config.drives for part in footage_of_drives(Path(folder), hw)]
    else:
        footage = footage_of_logs(Path(config.dataroot), config.version, config.split, hw)
    return fit(EgoMotionTask(config, footage), config.loop)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """Pairs of moments and the motion between them."""

    before_BV3HW: Tensor
    after_BV3HW: Tensor
    ground_BV33: Tensor
    step_B3: Tensor

    def to(self, device: torch.device) -> PairBatch:
        return PairBatch(
            before_BV3HW=self.before_BV3HW.to(device), after_BV3HW=self.after_BV3HW.to(device),
            ground_BV33=self.ground_BV33.to(device), step_B3=self.step_B3.to(device),
        )  # fmt: skip


class EgoMotionTask:
    """See ``dwm.training.loop.Task``."""

    def __init__(self, config: EgoMotionTraining, footage: list[Footage]) -> None:
        self.config, self._footage = config, footage
        self._pairs = [(n, a, b) for n, part in enumerate(footage) for a, b in part.pairs(*config.apart_s)]
        learnt = len(footage) - config.held_out
        self._learnt = [pair for pair in self._pairs if pair[0] < learnt]
        self._kept = [pair for pair in self._pairs if pair[0] >= learnt]
        if not self._learnt:
            problem = f"{len(footage)} stretches with {len(self._pairs)} pairs, the last {config.held_out} held out"
            raise InputError("ego motion", problem, "give more footage, or lower held_out")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.loop.seed)
            self.model: nn.Module = EgoMotion(config.model)

    @property
    def fingerprint(self) -> str:
        return json.dumps({"ego_motion": asdict(self.config.model)}, sort_keys=True)

    @property
    def metadata(self) -> dict[str, str]:
        return {"trained_on": self.config.trained_on, "pairs": str(len(self))}

    def prepare(self, device: torch.device) -> None:
        """Nothing."""

    def __len__(self) -> int:
        return len(self._learnt)

    def load(self, indices: list[int], generator: np.random.Generator) -> PairBatch:
        """Pairs at random brightness, some in reverse, some in a mirror."""
        return _collate([self._shown(self._learnt[i], generator) for i in indices])

    def _shown(self, pair: tuple[int, int, int], generator: np.random.Generator) -> _Pair:
        number, a, b = pair
        footage = self._footage[number]
        if generator.random() < self.config.backwards_share:
            a, b = b, a
        shown = _pair(footage, a, b)
        if generator.random() < self.config.mirrored_share:
            images, intrinsics, poses = mirrored(shown.images, shown.intrinsics, shown.camera_to_ego)
            shown = _Pair(images=images, intrinsics=intrinsics, camera_to_ego=poses, step=shown.step * [1.0, -1.0, -1.0])
        gain = 1 + self.config.brightness * generator.uniform(-1, 1)
        spread = 255 * self.config.noise * generator.random()
        noisy = [image * gain + spread * generator.standard_normal(image.shape, dtype=np.float32) for image in shown.images]
        return _Pair(
            images=[np.clip(image, 0, 255) for image in noisy], intrinsics=shown.intrinsics, camera_to_ego=shown.camera_to_ego,
            step=shown.step,
        )  # fmt: skip

    def loss(self, model: Any, batch: PairBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Huber loss of the guesses, each part in its own scale, the last one counting twice; half of the pairs start near the truth."""
        step, scale = batch.step_B3, model.scale
        near = composed(_NEAR * scale * torch.randn(step.shape, generator=generator).to(step), step)
        first = torch.where(torch.rand(len(step), 1, generator=generator).to(step) < self.config.near_share, near, 0.0)
        guesses = model.guesses(batch.before_BV3HW, batch.after_BV3HW, batch.ground_BV33, first)
        errors = [F.smooth_l1_loss((found - step) / scale, torch.zeros_like(found)) for found in guesses]
        return (sum(errors) + errors[-1]) / (len(errors) + 1), {"first_round": errors[0], "last_round": errors[-1]}

    def evaluate(self, model: Any, device: torch.device) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
        """Root mean square errors on held-out stretches, of the zero step too."""
        if not self._kept:
            return {}, None
        chosen = [self._kept[i] for i in np.unique(np.linspace(0, len(self._kept) - 1, 256).astype(int))]
        batch = _collate([_pair(self._footage[n], a, b) for n, a, b in chosen]).to(device)
        found = torch.cat([
            model(*parts) for parts in zip(batch.before_BV3HW.split(16), batch.after_BV3HW.split(16), batch.ground_BV33.split(16), strict=True)
        ])  # fmt: skip
        rms, still = ((off.double().square().mean(0).sqrt()).tolist() for off in (found - batch.step_B3, batch.step_B3))
        names = ("x_m", "y_m", "yaw_rad")
        return {
            **{f"held_out_{name}": value for name, value in zip(names, rms, strict=True)},
            **{f"held_out_{name}_of_zero": value for name, value in zip(names, still, strict=True)},
        }, None

    def finish(self, model: Any, device: torch.device) -> nn.Module:
        return model


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    images: list[NDArray[Any]]  # two of [V, H, W, 3]
    intrinsics: NDArray[np.float64]
    camera_to_ego: NDArray[np.float64]
    step: NDArray[np.float64]


def _pair(footage: Footage, a: int, b: int) -> _Pair:
    return _Pair(
        images=[footage.images[a], footage.images[b]], intrinsics=footage.intrinsics, camera_to_ego=footage.camera_to_ego,
        step=footage.step(a, b),
    )  # fmt: skip


def _collate(pairs: list[_Pair]) -> PairBatch:
    intrinsics, poses = (
        torch.from_numpy(np.stack([getattr(p, name) for p in pairs])).float() for name in ("intrinsics", "camera_to_ego")
    )
    before, after = (to_input(np.stack([p.images[k] for p in pairs])) for k in (0, 1))
    return PairBatch(
        before_BV3HW=before, after_BV3HW=after, ground_BV33=ground_of(intrinsics, poses),
        step_B3=torch.from_numpy(np.stack([p.step for p in pairs])).float(),
    )  # fmt: skip
