"""Where a roll-out stands between two chunks: enough to go on from there, in this process or in another.

Shapes: V views, C latent channels, h w latent pixels, H W pixels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dwm.conditioning.build import Given
from dwm.errors import InputError
from dwm.models.weights import load_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The frames that what comes next is made from."""

    given: list[Given]  # the last frames made, in order
    ahead: list[Given]  # frames made beyond them (anchors, key frames), in order


_TENSORS = {"latents": "latents_VCHW", "images": "images_V3HW", "sharpness": "sharpness_VHW"}


def save_state(state: State, path: Path, of: str) -> None:
    """Write a state, all of it or nothing; ``of`` names the roll-out that it belongs to."""
    tensors: dict[str, Tensor] = {}
    for part, frames in (("given", state.given), ("ahead", state.ahead)):
        for known in frames:
            for name, field in _TENSORS.items():
                tensor = getattr(known, field)
                if tensor is not None:
                    tensors[f"{part}.{known.frame}.{name}"] = tensor.detach().cpu().contiguous()
    temporary = path.with_name(path.name + ".partial")
    save_file(tensors, temporary, metadata={"of": of})
    os.replace(temporary, path)


def load_state(path: Path, of: str, device: torch.device | str = "cpu") -> State:
    """A state as it was saved; InputError when the file is broken or belongs to another roll-out than ``of``."""
    tensors, metadata = load_tensors(path)
    if metadata.get("of") != of:
        raise InputError(
            path, f"is the state of roll-out '{metadata.get('of', '')}', not of '{of}'", "delete it and start again"
        )
    found: dict[tuple[str, int], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, frame, name = key.split(".")
        found.setdefault((part, int(frame)), {})[_TENSORS[name]] = tensor.to(device)
    parts = {"given": [], "ahead": []}
    for (part, frame), fields in sorted(found.items()):
        parts[part].append(Given(frame=frame, **fields))
    return State(**parts)
