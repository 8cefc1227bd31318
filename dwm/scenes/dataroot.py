"""Opening a nuScenes dataroot: every way a folder can be wrong is told in words before the devkit sees it."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from dwm.errors import InputError

if TYPE_CHECKING:  # slow to import: the devkit loads its plotting with it
    from nuscenes import NuScenes

TABLES = (
    "category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose",
    "log", "scene", "sample", "sample_data", "sample_annotation", "map",
)  # fmt: skip


def open_dataroot(dataroot: Path, version: str) -> NuScenes:
    """The devkit's database, cached per folder, version and time of the tables' last change.

    Raises:
        InputError: the folder, version or a table is missing or malformed, or a map file escapes the dataroot.
    """
    folder = check_tables(Path(dataroot), version)
    stamp = max((folder / f"{table}.json").stat().st_mtime_ns for table in TABLES)
    return _load(str(Path(dataroot).resolve()), version, stamp)


def check_tables(dataroot: Path, version: str) -> Path:
    """The folder of one version's tables, all of them present; their content is not read."""
    folder = check_version(dataroot, version)
    for table in TABLES:
        if not (folder / f"{table}.json").is_file():
            raise InputError(folder, f"table {table}.json is missing", "unpack the complete metadata archive of this version")
    return folder


def check_version(dataroot: Path, version: str) -> Path:
    """The folder of one version's tables, or an InputError that lists the versions present."""
    if not dataroot.is_dir():
        raise InputError(dataroot, "no such nuScenes dataroot", "give a folder with samples/, maps/ and e.g. v1.0-mini/")
    folder = dataroot / version
    if not version or Path(version).name != version or not folder.is_dir():
        present = sorted(p.parent.name for p in dataroot.glob("*/sample_data.json"))
        raise InputError(dataroot, f"no version '{version}'", f"versions present: {', '.join(present) or 'none'}")
    return folder


def check_filename(dataroot: Path, table: str, token: str, filename: Any) -> Path:
    """The path of a table's ``filename``, refused when it would leave the dataroot."""
    posix, windows = PurePosixPath(str(filename)), PureWindowsPath(str(filename))
    escapes = posix.is_absolute() or windows.is_absolute() or windows.drive or ".." in posix.parts or ".." in windows.parts
    if not isinstance(filename, str) or not filename or escapes:
        problem = f"table {table}, token {token}: filename {filename!r} does not lie inside the dataroot"
        raise InputError(dataroot, problem, "correct the table: file names are relative, without '..'")
    return dataroot / posix


@lru_cache(maxsize=2)
def _load(dataroot: str, version: str, stamp: int) -> NuScenes:
    # The devkit opens map masks while loading, so their names are checked before.
    for row in read_table(Path(dataroot) / version / "map.json"):
        path = check_filename(Path(dataroot), "map", row["token"], row.get("filename"))
        if not path.is_file():
            raise InputError(path, "the map mask is missing", "unpack the maps next to the tables")
    from nuscenes import NuScenes

    try:
        return NuScenes(version=version, dataroot=dataroot, verbose=False)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError) as error:
        folder = Path(dataroot) / version
        for table in TABLES:
            read_table(folder / f"{table}.json")
        problem = f"the tables do not fit together ({type(error).__name__}: {error})"
        raise InputError(folder, problem, "a token or field is missing: unpack the tables again") from error


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of one table; an InputError names the file when it is no JSON list of records with tokens."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(path, f"not valid JSON ({error})", "restore the file from the archive") from error
    if not isinstance(rows, list) or any(not isinstance(row, dict) or "token" not in row for row in rows):
        raise InputError(path, "not a list of records with a token each", "restore the file from the archive")
    return rows
