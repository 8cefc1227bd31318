"""Which scenes a named split holds."""

from __future__ import annotations

import json
from pathlib import Path

from nuscenes.utils.splits import create_splits_scenes

from dwm.errors import InputError
from dwm.scenes.nuscenes import list_scenes


def scenes_of_split(dataroot: Path, version: str, split: str) -> list[str]:
    """Scene names of a split that the dataroot holds, from ``{version}/splits.json`` or the devkit's own splits.

    Raises:
        InputError: unknown split, or none of its scenes present.
    """
    path = dataroot / version / "splits.json"
    custom: dict[str, list[str]] = json.loads(path.read_text()) if path.is_file() else {}
    splits = {**create_splits_scenes(), **custom}
    if split not in splits:
        raise InputError(
            path, f"no split '{split}'", f"splits here: {', '.join(custom) or 'none'}; or one of the devkit's, e.g. val"
        )
    present = list_scenes(dataroot, version)
    names = [name for name in present if name in set(splits[split])]
    if not names:
        raise InputError(
            dataroot / version, f"no scene of split '{split}' is present", "choose another split or restore the scenes"
        )
    return names
