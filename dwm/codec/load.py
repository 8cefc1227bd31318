"""The codec that a configuration names: an own weights file, or ``diffusers:<folder or hub id>[#subfolder]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dwm.codec.diffusers_codec import load_diffusers_codec
from dwm.models.outside import outside_sha256
from dwm.models.weights import load_model, weights_sha256

_OUTSIDE = "diffusers:"


def is_outside(source: str) -> bool:
    """Whether a codec is one that others made."""
    return source.startswith(_OUTSIDE)


def load_codec(source: str) -> Any:
    """A ``Codec`` that is a module, in evaluation; InputError as ``load_model`` and ``load_diffusers_codec``."""
    if outside := _outside(source):
        return load_diffusers_codec(*outside)
    return load_model(Path(source), "autoencoder")[0]


def codec_sha256(source: str) -> str:
    """Hex digest of the codec's weights; InputError where there are none."""
    if outside := _outside(source):
        return outside_sha256(*outside)
    return weights_sha256(Path(source))


def _outside(source: str) -> tuple[str, str | None] | None:
    """Folder or id, and subfolder, of a codec of diffusers; None for an own file."""
    if not is_outside(source):
        return None
    place, _, subfolder = source.removeprefix(_OUTSIDE).partition("#")
    return place, subfolder or None
