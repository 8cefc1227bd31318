"""Reading scenes from a nuScenes dataroot, real or of the proving ground.

Everything is checked here, once: after ``read_scene`` returns, only image and LiDAR files may still be absent
(``missing_images`` lists them).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name

from dwm.errors import InputError
from dwm.geometry import rotation_from_quaternion, transform
from dwm.scenes.dataroot import check_filename, open_dataroot
from dwm.scenes.raster_map import read_mask_map
from dwm.scenes.types import CAMERAS, AgentTrack, Camera, CameraFrame, EgoTrack, LidarSweep, Scene, SceneMap

MAP_MARGIN_M = 150.0
LIDAR = "LIDAR_TOP"
Record = dict[str, Any]


def list_scenes(dataroot: Path, version: str) -> list[str]:
    """Scene names in the order of the scene table."""
    return [row["name"] for row in open_dataroot(dataroot, version).scene]


def read_scene(dataroot: Path, version: str, scene_name: str, map_margin_m: float = MAP_MARGIN_M) -> Scene:
    """One scene with its ego track, rig, images, agents, and the map within ``map_margin_m`` of the ego track.

    Raises:
        InputError: dataroot, version, table, scene or camera missing; broken rows; file names that leave the dataroot.
    """
    dataroot = Path(dataroot)
    nusc = open_dataroot(dataroot, version)
    row = _scene_row(nusc, dataroot, scene_name)
    try:
        return _read(nusc, dataroot, row, map_margin_m)
    except InputError:
        raise
    except (KeyError, TypeError, IndexError, ValueError) as error:
        problem = f"scene {scene_name}: broken tables ({type(error).__name__}: {error})"
        raise InputError(dataroot / version, problem, "a field or token is missing: restore the tables") from error


def missing_images(scene: Scene) -> dict[str, list[int]]:
    """Per channel, indices into ``scene.frames[channel]`` of images whose file does not exist."""
    return {channel: [i for i, f in enumerate(frames) if not f.path.is_file()] for channel, frames in scene.frames.items()}


def source_notes(scene: Scene) -> tuple[str, ...]:
    """What a scene lacks on disk, in words: map vectors, images, LiDAR. Nothing listed here stops a clip."""
    notes = list(scene.map.notes)
    lacking, images = sum(map(len, missing_images(scene).values())), sum(map(len, scene.frames.values()))
    if lacking:
        notes.append(f"{lacking} of {images} logged images are missing")
    lidar = sum(not path.is_file() for path in scene.lidar_paths)
    if lidar:
        notes.append(f"{lidar} of {len(scene.lidar_paths)} LiDAR files are missing")
    return tuple(notes)


def nearest_frames(scene: Scene, timestamps_us: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Per channel, the index [M] of the frame closest in time to each timestamp (the earlier of two equally close)."""
    asked = np.asarray(timestamps_us, np.int64)
    out = {}
    for channel, frames in scene.frames.items():
        own = np.array([f.timestamp_us for f in frames], np.int64)
        right = np.clip(np.searchsorted(own, asked), 1, max(len(own) - 1, 1))
        left = right - 1
        right = np.minimum(right, len(own) - 1)
        out[channel] = np.where(np.abs(own[right] - asked) < np.abs(asked - own[left]), right, left)
    return out


def _scene_row(nusc: NuScenes, dataroot: Path, name: str) -> Record:
    for row in nusc.scene:
        if row["name"] == name:
            return row
    names = [row["name"] for row in nusc.scene]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    raise InputError(dataroot / nusc.version, f"no scene '{name}'", f"scenes present: {', '.join(names[:5]) or 'none'}{more}")


