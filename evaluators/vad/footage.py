"""Stretches of video with labels and map, a key frame every 0.5 s: what VAD learns from, and is scored on.

Shapes: K key frames, V cameras in ring order, H W pixels, A agents.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dwm.conditioning.build import ScenarioConditioner
from dwm.scenes.proving_ground.map_expansion import write_map_expansion
from dwm.training.cache import rendered_drives
from evaluators.drive import Drive
from evaluators.map_truth import map_lines, open_map
from evaluators.mapping import MapLine
from evaluators.vad.config import VadConfig
from evaluators.vad.inputs import VadFrame, frame_of, path_motion
from evaluators.vad.targets import STEP_S, VadTargets, targets_of

Array = NDArray[np.float64]
Images = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch(ABC):
    """What is true at successive key frames, and what the network reads of them."""

    drive: Drive
    frames: tuple[int, ...]  # [K] of the drive
    lines: tuple[tuple[MapLine, ...], ...]  # [K]
    seen: NDArray[np.bool_]  # [K, A] agents that some picture shows
    given: int = 0  # leading key frames that no one generated

    def __len__(self) -> int:
        return len(self.frames)

    @abstractmethod
    def frame(self, k: int, config: VadConfig) -> VadFrame:
        """What the network reads of a key frame."""

    def targets(self, k: int, config: VadConfig) -> VadTargets:
        """What it should say."""
        return targets_of(self.drive, self.frames[k], config, self.lines[k], self.seen[k])


@dataclass(frozen=True, slots=True, kw_only=True)
class VadFootage(Stretch):
    """Video at hand; cameras are taken to fire at the time of the key frame, and the path stands in for a CAN bus."""

    images: Images  # [K, V, H, W, 3]

    def frame(self, k: int, config: VadConfig) -> VadFrame:
        """What the network reads of a key frame."""
        drive, frame = self.drive, self.frames[k]
        pose = drive.ego_to_global[frame]
        poses = np.repeat(pose[None], len(drive.cameras), axis=0)
        motion = path_motion(drive.ego_to_global, drive.fps, frame) if config.can_motion else None
        return frame_of(self.images[k], drive.cameras, poses, drive.lidar_to_ego, pose, config, motion)


def key_frames_of(fps: float, frames: Sequence[int]) -> list[int]:
    """Rows of frames that are 0.5 s apart from the first on, as long as no one is missing."""
    step, at = round(STEP_S * fps), {frame: row for row, frame in enumerate(frames)}
    rows, wanted = [], frames[0]
    while wanted in at:
        rows.append(at[wanted])
        wanted += step
    return rows


def seen_agents(conditioner: ScenarioConditioner, frames: Sequence[int]) -> NDArray[np.bool_]:
    """[K, A] agents that at least one ray of the layout cast meets first."""
    return np.stack([conditioner.seen_rays(frame) > 0 for frame in frames])


def footage_of_drives(folder: Path, progress: bool = True, part: int = 0, parts: int = 1) -> list[VadFootage]:
    """Drives of a folder (``dwm.training.cache.rendered_drives``) with the maps of their towns; InputError where there is none."""
    out, mapped = [], None
    with tempfile.TemporaryDirectory() as scratch:
        for each in rendered_drives(folder, progress, part, parts):
            drive, city = Drive.of(each.scenario), each.town.city
            if city is not mapped:  # towns share the names of locations
                write_map_expansion(city, Path(scratch) / "maps" / "expansion" / f"{city.location}.json")
                mapped = city
            rows = key_frames_of(drive.fps, each.frames)
            frames = tuple(each.frames[row] for row in rows)
            nusc_map = open_map(Path(scratch), city.location)
            lines = tuple(map_lines(nusc_map, drive.ego_to_global[f] @ drive.lidar_to_ego) for f in frames)
            seen = seen_agents(ScenarioConditioner(each.scenario), frames)
            out.append(VadFootage(drive=drive, frames=frames, images=each.images[rows], lines=lines, seen=seen))
    return out
