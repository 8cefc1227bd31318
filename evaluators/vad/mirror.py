"""The world in a mirror, left for right: the same scene once more, as the network would see it.

Ego and LiDAR frames are mirrored about their forward axis.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dwm.scenes.types import other_side
from evaluators.vad.config import CAMERA_ORDER, COMMANDS
from evaluators.vad.inputs import VadFrame, can_bus_vector
from evaluators.vad.targets import VadTargets

_OTHER_SIDE = other_side(CAMERA_ORDER)
_MIRRORED_MOTION = np.array(
    [1.0, -1, 1, -1, 1, -1, 1, -1, 1]
)  # leftward speeds change their sign, and turns but those about the left axis


def mirrored_frame(frame: VadFrame, width_px: int, ego_to_global: NDArray[np.float64]) -> VadFrame:
    """Images flipped over their own ``width_px``, padding left where it is; left cameras for right ones."""
    images = frame.images_V3hw.clone()
    images[..., :width_px] = images[..., :width_px].flip(-1)
    flip_u, flip_x = torch.eye(4), torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    flip_u[0, 0], flip_u[0, 2] = -1.0, width_px - 1.0
    mirror: NDArray[np.float64] = np.diag([1.0, -1.0, 1.0, 1.0])
    return VadFrame(
        images_V3hw=images[_OTHER_SIDE], lidar_to_image_V44=(flip_u @ frame.lidar_to_image_V44 @ flip_x)[_OTHER_SIDE],
        can_bus_18=can_bus_vector(mirror @ ego_to_global @ mirror, frame.can_bus_18[7:16] * _MIRRORED_MOTION),
    )  # fmt: skip


def mirrored_targets(targets: VadTargets) -> VadTargets:
    """x changes its sign, and so does the sine of the code's angle, -yaw - pi/2: it is minus the heading's x."""
    sign = torch.tensor([-1.0, 1.0])
    boxes = targets.boxes_N10 * torch.tensor([-1.0, 1, 1, 1, 1, 1, -1, 1, -1, 1])
    points = targets.map_points_IGP2.clone()
    points[..., 0] = 1 - points[..., 0]
    command = COMMANDS[targets.command]
    other = {"left": "right", "right": "left"}.get(command, command)
    return VadTargets(
        labels_N=targets.labels_N, boxes_N10=boxes, steps_NT2=targets.steps_NT2 * sign, steps_known_NT=targets.steps_known_NT,
        map_labels_I=targets.map_labels_I, map_points_IGP2=points, plan_T2=targets.plan_T2 * sign,
        plan_known_T=targets.plan_known_T, command=COMMANDS.index(other),
    )  # fmt: skip
