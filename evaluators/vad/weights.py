"""Weights of VAD: the public checkpoints; our own are saved and loaded as those of other models (``dwm.models.weights``)."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dwm.errors import InputError
from evaluators.vad.model import VAD, build_vad

NAMED = 3  # keys that an error names


def load_public(path: Path, name: str) -> VAD:
    """A network of ``CONFIGS`` in evaluation mode with the weights of a public checkpoint, e.g. ``VAD_tiny.pth``.

    The file is what mmcv's runner writes: a dictionary with ``meta``, ``state_dict`` and ``optimizer``. Nothing in it is
    run: only tensors and plain containers are read.

    Raises:
        InputError: missing or unreadable file, or tensors that do not fit the network exactly.
    """
    if not path.is_file():
        raise InputError(path, "no such weights file", "download it from the links in VAD's README")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(path, f"not a readable checkpoint ({first_line})", "download the file again") from error
    state = checkpoint.get("state_dict") if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping):
        raise InputError(path, "has no 'state_dict'", "give a checkpoint as VAD's training writes it")
    model = build_vad(name)
    _fit(model, state, path, f"'{name}' takes the checkpoint of that size only: vad_tiny VAD_tiny.pth, vad_base VAD_base.pth")
    return model.eval()


def _fit(model: VAD, tensors: Mapping[str, Tensor], path: Path, fix: str) -> None:
    """Copy tensors into a network; InputError with what is missing, left over, of another shape or not finite."""
    wanted = model.state_dict()
    shared = wanted.keys() & tensors.keys()
    problems = {
        "missing": wanted.keys() - tensors.keys(),
        "unexpected": tensors.keys() - wanted.keys(),
        "of another shape": {key for key in shared if wanted[key].shape != tensors[key].shape},
    }
    told = [f"{_names(keys)} {what}" for what, keys in problems.items() if keys]
    if told:
        raise InputError(path, "; ".join(told), fix)
    broken = {key for key, tensor in tensors.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())}
    if broken:
        raise InputError(path, f"{_names(broken)} not finite", "download or train the weights again")
    model.load_state_dict(tensors, strict=True)


def _names(keys: set[str]) -> str:
    named = ", ".join(f"'{key}'" for key in sorted(keys)[:NAMED])
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return f"{len(keys)} tensor{'s' if len(keys) > 1 else ''} {named}{more}"
