"""``roadreel train``: one training target, or a recipe of several in order. The same command resumes either."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dwm.config import load_config
from dwm.errors import InputError

if TYPE_CHECKING:
    from dwm.training.config import TrainConfig


def run_training(path: Path, overrides: list[str]) -> Path:
    """Train what a configuration names by ``target``, or every file of its ``recipe``; returns the last output.

    Raises InputError for a missing or malformed file and for overrides given to a recipe, whose files differ in fields.
    """
    head = _read(path)
    if "recipe" not in head:
        return _train_one(path, head.get("target", "world_model"), overrides)
    if overrides:
        raise InputError(
            path, f"a recipe takes no overrides, got {overrides[0]}", "train its files one by one to change fields"
        )
    steps = [path.parent / str(name) for name in head["recipe"]]
    for step in steps:
        _read(step)  # all of them exist before the first hour is spent
    return [run_training(step, []) for step in steps][-1]


def _train_one(path: Path, target: str, overrides: list[str]) -> Path:
    if target == "detector":
        from evaluators.detector.train import DetectorTrainConfig, train_detector

        return train_detector(load_config(DetectorTrainConfig, path, overrides))
    if target == "ego_motion":
        from evaluators.ego_motion.training import EgoMotionTraining, train_ego_motion

        return train_ego_motion(load_config(EgoMotionTraining, path, overrides))
    if target == "vad":
        from evaluators.vad.training import VadTraining, train_vad

        return train_vad(load_config(VadTraining, path, overrides))
    from dwm.training import train

    return train(load_training(path, overrides), progress=True)


def is_training(path: Path) -> bool:
    """Whether a file describes the training of a world model, and not a run."""
    return _read(path).get("target") in ("world_model", "distillation")


def load_training(path: Path, overrides: list[str]) -> TrainConfig:
    """A training configuration, ``world.model`` filled from its own file where it is the path of one."""
    from dwm.models.dit import DiTConfig
    from dwm.training.config import TrainConfig

    named = _read(path).get("world", {}).get("model")
    if not isinstance(named, str):
        return load_config(TrainConfig, path, overrides)
    model = load_config(DiTConfig, Path(named))
    return load_config(TrainConfig, path, overrides, {"world": {"model": asdict(model)}})


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(path, "no such configuration file", "give the path of a YAML file in conf/train")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(path, f"not a YAML file ({str(error).splitlines()[0]})", "mend its syntax") from error
    if not isinstance(content, dict):
        raise InputError(path, "not a table of settings", "write key: value lines")
    return content
