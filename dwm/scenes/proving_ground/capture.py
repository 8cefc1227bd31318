"""Writes one scene of a world: images, LiDAR sweeps, and the rows that describe them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dwm.geometry import quaternion_from_yaw
from dwm.scenes.proving_ground.annotations import (
    ANNOTATION_RANGE_M,
    FILL,
    attribute_name,
    count_points,
    hull_area_px,
    visibility_level,
)
from dwm.scenes.proving_ground.render import RenderAgent, RenderedViews
from dwm.scenes.proving_ground.rig import KEY_FRAME_EVERY, LIDAR_TO_EGO, TIME_OFFSETS_US, make_rig
from dwm.scenes.proving_ground.tables import TableWriter, pose_fields
from dwm.scenes.proving_ground.tokens import noise_seed
from dwm.scenes.proving_ground.weather import Weather
from dwm.scenes.proving_ground.world import World
from dwm.scenes.types import Array, Camera

JPEG_QUALITY = 95
Rows = list[dict[str, Any]]


class SceneRenderer(Protocol):
    """What a scene is written with; ``render.Renderer`` is the real one."""

    def render(
        self, cameras: Sequence[Camera], ego_to_global: Array, agents: Sequence[RenderAgent], weather: Weather, seed: int
    ) -> RenderedViews: ...

    def scan(
        self, lidar_to_global: Array, agents: Sequence[RenderAgent], weather: Weather, seed: int
    ) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneJob:
    """Everything that is fixed before the first pixel of a scene."""

    name: str
    token: str
    logfile: str
    world: World
    frame_times_us: NDArray[np.int64]  # [N] nominal 12 Hz times, every sixth a key frame
    size_hw: tuple[int, int]
    lidar: bool  # False writes the LIDAR_TOP rows without files; annotations then rest on the cameras alone


class SceneWriter:
    """State while one scene is written."""

    def __init__(
        self, job: SceneJob, tables: TableWriter, root: Path, renderer: SceneRenderer, tick: Callable[[], object]
    ) -> None:
        self.job, self.tables, self.root, self.renderer, self.tick = job, tables, root, renderer, tick
        self.sample_tokens = [tables.token("sample", job.name, k) for k in range(len(job.frame_times_us[::KEY_FRAME_EVERY]))]
        self.key_times_us = job.frame_times_us[::KEY_FRAME_EVERY]
        shape = (len(self.sample_tokens), len(job.world.specs))
        self._visible_px, self._hull_px = np.zeros(shape), np.zeros(shape)

    def write(self) -> None:
        """All rows and files of the scene, except its scene and log rows."""
        samples = [
            {"token": token, "timestamp": int(time), "scene_token": self.job.token}
            for token, time in zip(self.sample_tokens, self.key_times_us, strict=True)
        ]
        self.tables.add_chain("sample", samples)
        calibration = self._calibration("LIDAR_TOP", "lidar", LIDAR_TO_EGO, [])
        for camera in make_rig(self.job.size_hw):
            self._write_camera(camera)
        sweeps = [self._write_sweep(k, calibration) for k in range(len(self.sample_tokens))]
        self.tables.add_chain("sample_data", [row for row, _, _ in sweeps])
        self._write_annotations(sweeps, calibration)

    def _calibration(self, channel: str, modality: str, sensor_to_ego: Array, intrinsics: list) -> dict[str, Any]:
        sensor = self.tables.token("sensor", channel)
        if all(row["token"] != sensor for row in self.tables.rows["sensor"]):
            self.tables.add("sensor", sensor, channel=channel, modality=modality)
        token = self.tables.token("calibrated_sensor", self.job.name, channel)
        fields = {"sensor_token": sensor, **pose_fields(sensor_to_ego), "camera_intrinsic": intrinsics}
        return self.tables.add("calibrated_sensor", token, **fields)

    def _data_row(self, channel: str, index: int, sample: int, time_us: int, calibration: str, kind: str) -> dict[str, Any]:
        """A sample_data row, with its ego_pose row of the same token (as nuScenes does)."""
        is_key = index % KEY_FRAME_EVERY == 0
        token = self.tables.token("sample_data", self.job.name, channel, index)
        pose = self.job.world.ego.at(np.array([time_us]))[0]
        self.tables.add("ego_pose", token, timestamp=int(time_us), **pose_fields(pose))
        ending = "jpg" if kind == "jpg" else "pcd.bin"
        height, width = self.job.size_hw if kind == "jpg" else (0, 0)
        filename = f"{'samples' if is_key else 'sweeps'}/{channel}/{self.job.logfile}__{channel}__{time_us}.{ending}"
        return {
            "token": token, "sample_token": self.sample_tokens[sample], "ego_pose_token": token,
            "calibrated_sensor_token": calibration, "timestamp": int(time_us), "fileformat": kind, "is_key_frame": is_key,
            "height": height, "width": width, "filename": filename,
        }  # fmt: skip

    def _write_camera(self, camera: Camera) -> None:
        calibration = self._calibration(camera.channel, "camera", camera.camera_to_ego, camera.intrinsics.tolist())
        rows: Rows = []
        for n, nominal in enumerate(self.job.frame_times_us):
            time_us = int(nominal) + TIME_OFFSETS_US[camera.channel]
            # A sweep belongs to the key frame that follows it: the devkit interpolates boxes by that.
            sample = -(-n // KEY_FRAME_EVERY)
            rows.append(self._data_row(camera.channel, n, sample, time_us, calibration["token"], "jpg"))
            self._write_image(camera, time_us, self.root / rows[-1]["filename"], sample if n % KEY_FRAME_EVERY == 0 else None)
            self.tick()
        self.tables.add_chain("sample_data", rows)

    def _write_image(self, camera: Camera, time_us: int, path: Path, key: int | None) -> None:
        world = self.job.world
        ego = world.ego.at(np.array([time_us]))
        agents, indices = world.render_agents(time_us)
        views = self.renderer.render((camera,), ego, agents, world.weather, noise_seed(self.job.token, time_us))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(views.image[0]).save(path, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        if key is None:
            return
        seen = views.instance[0]
        self._visible_px[key, indices] += np.bincount(seen[seen >= 0], minlength=len(agents))
        pose = ego[0] @ camera.camera_to_ego
        self._hull_px[key, indices] += [hull_area_px(camera, pose, a.center_m, a.size_wlh_m, a.yaw_rad) for a in agents]

    def _write_sweep(self, k: int, calibration: dict[str, Any]) -> tuple[dict, dict, NDArray[np.float32]]:
        """The LIDAR_TOP row and ego pose of a key frame, and its points [N, 3] as stored."""
        time_us, world = int(self.key_times_us[k]), self.job.world
        row = self._data_row("LIDAR_TOP", k * KEY_FRAME_EVERY, k, time_us, calibration["token"], "pcd")
        pose = self.tables.rows["ego_pose"][-1]
        if not self.job.lidar:
            return row, pose, np.zeros((0, 3), np.float32)
        agents, _ = world.render_agents(time_us)
        lidar_to_global = world.ego.at(np.array([time_us]))[0] @ LIDAR_TO_EGO
        points = self.renderer.scan(lidar_to_global, agents, world.weather, noise_seed(self.job.token, time_us))
        path = self.root / row["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        points.astype(np.float32).tofile(path)
        return row, pose, points[:, :3].astype(np.float32)

    def _write_annotations(self, sweeps: list[tuple[dict, dict, NDArray[np.float32]]], calibration: dict[str, Any]) -> None:
        chains: dict[int, Rows] = {}
        for k, (_, pose, points) in enumerate(sweeps):
            state = self.job.world.state(int(self.key_times_us[k]))
            near = np.linalg.norm(state.centers_m[:, :2] - np.array(pose["translation"][:2]), axis=1) <= ANNOTATION_RANGE_M
            for j in np.flatnonzero(near):
                index = int(state.indices[j])
                row = self._annotation(k, index, state.centers_m[j], float(state.yaws_rad[j]), float(state.speeds_mps[j]))
                row["num_lidar_pts"] = count_points(points, row, pose, calibration)
                if row["num_lidar_pts"] >= 1 or int(row["visibility_token"]) > 1:
                    chains.setdefault(index, []).append(row)
        for index, rows in sorted(chains.items()):
            self.tables.add_chain("sample_annotation", rows)
            spec = self.job.world.specs[index]
            self.tables.add(
                "instance", spec.token, category_token=self.tables.token("category", spec.category), nbr_annotations=len(rows),
                first_annotation_token=rows[0]["token"], last_annotation_token=rows[-1]["token"],
            )  # fmt: skip

    def _annotation(self, k: int, index: int, center_m: Array, yaw_rad: float, speed_mps: float) -> dict[str, Any]:
        spec = self.job.world.specs[index]
        attribute = attribute_name(spec, speed_mps)
        amodal = FILL[spec.detection_class or "car"] * self._hull_px[k, index]
        return {
            "token": self.tables.token("sample_annotation", spec.token, k), "sample_token": self.sample_tokens[k],
            "instance_token": spec.token, "visibility_token": str(visibility_level(self._visible_px[k, index], amodal)),
            "attribute_tokens": [self.tables.token("attribute", attribute)] if attribute else [],
            "translation": np.round(center_m, 3).tolist(), "size": np.round(spec.size_wlh_m, 3).tolist(),
            "rotation": quaternion_from_yaw(yaw_rad).tolist(), "num_lidar_pts": 0, "num_radar_pts": 0,
        }  # fmt: skip
