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
    template: nn.Module | None = None  # a whole model to be filled, where the other two are spread over processes
    step: int = 0  # optimiser steps done
    elapsed_s: float = 0.0  # training time spent

    def payload(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "model": self.model.state_dict(), "averaged": self.averaged.state_dict(), "optimizer": self.optimizer.state_dict(),
            "fingerprint": self.fingerprint, "step": self.step, "elapsed_s": self.elapsed_s,
        }  # fmt: skip


def save_checkpoint(state: TrainingState, path: Path) -> None:
    """Replace the checkpoint atomically."""
    write_atomically(state.payload(), path)


def load_checkpoint(state: TrainingState, path: Path) -> bool:
    """Fill ``state`` from the checkpoint; False when there is none. InputError when it belongs to another run."""
    if not path.is_file():
        return False
    payload = read_payload(path, state.fingerprint)
    state.model.load_state_dict(payload["model"])
    state.averaged.load_state_dict(payload["averaged"])
    state.optimizer.load_state_dict(payload["optimizer"])
    state.step, state.elapsed_s = payload["step"], payload["elapsed_s"]
    return True


def write_atomically(payload: dict[str, Any], path: Path) -> None:
    """All of the file or nothing."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(payload, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_payload(path: Path, fingerprint: str) -> dict[str, Any]:
    """What ``TrainingState.payload`` gave; InputError when it cannot be read or belongs to another run."""
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
        payload = {key: payload[key] for key in ("model", "averaged", "optimizer", "fingerprint", "step", "elapsed_s")}
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError, OSError) as error:
        raise InputError(path, "the checkpoint cannot be read", "delete it to start again, or restore a copy") from error
    stored = json.loads(payload["fingerprint"])
    for key, value in json.loads(fingerprint).items():
        if stored.get(key) != value:
            raise InputError(path, f"this folder holds a run with another {key}", "choose another loop.out, or delete it")
    return payload


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """averaged <- decay * averaged + (1 - decay) * model; buffers are copied."""
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)  # type: ignore[attr-defined]
    for kept, new in zip(averaged.buffers(), model.buffers(), strict=True):
        kept.copy_(new)
