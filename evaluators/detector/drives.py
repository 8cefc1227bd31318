"""Training key frames for the detector straight from rendered proving-ground drives (``dwm.training.cache``).

A box counts as visible by the rays of the layout cast that meet it first, which stands in for LiDAR points.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dwm.conditioning.build import ScenarioConditioner
from dwm.scenario.types import Scenario
from dwm.training.cache import RenderedDrive, rendered_drives
from evaluators.boxes import Boxes, boxes_of_scenario
from evaluators.detector.samples import KeyFrames, read_cache, write_cache

_MIN_STEP = 6  # frames between samples of one drive: half a second


def key_frames_of_drives(folder: Path, cache: Path, progress: bool = True) -> KeyFrames:
    """Frames of every drive in ``folder``, half a second apart at least; made once, then memory mapped from ``cache``."""
    if not (cache / "facts.npz").is_file():
        parts = [_of_drive(each) for each in rendered_drives(folder, progress)]
        cache.mkdir(parents=True, exist_ok=True)
        write_cache(cache, parts)
    return read_cache(cache)


def _of_drive(each: RenderedDrive) -> KeyFrames:
    scenario, rows = each.scenario, _spread(each.frames)
    frames = [each.frames[r] for r in rows]
    conditioner = ScenarioConditioner(scenario)
    n = len(frames)
    return KeyFrames(
        images=each.images[rows],
        intrinsics=np.repeat(np.stack([c.intrinsics for c in conditioner.cameras])[None], n, axis=0),
        camera_to_ego=np.repeat(np.stack([c.camera_to_ego for c in conditioner.cameras])[None], n, axis=0),
        ego_to_global=scenario.ego_to_global[frames],
        previous=np.arange(n),  # neighbours are not evenly spaced: no past
        boxes=tuple(_visible_boxes(scenario, conditioner, f) for f in frames),
        tokens=tuple(f"{each.name}-{f}" for f in frames),
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
