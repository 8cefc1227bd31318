"""Which scenes belong to a split: a dataroot's own splits.json, before those of nuScenes."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from dwm.errors import InputError

_OFFICIAL = ("train", "val", "test", "mini_train", "mini_val", "train_detect", "train_track")


def split_names(tables: Path, split: str, names: Collection[str]) -> list[str]:
    """Those of the scenes ``names`` that are in a split, all of them for ""; InputError for an unknown one.

    ``tables`` is the folder of the dataroot's tables.
    """
    if not split:
        return list(names)
    own = tables / "splits.json"
    splits: dict[str, list[str]] = json.loads(own.read_text()) if own.is_file() else {}
    if split in _OFFICIAL and split not in splits:
        # Slow to import: the devkit loads its plotting with it.
        from nuscenes.utils.splits import create_splits_scenes

        splits = {**create_splits_scenes(), **splits}
    if split not in splits:
        raise InputError(tables, f"no split named '{split}'", f"use one of: {', '.join(sorted({*splits, *_OFFICIAL}))}")
    return [name for name in splits[split] if name in names]
