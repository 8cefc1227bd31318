"""Detector weights as safetensors with their configuration in the metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dwm.errors import InputError
from evaluators.detector.model import BevDetector, DetectorConfig

KIND = "roadreel-bev-detector"


def save_detector(path: Path, state: dict[str, Tensor], config: DetectorConfig, facts: dict[str, Any]) -> None:
    """Writes weights atomically; ``facts`` (steps, training data, scores) go into the metadata as JSON."""
    metadata = {"kind": KIND, "config": json.dumps(dataclasses.asdict(config)), "facts": json.dumps(facts)}
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, scratch, metadata)
    os.replace(scratch, path)


def load_detector(path: Path) -> tuple[BevDetector, dict[str, Any]]:
    """The detector in evaluation mode and the facts it was saved with.

    Raises:
        InputError: missing or foreign file, tensors that do not fit, NaN or infinite weights.
    """
    tensors, metadata = _read(path)
    if metadata.get("kind") != KIND:
        raise InputError(path, f"holds '{metadata.get('kind', 'unknown')}' weights", f"give a file of kind '{KIND}'")
    raw: dict[str, Any] = json.loads(metadata["config"])
    raw |= {"image_hw": tuple(raw["image_hw"]), "heights_m": tuple(raw["heights_m"])}
    model = BevDetector(DetectorConfig(**raw))
    _check(path, tensors, model.state_dict())
    model.load_state_dict(tensors)
    return model.eval(), json.loads(metadata.get("facts", "{}"))


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise InputError(path, "no such weights file", "train a detector or give the path of its .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(path, f"not a readable safetensors file ({error})", "restore the file from its source") from error


def _check(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    if tensors.keys() != expected.keys():
        odd = sorted(tensors.keys() ^ expected.keys())
        raise InputError(path, f"tensor '{odd[0]}' and {len(odd) - 1} more do not fit this detector", "use matching weights")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            problem = f"tensor '{name}' has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
            raise InputError(path, problem, "use weights of the same configuration")
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(path, f"tensor '{name}' holds NaN or infinite values", "restore the file or train again")
