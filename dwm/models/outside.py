"""Weights that others made, in a folder or on the Hugging Face hub: where they lie here, and what names them for good."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from dwm.errors import InputError
from dwm.extras import optional_package


def outside_sha256(source: str, subfolder: str | None = None) -> str:
    """Hex digest of a folder's files, or of the hub's commit that the local copy of an id is of.

    A folder's is the digest of one line per file, in order of their names: its own digest and its place below the folder. Raises InputError for
    a folder that is missing or empty and for an id of which there is no local copy.
    """
    folder = Path(source)
    if not folder.is_dir():
        return hashlib.sha256(f"{source}@{_commit(source)}#{subfolder or ''}".encode()).hexdigest()
    folder = folder / subfolder if subfolder else folder
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise InputError(folder, "holds no files", "give the folder of a model that diffusers or transformers has saved")
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit(source: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise InputError(source, "no such folder", "give the model's folder, or an id of the hub such as owner/name")
    hub = optional_package("huggingface_hub", "full-scale")
    try:
        return Path(hub.snapshot_download(source, local_files_only=True)).name
    except OSError as error:  # what huggingface_hub raises for a missing copy is one, too
        fix = f"give a folder that exists, or download the id first: hf download {source}"
        raise InputError(source, "neither a folder nor an id of the hub with a copy on this machine", fix) from error