def _read(nusc: NuScenes, dataroot: Path, row: Record, margin_m: float) -> Scene:
    samples = _samples(nusc, dataroot, row)
    chains = {channel: _chain(nusc, dataroot, row, samples, channel) for channel in (*CAMERAS, LIDAR)}
    log = nusc.get("log", row["log_token"])
    ego = _ego_track(nusc, [r for chain in chains.values() for r in chain])
    lidar = nusc.get("calibrated_sensor", chains[LIDAR][0]["calibrated_sensor_token"])
    key_lidar = [nusc.get("sample_data", s["data"][LIDAR])["filename"] for s in samples]
    return Scene(
        dataroot=dataroot, version=nusc.version, token=row["token"], name=row["name"], description=row["description"],
        location=log["location"], date_captured=log["date_captured"],
        key_timestamps_us=np.array([s["timestamp"] for s in samples], np.int64),
        sample_tokens=tuple(s["token"] for s in samples),
        cameras=tuple(_camera(nusc, channel, chains[channel][0]) for channel in CAMERAS),
        frames={channel: tuple(_frame(nusc, dataroot, channel, r) for r in chains[channel]) for channel in CAMERAS},
        lidar_paths=tuple(dataroot / name for name in key_lidar),
        lidar_to_ego=_pose(lidar), ego=ego, agents=_agents(nusc, samples),
        map=_map(nusc, dataroot, log, ego, margin_m),
        lidar_sweeps=tuple(
            LidarSweep(path=dataroot / r["filename"], timestamp_us=int(r["timestamp"]), is_key_frame=bool(r["is_key_frame"]))
            for r in chains[LIDAR]
        ),
    )  # fmt: skip


def _samples(nusc: NuScenes, dataroot: Path, row: Record) -> list[Record]:
    samples, token, seen, where = [], row["first_sample_token"], set(), dataroot / nusc.version
    while token:
        if token in seen:
            raise InputError(where, f"scene {row['name']}: the chain of samples is a loop", "restore sample.json")
        seen.add(token)
        samples.append(nusc.get("sample", token))
        token = samples[-1]["next"]
    if not samples:
        raise InputError(where, f"scene {row['name']} has zero key frames", "choose another scene")
    if any(b["timestamp"] <= a["timestamp"] for a, b in pairwise(samples)):
        raise InputError(where, f"scene {row['name']}: key frames are not in order of time", "restore sample.json")
    return samples


def _chain(nusc: NuScenes, dataroot: Path, row: Record, samples: list[Record], channel: str) -> list[Record]:
    """All sample_data rows of a channel, key frames and sweeps, in order of time; file names checked."""
    keys = [s["data"].get(channel) for s in samples]
    if None in keys:
        problem = f"scene {row['name']}: key frame {keys.index(None)} has no {channel} row"
        raise InputError(dataroot / nusc.version, problem, "Roadreel needs all six cameras and LIDAR_TOP in sample_data.json")
    own, rows = {s["token"] for s in samples}, {}
    for direction in ("prev", "next"):
        token = keys[0]
        while token and (token not in rows or token == keys[0]):
            record = nusc.get("sample_data", token)
            if record["sample_token"] not in own:
                break
            check_filename(dataroot, "sample_data", token, record["filename"])
            rows[token] = record
            token = record[direction]
    missing = [k for k in keys if k not in rows]
    if missing:
        problem = f"scene {row['name']}: the prev/next chain of {channel} does not reach key frame {missing[0]}"
        raise InputError(dataroot / nusc.version, problem, "restore sample_data.json")
    return sorted(rows.values(), key=lambda r: r["timestamp"])


def _pose(record: Record) -> NDArray[np.float64]:
    return transform(_numbers(record, "translation", (3,)), rotation_from_quaternion(_quaternion(record)))


def _quaternion(record: Record) -> NDArray[np.float64]:
    values = _numbers(record, "rotation", (4,))
    if not values.any():
        raise ValueError(f"rotation of {record['token']} is zero")
    return values


def _size_wlh_m(annotation: Record) -> NDArray[np.float64]:
    values = _numbers(annotation, "size", (3,))
    if not (values > 0).all():
        raise ValueError(f"size of {annotation['token']} is {annotation['size']}")
    return values


