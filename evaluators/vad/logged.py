"""A logged scene for VAD: images, CAN bus, annotations and map expansion of its key frames, read as they are asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.geometry import rotation_from_quaternion, yaw_from_rotation
from dwm.scenario.types import KEY_FRAME_HZ, AgentBoxes, LabelSource
from dwm.scenes.clips import read_images
from dwm.scenes.proving_ground.can_bus import BLACKLISTED_SCENES
from dwm.scenes.types import CAMERAS, Scene
from evaluators.boxes import cycles_in_racks
from evaluators.drive import Drive
from evaluators.map_truth import map_lines, open_map
from evaluators.vad.config import VadConfig
from evaluators.vad.footage import Stretch
from evaluators.vad.inputs import VadFrame, can_motion, key_frame

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedStretch(Stretch):
    """Key frames of a scene through each camera's own pose; a drive of the key frames alone."""

    scene: Scene
    motion: Array | None  # [K, 9] of the CAN bus

    def frame(self, k: int, config: VadConfig) -> VadFrame:
        """What the network reads of a key frame; InputError where an image is missing."""
        images = [read_images(self.scene, channel, [self.scene.key_indices(channel)[k]])[0] for channel in CAMERAS]
        motion = self.motion[k] if self.motion is not None and config.can_motion else None
        return key_frame(self.scene, k, np.stack(images), config, motion)


def logged_stretch(scene: Scene) -> LoggedStretch:
    """A whole scene; what neither LiDAR nor radar met, and cycles in racks, are no truth, as for the devkit. InputError without map expansion."""
    poses = scene.ego.at(scene.key_timestamps_us)
    agents, met = _agents(scene)
    nusc_map = open_map(scene.dataroot, scene.location)
    return LoggedStretch(
        drive=Drive(
            fps=KEY_FRAME_HZ, ego_to_global=poses, agents=agents, cameras=tuple(scene.cameras), lidar_to_ego=scene.lidar_to_ego
        ),
        frames=tuple(range(len(poses))), lines=tuple(map_lines(nusc_map, pose @ scene.lidar_to_ego) for pose in poses),
        seen=met.T, scene=scene, motion=_motion(scene),
    )  # fmt: skip


def _motion(scene: Scene) -> Array | None:
    """None where the dataroot has no CAN bus, or not of this scene, or the devkit reads none for its name."""
    path = Path(scene.dataroot) / "can_bus" / f"{scene.name}_pose.json"
    number = re.fullmatch(r"scene-(\d{4})", scene.name)
    if not path.is_file() or number is None or int(number[1]) in BLACKLISTED_SCENES:
        return None
    from nuscenes.can_bus.can_bus_api import NuScenesCanBus

    try:
        bus = NuScenesCanBus(str(scene.dataroot))
        messages = cast(list[dict[str, Any]], bus.get_messages(scene.name, "pose", print_warnings=False))
        return np.stack([can_motion(messages, int(time)) for time in scene.key_timestamps_us]) if messages else None
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(path, f"cannot read its messages ({error})", "unpack the CAN bus expansion again") from error


def _agents(scene: Scene) -> tuple[AgentBoxes, NDArray[np.bool_]]:
    """Annotations at the key frames, and which [A, K] of them count for the devkit; absent agents stand at zero."""
    shape = (len(scene.agents), len(scene.key_timestamps_us))
    out = AgentBoxes(
        instance_tokens=tuple(a.instance_token for a in scene.agents), detection_classes=tuple(a.detection_class for a in scene.agents),
        categories=tuple(a.category for a in scene.agents), sizes_wlh_m=np.array([a.size_wlh_m for a in scene.agents]).reshape(-1, 3),
        centers_m=np.zeros((*shape, 3)), yaws_rad=np.zeros(shape), velocities_mps=np.full((*shape, 2), np.nan),
        present=np.zeros(shape, bool), label_sources=np.full(shape, LabelSource.LOG, np.int8),
        num_lidar_pts=np.full(shape, -1, np.int32),
        attributes=tuple(
            tuple(dict(zip(a.timestamps_us.tolist(), a.attributes, strict=True)).get(int(t), "") for t in scene.key_timestamps_us)
            for a in scene.agents
        ),
    )  # fmt: skip
    met, racked = np.zeros(shape, bool), [cycles_in_racks(scene, int(time)) for time in scene.key_timestamps_us]
    for row, agent in enumerate(scene.agents):
        at = np.searchsorted(scene.key_timestamps_us, agent.timestamps_us)
        out.present[row, at], out.num_lidar_pts[row, at] = True, agent.num_lidar_pts
        free = np.array([agent.instance_token not in racked[k] for k in at], bool)
        met[row, at] = (agent.num_lidar_pts + agent.num_radar_pts > 0) & free
        out.centers_m[row, at], out.velocities_mps[row, at] = agent.centers_m, agent.velocities_mps
        out.yaws_rad[row, at] = yaw_from_rotation(rotation_from_quaternion(agent.rotations_wxyz))
    return out, met
