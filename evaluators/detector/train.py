"""Training the detector on the key frames of any nuScenes-format dataroot."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dwm.device import half_precision
from dwm.errors import InputError
from evaluators.boxes import Boxes
from evaluators.detection import evaluate_boxes_in_memory
from evaluators.detector.augment import AugmentConfig, Sample, augmented
from evaluators.detector.decode import images_to_tensor
from evaluators.detector.drives import key_frames_of_drives
from evaluators.detector.inference import Detector, rigs_of
from evaluators.detector.loss import detection_losses
from evaluators.detector.model import BevDetector, DetectorConfig
from evaluators.detector.samples import KeyFrames, cached_key_frames, sampling_weights
from evaluators.detector.targets import make_targets
from evaluators.detector.weights import save_detector
from evaluators.operating_point import operating_score
from evaluators.splits import scenes_of_split

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorTrainConfig:
    """Everything that decides a training run."""

    target: str = "detector"  # what `roadreel train` takes this file for
    drives: str = ""  # folder of rendered proving-ground drives; replaces the dataroot for training
    dataroot: str = "data/nuscenes"
    version: str = "v1.0-mini"
    train_split: str = "mini_train"
    validation_split: str | None = "mini_val"  # null: no validation
    out_dir: str = "runs/detector"  # checkpoint.pt, log.jsonl and detector.safetensors go here
    cache_dir: str = "runs/cache"
    model: DetectorConfig = field(default_factory=DetectorConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    steps: int = 6000
    max_minutes: float | None = None  # of training, all resumed parts together; the schedule anneals to whichever ends first
    batch_size: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 200
    gradient_clip: float = 5.0
    ema_decay: float = 0.998
    rare_class_power: float = 0.5  # 0 samples key frames uniformly
    min_visibility: int = 1  # nuScenes level; 2 leaves out boxes that are less than 40 % visible
    validation_key_frames: int = 200  # at most, evenly spread over the split
    validate_every_steps: int = 1000
    checkpoint_every_steps: int = 250
    log_every_steps: int = 20
    device: str = "cpu"
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class _State:
    model: BevDetector
    ema: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    step: int = 0
    elapsed_s: float = 0.0


def train_detector(config: DetectorTrainConfig, frames: KeyFrames | None = None, validation: KeyFrames | None = None) -> Path:
    """Trains, or resumes ``out_dir``'s checkpoint, and returns the exported safetensors file.

    Every step draws from a generator of (seed, step), so a resumed run sees what an uninterrupted one would. ``frames``
    and ``validation`` replace the dataroot's key frames.

    Raises:
        InputError: dataroot or split missing, or ``out_dir`` holds a run of another configuration.
    """
    out = Path(config.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    if frames is None:
        drives = Path(config.drives)
        frames = (
            key_frames_of_drives(drives, Path(config.cache_dir) / "drives")
            if config.drives
            else _read(config, config.train_split)
        )
    if validation is None and config.validation_split:
        validation = _read(config, config.validation_split)
    state = _restore(config, out / "checkpoint.pt")
    weights = sampling_weights(frames, config.rare_class_power)
    log.info("training on %d key frames from step %d", len(frames), state.step)
    while not _done(config, state):
        started = time.monotonic()
        rng = np.random.default_rng([config.seed, state.step])
        batch = [_draw(frames, int(i), config, rng) for i in rng.choice(len(frames), config.batch_size, p=weights)]
        losses = _step(state, batch, config)
        state.elapsed_s += time.monotonic() - started
        if not math.isfinite(losses["total"]):
            raise InputError(out, f"the loss is {losses['total']} at step {state.step}", "lower learning_rate and start again")
        if state.step % config.log_every_steps == 0:
            _log(out, {"step": state.step, "elapsed_s": round(state.elapsed_s, 1), **losses})
        if state.step % config.checkpoint_every_steps == 0:
            _save(config, state, out / "checkpoint.pt")
        if validation is not None and state.step % config.validate_every_steps == 0:
            _log(out, {"step": state.step, **_validate(config, state, validation)})
    _save(config, state, out / "checkpoint.pt")
    scores = _validate(config, state, validation) if validation is not None else {}
    _log(out, {"step": state.step, **scores})
    facts = {"steps": state.step, "seed": config.seed, "trained_on": config.drives or f"{config.version}/{config.train_split}",
             "key_frames": len(frames), "elapsed_s": round(state.elapsed_s), **scores}  # fmt: skip
    save_detector(out / "detector.safetensors", state.ema, config.model, facts)
    return out / "detector.safetensors"


def _read(config: DetectorTrainConfig, split: str) -> KeyFrames:
    root = Path(config.dataroot)
    names = scenes_of_split(root, config.version, split)
    return cached_key_frames(root, config.version, names, config.model.image_hw, Path(config.cache_dir), config.min_visibility)


def _draw(frames: KeyFrames, index: int, config: DetectorTrainConfig, rng: np.random.Generator) -> Sample:
    images, intrinsics, camera_to_ego = frames.history(index, config.model.frames)
    boxes = frames.boxes[index]
    # The devkit leaves out boxes without a point; so does training.
    sample = Sample(images=images, intrinsics=intrinsics, camera_to_ego=camera_to_ego, boxes=boxes.select(boxes.num_pts != 0))
    return augmented(sample, config.augment, rng)


def _step(state: _State, batch: list[Sample], config: DetectorTrainConfig) -> dict[str, float]:
    rate = config.learning_rate * _schedule(config, state)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.model.train()
    rigs = rigs_of(np.stack([s.intrinsics for s in batch]), np.stack([s.camera_to_ego for s in batch]), config.device)
    images = images_to_tensor(np.stack([s.images for s in batch])).to(config.device)
    targets = make_targets([s.boxes for s in batch], config.model).to(torch.device(config.device))
    taps = state.model.taps(rigs)
    with half_precision("auto", torch.device(config.device), on_cpu=False):
        outputs = state.model(images, taps)
    losses = detection_losses(outputs, targets)
    state.optimizer.zero_grad(set_to_none=True)
    losses["total"].backward()
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.gradient_clip)
    state.optimizer.step()
    state.step += 1
    _update_ema(state, config.ema_decay)
    return {
        **{name: float(value.detach()) for name, value in losses.items()},
        "gradient_norm": float(norm),
        "learning_rate": rate,
    }


def _schedule(config: DetectorTrainConfig, state: _State) -> float:
    """Linear warm-up, then a cosine to zero over the steps or the minutes, whichever is nearer its end."""
    progress = state.step / config.steps
    if config.max_minutes is not None:
        progress = max(progress, state.elapsed_s / (60 * config.max_minutes))
    warmup = min(1.0, (state.step + 1) / max(config.warmup_steps, 1))
    return warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _done(config: DetectorTrainConfig, state: _State) -> bool:
    late = config.max_minutes is not None and state.elapsed_s >= 60 * config.max_minutes
    return late or state.step >= config.steps


def _update_ema(state: _State, decay: float) -> None:
    # A short memory at first, so that early averages are not the random start.
    decay = min(decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for name, value in state.model.state_dict().items():
            state.ema[name].lerp_(value, 1 - decay)


def _validate(config: DetectorTrainConfig, state: _State, validation: KeyFrames) -> dict[str, float]:
    model = BevDetector(config.model)
    model.load_state_dict(state.ema)
    detector = Detector(model, config.device)
    chosen = np.unique(
        np.linspace(0, len(validation) - 1, min(len(validation), config.validation_key_frames)).round().astype(int)
    )
    truth: dict[str, Boxes] = {validation.tokens[i]: validation.boxes[i] for i in chosen}
    found = {validation.tokens[i]: detector.detect(*validation.history(int(i), config.model.frames)) for i in chosen}
    report = evaluate_boxes_in_memory(truth, found)
    log.info(
        "step %d: mAP %.3f, over classes with truth %.3f, NDS %.3f",
        state.step,
        report.mean_ap,
        report.mean_ap_with_truth,
        report.nds,
    )
    score = operating_score(list(truth.values()), list(found.values()))
    return report.metrics(prefix="val.") | ({"operating_score": score} if math.isfinite(score) else {})


def _restore(config: DetectorTrainConfig, path: Path) -> _State:
    torch.manual_seed(config.seed)
    model = BevDetector(config.model).to(config.device)
    optimizer = torch.optim.AdamW(_groups(model, config.weight_decay), lr=config.learning_rate)
    ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
    state = _State(model=model, ema=ema, optimizer=optimizer)
    if path.is_file():
        saved = torch.load(path, map_location=config.device, weights_only=True)
        if saved["identity"] != _identity(config):
            raise InputError(
                path, "belongs to a run with another configuration", "choose another out_dir or remove the checkpoint"
            )
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state.ema, state.step, state.elapsed_s = saved["ema"], saved["step"], saved["elapsed_s"]
    return state


def _groups(model: BevDetector, weight_decay: float) -> list[dict[str, Any]]:
    def parameters(matrices: bool) -> Iterable[Tensor]:
        return [p for p in model.parameters() if (p.ndim > 1) == matrices]

    return [{"params": parameters(True), "weight_decay": weight_decay}, {"params": parameters(False), "weight_decay": 0.0}]


def _save(config: DetectorTrainConfig, state: _State, path: Path) -> None:
    scratch = path.with_suffix(".part")
    content = {
        "identity": _identity(config), "model": state.model.state_dict(), "ema": state.ema,
        "optimizer": state.optimizer.state_dict(), "step": state.step, "elapsed_s": state.elapsed_s,
    }  # fmt: skip
    torch.save(content, scratch)
    os.replace(scratch, path)


def _identity(config: DetectorTrainConfig) -> str:
    """What must not change between the parts of a run; how long it runs and where it writes may."""
    free = {"steps", "max_minutes", "out_dir", "cache_dir", "device", "dataroot"}
    return json.dumps(
        {k: v for k, v in dataclasses.asdict(config).items() if k not in free and "every" not in k}, sort_keys=True
    )


def _log(out: Path, row: dict[str, Any]) -> None:
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
