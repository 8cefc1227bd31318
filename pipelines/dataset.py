"""Reads a published dataset: ``Dataset.open("out/demo/run")`` opens its latest version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.geometry import rotation_from_quaternion, transform
from pipelines.atomic import read_json, sha256_file
from pipelines.layout import RunLayout, VersionLayout, inside
from pipelines.schema import SCHEMA_VERSION, TABLES


class Dataset:
    """One immutable dataset version. Opening checks that it is complete and of a schema this reader knows."""

    def __init__(self, version: VersionLayout) -> None:
        self.layout, self.root, self.folder = version, version.root, version.folder
        self.info: dict[str, Any] = _checked_info(version)

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Opens a dataset root (its LATEST version) or a version folder. InputError when there is none."""
        return cls(resolve_version(Path(path)))

    @property
    def name(self) -> str:
        """Name of the version."""
        return self.folder.name

    def clips(self, *, keep: bool | None = None) -> pa.Table:
        """The clips table, in clip order; with ``keep`` only clips of that verdict."""
        return self.table("clips", None if keep is None else pc.field("verdict_keep") == keep)

    def table(self, name: str, filter: pc.Expression | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """A table, or the rows matching a pyarrow expression such as ``pc.field("clip_id") == clip``."""
        if name not in TABLES:
            raise InputError(self.folder, f"there is no table '{name}'", f"use one of: {', '.join(TABLES)}")
        path = self.layout.table(name)
        try:
            source = pads.dataset(path, format="parquet")
            return source.to_table(filter=filter, columns=None if columns is None else list(columns))
        except (OSError, pa.ArrowException) as error:
            raise InputError(path, f"cannot read the table ({error})", "run `roadreel validate` on the dataset") from error

    def rows(self, name: str, clip_id: str, **equal: Any) -> list[dict[str, Any]]:
        """Rows of one clip as dictionaries; further columns may be given as ``channel="CAM_FRONT"``."""
        expression = pc.field("clip_id") == clip_id
        for column, value in equal.items():
            expression = expression & (pc.field(column) == value)
        return self.table(name, expression).to_pylist()

    def map_labels(
        self, clip_id: str, frame_index: int, range_m: tuple[float, float] = (60.0, 30.0), points: int | None = None
    ) -> dict[str, list[NDArray[np.float64]]]:
        """Lines [P, 2] by kind in the ego frame of the commanded path, cut to a window (along, across) centred on the ego.

        With ``points`` each line is resampled to that many. Kinds the source map does not know are absent.
        """
        from dwm.scenario.map_labels import KINDS, resampled, seen_from

        poses = self.poses(clip_id)
        if frame_index not in poses:
            raise InputError(self.folder, f"no frame {frame_index} in clip '{clip_id}'", "use a row of the ego_poses table")
        lines = {kind: some for kind, some in self.lines(clip_id).items() if kind in KINDS}
        seen = seen_from(lines, poses[frame_index], range_m)
        return seen if points is None else {kind: [resampled(line, points) for line in some] for kind, some in seen.items()}

    def poses(self, clip_id: str) -> dict[int, NDArray[np.float64]]:
        """The commanded path: frame index -> ego_to_global [4, 4]."""
        rows = self.rows("ego_poses", clip_id, path="commanded")
        return {
            row["frame_index"]: transform(
                [row[k] for k in "xyz"], rotation_from_quaternion([row[k] for k in ("qw", "qx", "qy", "qz")])
            )
            for row in rows
        }

    def lines(self, clip_id: str) -> dict[str, list[NDArray[np.float64]]]:
        """Map elements by kind: polylines [P, 2] in the global frame; closed ones end where they begin."""
        lines: dict[str, list[NDArray[np.float64]]] = {}
        for row in self.rows("map_elements", clip_id):
            line = np.array(row["points_xy_m"]).reshape(-1, 2)
            lines.setdefault(row["kind"], []).append(np.concatenate([line, line[:1]]) if row["is_polygon"] else line)
        return lines

    def video_path(self, clip_id: str, channel: str, stream: str = "rgb") -> Path:
        """The mp4 of one camera of a clip."""
        rows = self.rows("videos", clip_id, channel=channel, stream=stream)
        if not rows:
            channels = sorted({f"{row['channel']}/{row['stream']}" for row in self.rows("videos", clip_id)})
            fix = f"use one of: {', '.join(channels)}" if channels else "use a clip_id of the clips table"
            raise InputError(self.folder, f"no {stream} video of {channel} in clip '{clip_id}'", fix)
        return inside(self.root, rows[0]["uri"], self.layout.table("videos"))

    def frames(self, clip_id: str, channel: str, indices: Sequence[int], stream: str = "rgb") -> NDArray[np.uint8]:
        """Decoded frames [N, H, W, 3] uint8 RGB at the given frame indices."""
        from dwm.scenes.clips import read_video_frames

        path = self.video_path(clip_id, channel, stream)
        if not path.is_file():
            raise InputError(path, "the video is missing", "restore the data folder next to versions/, or generate again")
        return read_video_frames(path, list(indices))


def resolve_version(path: Path) -> VersionLayout:
    """The version a path means: a version folder, or the LATEST of a dataset root."""
    if not path.is_dir():
        raise InputError(path, "no such folder", "give a dataset made by `roadreel generate`")
    if (path / "dataset.json").is_file():
        return VersionLayout(path.resolve())
    latest = RunLayout(path.resolve()).latest
    if not latest.is_file():
        raise InputError(path, "no published version here (no LATEST, no dataset.json)", "run `roadreel generate` to its end")
    version = RunLayout(path.resolve()).version(latest.read_text().strip())
    if not version.folder.is_dir():
        raise InputError(latest, f"it names {version.folder.name}, which does not exist", "run `roadreel generate` again")
    return version


def _checked_info(version: VersionLayout) -> dict[str, Any]:
    if not version.success.is_file():
        raise InputError(version.folder, "the version is incomplete (no _SUCCESS.json)", "run `roadreel generate` again")
    if read_json(version.success).get("dataset.json") != sha256_file(version.dataset_json):
        fix = "restore it, or delete the version and publish again"
        raise InputError(version.dataset_json, "changed after publication", fix)
    info = read_json(version.dataset_json)
    stored = str(info.get("schema_version", "?"))
    if stored.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        fix = f"read it with a roadreel of schema {stored.split('.')[0]}.x"
        raise InputError(version.folder, f"schema {stored} is not readable by this version ({SCHEMA_VERSION})", fix)
    return info
