"""Reads the tracks of every scene of a dataroot in one pass over its tables, without maps, images or the devkit.

Rows are dropped while the JSON is parsed, so that all of nuScenes (2.6 million images and poses) needs little memory.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from nuscenes.eval.detection.utils import category_to_detection_name

from dwm.errors import InputError
from dwm.geometry import rotation_from_quaternion, yaw_from_rotation
from dwm.scenes.dataroot import check_filename, check_tables
from dwm.scenes.tracks import Annotations, SceneTracks, label_of
from dwm.scenes.types import CAMERAS

EGO_CHANNELS = ("LIDAR_TOP", "CAM_FRONT")  # whose poses are the ego track: 32 a second in nuScenes
Row = dict[str, Any]


def read_tracks(dataroot: Path, version: str, names: Collection[str] | None = None) -> list[SceneTracks]:
    """The tracks of the named scenes, or of all, in the order of the scene table.

    Raises InputError for missing tables, broken rows, and scenes without key frames, poses or images' names.
    """
    folder = check_tables(Path(dataroot), version)
    try:
        return _Tables(Path(dataroot), folder, names).scenes()
    except (KeyError, TypeError, IndexError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        problem = f"broken tables ({type(error).__name__}: {error})"
        raise InputError(folder, problem, "a field or token is missing: restore the tables") from error


class _Tables:
    """One pass: small tables first, then the large ones row by row."""

    def __init__(self, dataroot: Path, folder: Path, names: Collection[str] | None) -> None:
        self.dataroot, self.folder = dataroot, folder
        self.rows = [row for row in self._all("scene") if names is None or row["name"] in names]
        self.locations = {row["token"]: row["location"] for row in self._all("log")}
        index = {row["token"]: i for i, row in enumerate(self.rows)}
        self.samples: list[list[tuple[int, str]]] = [[] for _ in self.rows]
        for row in self._all("sample"):
            if row["scene_token"] in index:
                self.samples[index[row["scene_token"]]].append((int(row["timestamp"]), row["token"]))
        self.place: dict[str, tuple[int, int]] = {}  # sample token -> scene, key frame
        for scene, keys in enumerate(self.samples):
            keys.sort()
            self.place |= {token: (scene, key) for key, (_, token) in enumerate(keys)}

    def scenes(self) -> list[SceneTracks]:
        poses, images = self._poses_and_images()
        annotations = self._annotations()
        return [self._scene(i, poses[i], images[i], annotations[i]) for i in range(len(self.rows))]

    def _scene(self, i: int, poses: Any, images: Any, annotations: Annotations) -> SceneTracks:
        row, where = self.rows[i], self.folder
        if not self.samples[i]:
            raise InputError(where, f"scene {row['name']} has zero key frames", "choose another scene")
        if not poses:
            raise InputError(
                where, f"scene {row['name']} has no rows of {EGO_CHANNELS[0]} or {EGO_CHANNELS[1]}", "restore sample_data.json"
            )
        times = sorted(poses)
        track = np.array([poses[t] for t in times], np.float64)
        if not (np.isfinite(track).all() and np.isfinite(annotations.xy_m).all()):
            raise ValueError(f"scene {row['name']} has a position that is no number")
        return SceneTracks(
            name=row["name"], token=row["token"], description=row["description"], location=self.locations[row["log_token"]],
            key_timestamps_us=np.array([t for t, _ in self.samples[i]], np.int64),
            key_images=tuple(tuple(images[key][c] for c in CAMERAS if c in images[key]) for key in range(len(images))),
            ego_timestamps_us=np.array(times, np.int64), ego_xy_m=track[:, :2],
            ego_yaw_rad=yaw_from_rotation(rotation_from_quaternion(track[:, 2:])), annotations=annotations,
        )  # fmt: skip

    def _poses_and_images(self) -> tuple[list[dict[int, list[float]]], list[list[dict[str, Path]]]]:
        """Per scene: time -> x, y and quaternion; per key frame: channel -> image."""
        channels = {row["token"]: row["channel"] for row in self._all("sensor")}
        channel_of = {row["token"]: channels[row["sensor_token"]] for row in self._all("calibrated_sensor")}
        wanted: dict[str, tuple[int, int]] = {}  # pose token -> scene, time
        images: list[list[dict[str, Path]]] = [[{} for _ in keys] for keys in self.samples]

        def keep(row: Row) -> None:
            channel, place = channel_of[row["calibrated_sensor_token"]], self.place.get(row["sample_token"])
            if place is None:
                return
            if channel in EGO_CHANNELS:
                wanted[row["ego_pose_token"]] = (place[0], int(row["timestamp"]))
            if channel in CAMERAS and row["is_key_frame"]:
                path = check_filename(self.dataroot, "sample_data", row["token"], row["filename"])
                images[place[0]][place[1]][channel] = path

        self._each("sample_data", keep)
        poses: list[dict[int, list[float]]] = [{} for _ in self.rows]

        def pose(row: Row) -> None:
            if (place := wanted.get(row["token"])) is not None:
                poses[place[0]][place[1]] = [*row["translation"][:2], *row["rotation"]]

        self._each("ego_pose", pose)
        return poses, images

    def _annotations(self) -> list[Annotations]:
        names = {row["token"]: row["name"] for row in self._all("category")}
        categories = {row["token"]: names[row["category_token"]] for row in self._all("instance")}
        ids = {token: i for i, token in enumerate(categories)}
        whole, parts = array("q"), array("d")  # scene, key frame, instance; x, y, w, l, quaternion

        def keep(row: Row) -> None:
            if (place := self.place.get(row["sample_token"])) is not None:
                whole.extend((*place, ids[row["instance_token"]]))
                parts.extend((*row["translation"][:2], *row["size"][:2], *row["rotation"]))

        self._each("sample_annotation", keep)
        numbers, values = np.array(whole, np.int64).reshape(-1, 3), np.array(parts, np.float64).reshape(-1, 8)
        numbers, values = (table[np.lexsort((numbers[:, 1], numbers[:, 2], numbers[:, 0]))] for table in (numbers, values))
        tokens = list(categories)
        bounds = np.searchsorted(numbers[:, 0], np.arange(len(self.rows) + 1))
        return [
            _table(numbers[a:b], values[a:b], [categories[tokens[i]] for i in numbers[a:b, 2]]) for a, b in pairwise(bounds)
        ]

    def _all(self, table: str) -> list[Row]:
        kept: list[Row] = []
        self._each(table, kept.append)
        return kept

    def _each(self, table: str, keep: Callable[[Row], Any]) -> None:
        """Calls ``keep`` with every row; none is held here."""
        path = self.folder / f"{table}.json"

        def visit(row: Row) -> None:
            # Records within a row (there are none in nuScenes) would be visited first and have no token.
            if "token" in row:
                keep(row)

        try:
            json.loads(path.read_text(encoding="utf-8"), object_hook=visit)
        except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
            raise InputError(path, f"not valid JSON ({error})", "restore the file from the archive") from error


def _table(numbers: np.ndarray, values: np.ndarray, category: list[str]) -> Annotations:
    return Annotations(
        key_index=numbers[:, 1], instance=numbers[:, 2], category=tuple(category), xy_m=values[:, :2],
        label=np.array([label_of(category_to_detection_name(name)) for name in category], np.int64), size_wl_m=values[:, 2:4],
        yaw_rad=yaw_from_rotation(rotation_from_quaternion(values[:, 4:])),
    )  # fmt: skip
