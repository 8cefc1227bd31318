"""A run configuration over real, but tiny and untrained, models: the whole pipeline in seconds."""

from __future__ import annotations

from pathlib import Path

import torch

from dwm.codec.autoencoder import Autoencoder, CodecConfig
from dwm.config import to_yaml
from dwm.models.dit import DiTConfig, MultiViewDiT
from dwm.models.weights import save_model
from dwm.rollout.config import RolloutConfig
from evaluators.detector.model import BevDetector, DetectorConfig
from evaluators.detector.weights import save_detector
from pipelines.config import (
    EvaluateConfig,
    ModelConfig,
    PerturbationConfig,
    RunConfig,
    ScenarioConfig,
    ScenesConfig,
    VideoConfig,
)

VERSION = "v1.0-mini"
DETECTOR = DetectorConfig(image_channels=8, bev_channels=8, cell_m=3.2, heights_m=(1.0,))


def write_models(folder: Path) -> Path:
    """Codec, world model and detector with random weights as ``folder``/<part>.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(Autoencoder(CodecConfig(width=8, blocks=1)), folder / "codec.safetensors", {})
        world = MultiViewDiT(
            DiTConfig(d_model=32, depth=1, heads=2, local_widths=(8, 16), latent_channels=16, layout_channels=24)
        )
        save_model(world, folder / "world.safetensors", {})
        save_detector(folder / "detector.safetensors", BevDetector(DETECTOR).state_dict(), DETECTOR, {})
    return folder


def tiny_run(
    dataroot: Path, models: Path, out: Path, *, duration_s: float, perturbations: list[PerturbationConfig], scored: bool
) -> RunConfig:
    """A serial run of scene-0001 with few denoising steps and fast video coding."""
    return RunConfig(
        scenes=ScenesConfig(dataroot=str(dataroot), version=VERSION, names=["scene-0001"]),
        scenario=ScenarioConfig(duration_s=duration_s, perturbations=perturbations),
        rollout=RolloutConfig(steps=1, window_frames=4),
        model=ModelConfig(codec=str(models / "codec.safetensors"), world_model=str(models / "world.safetensors")),
        video=VideoConfig(preset="ultrafast"),
        evaluate=EvaluateConfig(detector=str(models / "detector.safetensors") if scored else None, counterfactual=scored),
        out=str(out),
    )


def write_yaml(config: RunConfig, path: Path) -> Path:
    path.write_text(to_yaml(config))
    return path
