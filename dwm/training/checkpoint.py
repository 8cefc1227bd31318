"""Checkpoints that survive a kill at any moment, and weights ready for use."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dwm.errors import InputError


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """Everything a run is: resuming from it continues bit for bit.

    Randomness and the learning rate are functions of (seed, step), so there is no generator or scheduler to store.
    """

    model: nn.Module
    averaged: nn.Module  # exponential moving average of the model
    optimizer: torch.optim.Optimizer
    fingerprint: str  # JSON object of what must not change between resumptions
    step: int = 0  # optimiser steps done
    elapsed_s: float = 0.0  # training time spent


def save_checkpoint(state: TrainingState, path: Path) -> None:
    """Replace the checkpoint atomically."""
    payload = {
        "model": state.model.state_dict(),
        "averaged": state.averaged.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "fingerprint": state.fingerprint,
        "step": state.step,
        "elapsed_s": state.elapsed_s,
    }
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(payload, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_checkpoint(state: TrainingState, path: Path) -> bool:
    """Fill ``state`` from the checkpoint; False when there is none. InputError when it belongs to another run."""
    if not path.is_file():
        return False
    payload = _read(path)
    stored = json.loads(payload["fingerprint"])
    for key, value in json.loads(state.fingerprint).items():
        if stored.get(key) != value:
            raise InputError(path, f"this folder holds a run with another {key}", "choose another loop.out, or delete it")
    state.model.load_state_dict(payload["model"])
    state.averaged.load_state_dict(payload["averaged"])
    state.optimizer.load_state_dict(payload["optimizer"])
    state.step, state.elapsed_s = payload["step"], payload["elapsed_s"]
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
        return {key: payload[key] for key in ("model", "averaged", "optimizer", "fingerprint", "step", "elapsed_s")}
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError, OSError) as error:
        raise InputError(path, "the checkpoint cannot be read", "delete it to start again, or restore a copy") from error


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """averaged <- decay * averaged + (1 - decay) * model; buffers are copied."""
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)  # type: ignore[attr-defined]
    for kept, new in zip(averaged.buffers(), model.buffers(), strict=True):
        kept.copy_(new)
