"""Training of VAD: `roadreel train` with the target "vad"."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dwm.errors import InputError
from dwm.training.config import LoopConfig
from dwm.training.loop import fit
from dwm.training.parallel import join_crew
from evaluators.clip_detection import ClipMatchConfig
from evaluators.operating_point import operating_score
from evaluators.vad.augment import grid_masked, relit
from evaluators.vad.auxiliary import HelpedVad, auxiliary_losses
from evaluators.vad.config import CONFIGS
from evaluators.vad.detector import VadDetector
from evaluators.vad.footage import VadFootage, footage_of_drives
from evaluators.vad.inputs import VadFrame, since
from evaluators.vad.losses import VadLossWeights, vad_losses
from evaluators.vad.mirror import mirrored_frame, mirrored_targets
from evaluators.vad.targets import VadTargets


@dataclass(frozen=True, slots=True, kw_only=True)
class VadTraining:
    """What it learns from, and how."""

    target: str = "vad"  # what `roadreel train` takes this file for
    size: str = "vad_proving_ground"  # of CONFIGS
    drives: tuple[str, ...] = ()  # folders of rendered drives
    trained_on: str = ""  # in words; stored with the weights
    held_out: int = 2  # the last stretches, never trained on
    past_frames: int = 2  # key frames before, read for the grid alone: by turns none up to so many
    groups: int = 3  # further groups of object queries, in training alone
    mirrored_share: float = 0.5  # samples shown in a mirror
    light: float = 0.15  # relit by up to that much
    grid_mask: bool = True
    weights: VadLossWeights = field(default_factory=VadLossWeights)
    loop: LoopConfig = field(default_factory=LoopConfig)


def train_vad(config: VadTraining) -> Path:
    """Train, or resume ``loop.out``; the path of the weights. Raises InputError for an unknown size and missing footage.

    Of several processes each reads its own share of every folder's drives, and trains on that.
    """
    if config.size not in CONFIGS:
        raise InputError("VAD", f"no size is called '{config.size}'", f"sizes: {', '.join(CONFIGS)}")
    if not config.drives:
        raise InputError("drives", "no folder of rendered drives", "give one or several")
    crew = join_crew()
    folders = [footage_of_drives(Path(folder), crew.leads, crew.rank, crew.size) for folder in config.drives]
    return fit(VadTask(config, [stretch for stretches in folders for stretch in stretches]), config.loop)


@dataclass(frozen=True, slots=True, kw_only=True)
class VadBatch:
    """Key frames with those before them, oldest first, and what the last should say; B samples, N frames of each."""

    images_BNV3hw: Tensor
    lidar_to_image_BNV44: Tensor
    can_bus_BN18: Tensor
    targets: tuple[VadTargets, ...]

    def to(self, device: torch.device) -> VadBatch:
        return VadBatch(
            images_BNV3hw=self.images_BNV3hw.to(device), lidar_to_image_BNV44=self.lidar_to_image_BNV44.to(device),
            can_bus_BN18=self.can_bus_BN18.to(device), targets=tuple(t.to(device) for t in self.targets),
        )  # fmt: skip


class VadTask:
    """See ``dwm.training.loop.Task``. Samples of a batch have the same number of frames: the shortest past counts."""

    def __init__(self, config: VadTraining, footage: list[VadFootage]) -> None:
        self.config, self._footage, self._size = config, footage, CONFIGS[config.size]
        learnt = len(footage) - config.held_out
        places = [(n, k) for n, part in enumerate(footage) for k in range(len(part))]
        self._learnt, self._kept = [p for p in places if p[0] < learnt], [p for p in places if p[0] >= learnt]
        if not self._learnt:
            problem = f"{len(footage)} stretches, the last {config.held_out} held out"
            raise InputError("VAD", problem, "give more footage, or lower held_out")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.loop.seed)
            self.model: nn.Module = HelpedVad(self._size, config.groups)
        self._measured: dict[str, str] = {}

    @property
    def fingerprint(self) -> str:
        return json.dumps({"vad": asdict(self._size)}, sort_keys=True)

    @property
    def metadata(self) -> dict[str, str]:
        return {"trained_on": self.config.trained_on, **self._measured}

    def prepare(self, device: torch.device) -> None:
        """Nothing."""

    def __len__(self) -> int:
        return len(self._learnt)

    def load(self, indices: list[int], generator: np.random.Generator) -> VadBatch:
        """Key frames as they are or in a mirror, relit, with holes."""
        places = [self._learnt[i] for i in indices]
        past = min(int(generator.integers(self.config.past_frames + 1)), *(k for _, k in places))
        return _collate([self._sample(place, past, generator) for place in places])

    def _sample(
        self, place: tuple[int, int], past: int, generator: np.random.Generator | None
    ) -> tuple[list[VadFrame], VadTargets]:
        number, k = place
        footage = self._footage[number]
        frames = [footage.frame(i, self._size) for i in range(k - past, k + 1)]
        targets = footage.targets(k, self._size)
        if generator is None:
            return frames, targets
        if generator.random() < self.config.mirrored_share:
            poses = footage.drive.ego_to_global[list(footage.frames[k - past : k + 1])]
            frames = [mirrored_frame(f, self._size.image_hw[1], pose) for f, pose in zip(frames, poses, strict=True)]
            targets = mirrored_targets(targets)
        return [self._disturbed(frame, generator) for frame in frames], targets

    def _disturbed(self, frame: VadFrame, generator: np.random.Generator) -> VadFrame:
        images = relit(frame.images_V3hw, self.config.light, generator)
        images = grid_masked(images, generator) if self.config.grid_mask else images
        return VadFrame(images_V3hw=images, lidar_to_image_V44=frame.lidar_to_image_V44, can_bus_18=frame.can_bus_18)

    def loss(self, model: Any, batch: VadBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The frames before are read without gradients, as in VAD."""
        past, vad = None, model.vad
        with torch.no_grad():
            for n in range(batch.images_BNV3hw.shape[1] - 1):
                past = vad.encode(batch.images_BNV3hw[:, n], batch.lidar_to_image_BNV44[:, n], batch.can_bus_BN18[:, n], past)
        outputs = vad(batch.images_BNV3hw[:, -1], batch.lidar_to_image_BNV44[:, -1], batch.can_bus_BN18[:, -1], past)
        losses = vad_losses(outputs, batch.targets, self._size, self.config.weights)
        helps = auxiliary_losses(model, outputs.bev_BQD, batch.targets, self.config.weights)
        return losses.pop("total") + torch.stack(list(helps.values())).sum(), losses | helps

    def evaluate(self, model: Any, device: torch.device) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
        """The same losses on held-out key frames."""
        if not self._kept:
            return {}, None
        chosen = [self._kept[i] for i in np.unique(np.linspace(0, len(self._kept) - 1, 24).astype(int))]
        sums: dict[str, float] = {}
        for place in chosen:
            batch = _collate([self._sample(place, min(self.config.past_frames, place[1]), None)]).to(device)
            total, parts = self.loss(model, batch, torch.Generator())
            for name, value in {"loss": total, **parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / len(chosen)
        return {f"held_out_{name}": value for name, value in sums.items()}, None

    def finish(self, model: Any, device: torch.device) -> nn.Module:
        """VAD without what helped it learn, its operating score measured on the held-out stretches."""
        if self._kept and not self._size.can_motion:
            self._measured["operating_score"] = f"{self._operating_score(VadDetector(model.vad, str(device))):.4f}"
        return model.vad

    def _operating_score(self, detector: VadDetector) -> float:
        truth, found = [], []
        for number, k in self._kept:
            footage = self._footage[number]
            truth.append(footage.drive.seen_boxes(footage.frames[k], footage.seen[k])[0])
            found.append(detector.boxes_of(footage.frame(k, self._size)).moved(footage.drive.lidar_to_ego))
        return operating_score(truth, found, ClipMatchConfig(reach_m=detector.reach_m))


def _collate(samples: list[tuple[list[VadFrame], VadTargets]]) -> VadBatch:
    vectors = [[frame.can_bus_18 for frame in frames] for frames, _ in samples]
    moved = [[since(v, row[i - 1] if i else None) for i, v in enumerate(row)] for row in vectors]
    return VadBatch(
        images_BNV3hw=torch.stack([torch.stack([f.images_V3hw for f in frames]) for frames, _ in samples]),
        lidar_to_image_BNV44=torch.stack([torch.stack([f.lidar_to_image_V44 for f in frames]) for frames, _ in samples]),
        can_bus_BN18=torch.from_numpy(np.array(moved)).float(), targets=tuple(targets for _, targets in samples),
    )  # fmt: skip
