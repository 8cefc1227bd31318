"""Weights on disk: safetensors that say what they are, checked before they are used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dwm.codec.autoencoder import Autoencoder, CodecConfig
from dwm.errors import InputError
from dwm.models.dit import DiTConfig
from dwm.models.systems import build_denoiser

# kind stored in the file -> how to build it
MODELS: dict[str, tuple[type, Callable[[Any], nn.Module]]] = {
    "autoencoder": (CodecConfig, Autoencoder),
    "multi_view_dit": (DiTConfig, build_denoiser),
}


def register_model(kind: str, config_class: type, build: Callable[[Any], nn.Module]) -> None:
    """A kind of model of another package, to be saved and loaded as those of this one."""
    MODELS[kind] = (config_class, build)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file; InputError when missing, broken, or not finite."""
    with _opened(path) as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(path, f"tensor '{key}' holds NaN or Inf", "the training diverged or the file is damaged")
    return tensors, metadata


def fit_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into a model; InputError naming the first key that is missing, left over, or of another shape."""
    wanted = model.state_dict()
    other = "these weights belong to another model configuration"
    for key in sorted(wanted.keys() | tensors.keys()):
        if key not in tensors:
            raise InputError(path, f"tensor '{key}' is missing", other)
        if key not in wanted:
            raise InputError(path, f"tensor '{key}' is not part of the model", other)
        if wanted[key].shape != tensors[key].shape:
            shapes = f"{list(tensors[key].shape)} in the file, {list(wanted[key].shape)} in the model"
            raise InputError(path, f"tensor '{key}' has another shape: {shapes}", "use the configuration it was trained with")
    model.load_state_dict(tensors)


def fit_shared(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> list[str]:
    """Copy the tensors that a model has too, by name and shape, and return their names; InputError when there is none."""
    own = model.state_dict()
    shared = {key: tensor for key, tensor in tensors.items() if key in own and own[key].shape == tensor.shape}
    if not shared:
        raise InputError(
            path, "has no tensor in common with the model", "give weights of a model with the same d_model and levels"
        )
    model.load_state_dict(shared, strict=False)
    return sorted(shared)


def load_model(path: Path, kind: str | None = None) -> tuple[Any, Any]:
    """(model in eval mode, its config) from a file written by ``save_model``; ``kind`` is what the caller expects."""
    tensors, metadata = load_tensors(path)
    config_class, build = _kind(metadata, kind, path)
    config = _config(config_class, metadata, path)
    model = build(config)
    fit_tensors(model, tensors, path)
    return model.eval().requires_grad_(False), config


def load_config_of(path: Path, kind: str) -> Any:
    """The configuration of the model in a file, without its weights; InputError as ``load_model``."""
    metadata = load_metadata(path)
    return _config(_kind(metadata, kind, path)[0], metadata, path)


def load_metadata(path: Path) -> dict[str, str]:
    """What a weights file says of itself, its tensors unread; InputError as ``load_tensors``."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; InputError where it is missing or cannot be read."""
    if not path.is_file():
        raise InputError(path, "no such weights file", "train some with `roadreel train`, or give a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(path, f"not a readable safetensors file ({error})", "copy or train the weights again") from error


def _kind(metadata: Mapping[str, str], kind: str | None, path: Path) -> tuple[type, Callable[[Any], nn.Module]]:
    found = metadata.get("kind", "")
    if found not in MODELS or (kind is not None and found != kind):
        raise InputError(path, f"holds a model of kind '{found}'", f"give weights of kind '{kind or ' or '.join(MODELS)}'")
    return MODELS[found]


def save_model(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> Path:
    """Write a model of ``MODELS`` with its configuration, atomically; ``metadata`` adds facts such as the steps."""
    kind = next(name for name, (config_class, _) in MODELS.items() if isinstance(model.config, config_class))
    config = json.dumps(asdict(model.config), sort_keys=True)  # type: ignore[arg-type]
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={**metadata, "format": "pt", "kind": kind, "config": config})
    os.replace(partial, path)
    return path


def weights_sha256(path: Path) -> str:
    """Hex digest of a weights file."""
    if not path.is_file():
        raise InputError(path, "no such weights file", "give the path of a .safetensors file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config(config_class: type, metadata: Mapping[str, str], path: Path) -> Any:
    try:
        values = json.loads(metadata["config"])
        known = {field.name for field in fields(config_class)}
        if unknown := set(values) - known:
            raise KeyError(f"unknown field {sorted(unknown)[0]}")
        return config_class(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(path, f"its stored configuration is unusable ({error})", "train the weights again") from error