def _numbers(record: Record, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A field of finite numbers in the given shape; ValueError names the row otherwise."""
    values = np.array(record[name], np.float64)
    if values.shape != shape or not np.isfinite(values).all():
        raise ValueError(f"{name} of {record['token']} is {record[name]}")
    return values


def _camera(nusc: NuScenes, channel: str, record: Record) -> Camera:
    calibration = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
    intrinsics = _numbers(calibration, "camera_intrinsic", (3, 3))
    return Camera(
        channel=channel, intrinsics=intrinsics, camera_to_ego=_pose(calibration),
        width_px=int(record["width"]), height_px=int(record["height"]),
    )  # fmt: skip


def _frame(nusc: NuScenes, dataroot: Path, channel: str, record: Record) -> CameraFrame:
    return CameraFrame(
        channel=channel, path=dataroot / record["filename"], timestamp_us=int(record["timestamp"]),
        ego_to_global=_pose(nusc.get("ego_pose", record["ego_pose_token"])), sample_data_token=record["token"],
        sample_token=record["sample_token"], is_key_frame=bool(record["is_key_frame"]),
    )  # fmt: skip


def _ego_track(nusc: NuScenes, records: list[Record]) -> EgoTrack:
    # Several sensors may fire in the same microsecond: one pose per time.
    poses = {int(r["timestamp"]): nusc.get("ego_pose", r["ego_pose_token"]) for r in records}
    times = sorted(poses)
    return EgoTrack(timestamps_us=np.array(times, np.int64), ego_to_global=np.stack([_pose(poses[t]) for t in times]))


def _agents(nusc: NuScenes, samples: list[Record]) -> tuple[AgentTrack, ...]:
    tracks: dict[str, list[tuple[int, Record]]] = {}
    for sample in samples:
        for token in sample["anns"]:
            annotation = nusc.get("sample_annotation", token)
            tracks.setdefault(annotation["instance_token"], []).append((sample["timestamp"], annotation))
    return tuple(_agent(nusc, token, rows) for token, rows in tracks.items())


def _agent(nusc: NuScenes, instance_token: str, rows: list[tuple[int, Record]]) -> AgentTrack:
    annotations = [a for _, a in rows]
    names = [[nusc.get("attribute", t)["name"] for t in a["attribute_tokens"]] for a in annotations]
    category = annotations[0]["category_name"]
    return AgentTrack(
        instance_token=instance_token, category=category, detection_class=category_to_detection_name(category),
        size_wlh_m=np.median([_size_wlh_m(a) for a in annotations], axis=0),
        timestamps_us=np.array([t for t, _ in rows], np.int64),
        centers_m=np.stack([_numbers(a, "translation", (3,)) for a in annotations]),
        rotations_wxyz=np.stack([_quaternion(a) for a in annotations]),
        velocities_mps=np.stack([nusc.box_velocity(a["token"])[:2] for a in annotations]),
        attributes=tuple(n[0] if n else "" for n in names),
        num_lidar_pts=np.array([a["num_lidar_pts"] for a in annotations], np.int64),
        num_radar_pts=np.array([a["num_radar_pts"] for a in annotations], np.int64),
        visibility=np.array([int(a["visibility_token"] or 4) for a in annotations], np.int64),
        annotation_tokens=tuple(a["token"] for a in annotations),
    )  # fmt: skip


def _map(nusc: NuScenes, dataroot: Path, log: Record, ego: EgoTrack, margin_m: float) -> SceneMap:
    from dwm.scenes.map_expansion_reader import read_map_expansion

    xy = ego.ego_to_global[:, :2, 3]
    low, high = xy.min(axis=0) - margin_m, xy.max(axis=0) + margin_m
    region = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    expansion = check_filename(dataroot, "log", log["token"], f"maps/expansion/{log['location']}.json")
    if expansion.is_file():
        return read_map_expansion(expansion, region)
    record = nusc.get("map", log["map_token"])
    return read_mask_map(dataroot / record["filename"], region)
