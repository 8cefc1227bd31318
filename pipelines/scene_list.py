"""Names and tokens of the scenes a run starts from, read without loading a whole nuScenes dataset."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from dwm.errors import InputError
from dwm.scenes.dataroot import check_tables
from dwm.scenes.splits import split_names
from pipelines.atomic import canonical_json, read_json
from pipelines.config import ScenesConfig
from pipelines.plan import SceneRef


def list_scene_refs(config: ScenesConfig) -> list[SceneRef]:
    """The scenes a configuration asks for, in the order asked (names) or of the table (split or all)."""
    rows = _scene_rows(config)
    names = list(config.names) or split_names(_tables(config), config.split, rows)
    if missing := [name for name in names if name not in rows]:
        have = ", ".join(list(rows)[:5])
        raise InputError(_tables(config) / "scene.json", f"no scene named {missing[0]}", f"use one of its scenes: {have}, ...")
    if not names:
        raise InputError(_tables(config) / "scene.json", "no scene matches", "set scenes.names or scenes.split")
    return [rows[name] for name in dict.fromkeys(names)]


def _tables(config: ScenesConfig) -> Path:
    return Path(config.dataroot) / config.version


def _scene_rows(config: ScenesConfig) -> dict[str, SceneRef]:
    root, path = Path(config.dataroot), _tables(config) / "scene.json"
    if not root.is_dir():
        fix = "set scenes.dataroot to a nuScenes folder, or make one with `roadreel world build --out DIR`"
        raise InputError(root, "no such dataroot", fix)
    if not path.is_file():
        versions = ", ".join(sorted(p.parent.name for p in root.glob("*/scene.json"))) or "none"
        raise InputError(path, "the table is missing", f"set scenes.version; versions found: {versions}")
    check_tables(root, config.version)
    rows = read_json(path)
    try:
        return {row["name"]: SceneRef(name=row["name"], token=row["token"], fingerprint=_fingerprint(row)) for row in rows}
    except (TypeError, KeyError) as error:
        raise InputError(path, f"not a nuScenes scene table ({error!r})", "restore the file") from error


def _fingerprint(row: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(row)).hexdigest()[:16]
