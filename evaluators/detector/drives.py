"""Training key frames for the detector straight from rendered proving-ground drives (``dwm.training.cache``).

A box counts as visible by the rays of the layout cast that meet it first, which stands in for LiDAR points.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dwm.conditioning.build import ScenarioConditioner
from dwm.errors import InputError
from dwm.scenario.types import Scenario
from dwm.training.sequences import Town, drive, open_town
from evaluators.boxes import Boxes, boxes_of_scenario
from evaluators.detector.samples import KeyFrames, read_cache, write_cache

_MIN_STEP = 6  # frames between samples of one drive: half a second


def key_frames_of_drives(folder: Path, cache: Path, progress: bool = True) -> KeyFrames:
    """Frames of every drive in ``folder``, half a second apart at least; made once, then memory mapped from ``cache``."""
    if not (cache / "facts.npz").is_file():
        paths = sorted(folder.glob("drive-*.npy"))
        if not paths:
            raise InputError(folder, "no rendered drives", "run the training target 'drives' first")
        cache.mkdir(parents=True, exist_ok=True)
        parts, town = [], None
        for path in tqdm(paths, desc="collecting detector frames", disable=None if progress else True):
            record = json.loads(path.with_suffix(".json").read_text())
            if town is None or town.city.seed != record["town"]:
                town = open_town(record["town"], render=False)
            parts.append(_of_drive(path, record, town))
        write_cache(cache, parts)
    return read_cache(cache)


def _of_drive(path: Path, record: dict[str, Any], town: Town) -> KeyFrames:
    scenario, _ = drive(town, record["drive"])
    rows = _spread(record["frames"])
    frames = [record["frames"][r] for r in rows]
    images = np.load(path, mmap_mode="r")
    images = images.reshape(len(record["frames"]), -1, *images.shape[1:])[rows]
    conditioner = ScenarioConditioner(scenario)
    n = len(frames)
    return KeyFrames(
        images=images,
        intrinsics=np.repeat(np.stack([c.intrinsics for c in conditioner.cameras])[None], n, axis=0),
        camera_to_ego=np.repeat(np.stack([c.camera_to_ego for c in conditioner.cameras])[None], n, axis=0),
        ego_to_global=scenario.ego_to_global[frames],
        previous=np.arange(n),  # neighbours are not evenly spaced: no past
        boxes=tuple(_visible_boxes(scenario, conditioner, f) for f in frames),
        tokens=tuple(f"{path.stem}-{f}" for f in frames),
    )


def _visible_boxes(scenario: Scenario, conditioner: ScenarioConditioner, frame: int) -> Boxes:
    """The boxes of a frame; the layout's rays stand for LiDAR points."""
    known = np.array([c is not None for c in scenario.agents.detection_classes])
    rows = np.flatnonzero(scenario.agents.present[:, frame] & known)
    return replace(boxes_of_scenario(scenario, frame), num_pts=conditioner.seen_rays(frame)[rows])


def _spread(frames: list[int]) -> list[int]:
    """Rows of frames at least ``_MIN_STEP`` apart, first come first kept."""
    kept: list[int] = []
    for row, frame in enumerate(frames):
        if not kept or frame - frames[kept[-1]] >= _MIN_STEP:
            kept.append(row)
    return kept
