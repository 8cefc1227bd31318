"""A log as it was driven, as a scenario: a frame at the time of every image of the front camera between the first and last key frame."""

from __future__ import annotations

import numpy as np

from dwm.errors import InputError
from dwm.scenario.agents import finished
from dwm.scenario.logged import log_boxes
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from dwm.scenes.nuscenes import nearest_frames
from dwm.scenes.prompts import scene_prompt
from dwm.scenes.types import CAMERAS, Scene

CAMERA_HZ = 12  # nuScenes triggers its cameras by a 20 Hz LiDAR: 12 images a second, 50 or 100 ms apart


def as_logged(scene: Scene) -> Scenario:
    """The whole log; ego and boxes are interpolated to the images' own times. InputError for a log of fewer than two frames."""
    own = np.array([f.timestamp_us for f in scene.frames[CAMERAS[0]]], np.int64)
    keys = scene.key_timestamps_us
    # The front camera fires a little before or after the key frame that it belongs to.
    nearest = nearest_frames(scene, keys[[0, -1]])[CAMERAS[0]] if len(own) else np.zeros(2, np.int64)
    first, last = int(nearest[0]), int(nearest[1])
    times = own[first : last + 1]
    if len(times) < 2:
        raise InputError(scene.name, f"{len(times)} images of {CAMERAS[0]} between its key frames", "choose another scene")
    ego = scene.ego.at(times)
    is_key_frame = np.zeros(len(times), dtype=bool)
    is_key_frame[np.abs(times[:, None] - keys).argmin(0)] = True
    return Scenario(
        scene=scene, perturbation=BASELINE, seed=0, fps=float(CAMERA_HZ), timestamps_us=times, ego_to_global=ego,
        baseline_ego_to_global=ego, is_key_frame=is_key_frame, log_end_index=len(times), prompt=scene_prompt(scene),
        agents=finished(scene, log_boxes(scene, times, len(times)), (), 1e6 / np.diff(times)),
    )  # fmt: skip
