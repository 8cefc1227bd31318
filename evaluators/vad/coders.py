"""Raw outputs to boxes, lines and a path, without suppression of duplicates, as VAD's published scores read them.

Shapes: B batch, N results of a sample, M modes, T steps, P points of a line. Everything in the LiDAR frame: x right,
y forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dwm.scenes.types import DETECTION_CLASSES
from evaluators.boxes import Boxes, attribute_index, boxes_from
from evaluators.mapping import MAP_CLASSES, MapLine
from evaluators.vad.config import OBJECT_CLASSES, VadConfig
from evaluators.vad.model import VadOutputs

Array = NDArray[np.float64]

MAX_OBJECTS, MAX_LINES = 100, 50
# Objects with a centre outside are dropped; low xyz, high xyz in metres.
CENTER_RANGE_M = (-20.0, -35.0, -10.0, 20.0, 35.0, 10.0)
_DETECTION_LABELS = torch.tensor([DETECTION_CLASSES.index(name) for name in OBJECT_CLASSES])
# The network says no attributes. The public code gives them by class: to what moves faster than this, to pedestrians and buses that do not,
# and, as mmdet3d has it, to the rest.
MOVES_MPS = 0.2
_VEHICLES, _CYCLES = ("car", "truck", "construction_vehicle", "bus", "trailer"), ("motorcycle", "bicycle")
_DEFAULTS = {
    **dict.fromkeys(_VEHICLES, "vehicle.parked"), **dict.fromkeys(_CYCLES, "cycle.without_rider"), "bus": "vehicle.moving",
    "pedestrian": "pedestrian.moving",
}  # fmt: skip
_MOVING = _DEFAULTS | dict.fromkeys(_VEHICLES, "vehicle.moving") | dict.fromkeys(_CYCLES, "cycle.with_rider")
_STILL = _DEFAULTS | {"pedestrian": "pedestrian.standing", "bus": "vehicle.stopped"}
_ATTRIBUTES = np.array([[attribute_index(by.get(name, "")) for name in DETECTION_CLASSES] for by in (_STILL, _MOVING)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """Detected objects of one sample, best score first, and where each may go."""

    boxes: Boxes  # labels of ``DETECTION_CLASSES``
    futures_m: Array  # [N, M, T, 2] from the box's centre, after every 0.5 s


def decode_objects(outputs: VadOutputs) -> list[Objects]:
    """Objects of every sample: the best 100 pairs of query and class, so that a query may appear as several classes.

    The last decoder layer counts. Boxes have VAD's sizes, (width, length, height), and the yaw of nuScenes: that of the
    code, an mmdet3d 0.17 angle r, is turned to -r - pi/2.
    """
    return [
        _objects(logits, codes, steps)
        for logits, codes, steps in zip(
            outputs.class_logits_LBOK[-1], outputs.boxes_LBO10[-1], outputs.steps_BOMT2, strict=True
        )
    ]


def _objects(logits_OK: Tensor, codes_O10: Tensor, steps_OMT2: Tensor) -> Objects:
    scores, queries, classes = _best(logits_OK, MAX_OBJECTS)
    code = codes_O10[queries]
    centers = code[:, [0, 1, 4]]
    low, high = code.new_tensor(CENTER_RANGE_M[:3]), code.new_tensor(CENTER_RANGE_M[3:])
    inside = ((centers >= low) & (centers <= high)).all(-1)
    code, queries = code[inside], queries[inside]
    labels, velocities = _DETECTION_LABELS.to(classes.device)[classes[inside]].cpu().numpy(), _numbers(code[:, 8:])
    boxes = boxes_from(
        labels,
        _numbers(centers[inside]),
        _numbers(code[:, [2, 3, 5]].exp()),
        _numbers(-torch.atan2(code[:, 6], code[:, 7]) - torch.pi / 2),
        velocities_mps=velocities,
        attributes=_ATTRIBUTES[(np.linalg.norm(velocities, axis=1) > MOVES_MPS).astype(np.int64), labels],
        scores=_numbers(scores[inside]),
    )
    return Objects(boxes=boxes, futures_m=_numbers(steps_OMT2[queries].cumsum(-2)))


def decode_map(outputs: VadOutputs, config: VadConfig) -> list[tuple[MapLine, ...]]:
    """Lines of every sample, best score first: the best 50 pairs of instance and class, whatever their score.

    The public coder also drops lines beyond 20 m by 35 m; points are shares of a smaller range, so none ever is.
    """
    low, high = torch.tensor(config.range_m[:2]), torch.tensor(config.range_m[3:5])
    found = []
    for logits_IJ, points_IP2 in zip(outputs.map_class_logits_LBIJ[-1], outputs.map_points_LBIP2[-1], strict=True):
        scores, instances, classes = _best(logits_IJ, MAX_LINES)
        points = low + points_IP2[instances].detach().cpu() * (high - low)
        rows = zip(classes.tolist(), scores.tolist(), _numbers(points), strict=True)
        found.append(tuple(MapLine(class_name=MAP_CLASSES[k], points_m=line, score=score) for k, score, line in rows))
    return found


def decode_plan(outputs: VadOutputs, commands: Sequence[int]) -> Array:
    """The ego's path [B, T, 2] from where it is, after every 0.5 s, for a command of each sample, index of COMMANDS."""
    plans = outputs.plan_BUT2[torch.arange(len(commands)), torch.tensor(commands)]
    return _numbers(plans.cumsum(-2))


def _best(logits_QK: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, queries and classes of the best pairs, best first."""
    classes = logits_QK.shape[-1]
    scores, index = logits_QK.sigmoid().flatten().topk(min(count, logits_QK.numel()))
    return scores, index // classes, index % classes


def _numbers(values: Tensor) -> NDArray:
    return values.detach().cpu().double().numpy()
