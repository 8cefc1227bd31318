"""From network outputs to boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from evaluators.boxes import ALLOWED_ATTRIBUTES, UNKNOWN, Boxes, boxes_from
from evaluators.detector.model import DetectorConfig

# A second centre of the same class closer than this is the same object (metres), in DETECTION_CLASSES order.
SAME_OBJECT_M = np.array([1.7, 2.0, 2.5, 2.5, 2.0, 0.4, 0.8, 0.8, 0.3, 0.5])


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    """How many boxes to keep."""

    max_boxes: int = 300  # the nuScenes submission format allows 500
    min_score: float = 0.02


def decode(outputs: dict[str, Tensor], config: DetectorConfig, settings: DecodeConfig | None = None) -> list[Boxes]:
    """Boxes in the ego frame for each batch entry, best first."""
    settings = settings or DecodeConfig()
    scores = outputs["heatmap"].sigmoid()
    peaks = scores * (F.max_pool2d(scores, 3, stride=1, padding=1) == scores)
    top, index = peaks.flatten(1).topk(min(settings.max_boxes, peaks[0].numel()), dim=1)
    maps = {name: value.flatten(2).cpu().double().numpy() for name, value in outputs.items() if name != "heatmap"}
    return [
        _boxes(top[b].cpu().double().numpy(), index[b].cpu().numpy(), {k: v[b] for k, v in maps.items()}, config, settings)
        for b in range(len(top))
    ]


def _boxes(
    scores: NDArray[np.float64],
    index: NDArray[np.int64],
    maps: dict[str, NDArray[np.float64]],
    config: DetectorConfig,
    settings: DecodeConfig,
) -> Boxes:
    scores, index = scores[scores >= settings.min_score], index[scores >= settings.min_score]
    labels, cells = np.divmod(index, config.cells**2)
    at = {name: value[:, cells].T for name, value in maps.items()}
    corner = np.stack(np.divmod(cells, config.cells), axis=-1)
    xy = (corner + at["offset"]) * config.cell_m - config.half_range_m
    allowed = ALLOWED_ATTRIBUTES[labels]
    attributes = np.where(allowed, at["attribute"], -np.inf).argmax(1)
    boxes = boxes_from(
        labels,
        np.concatenate([xy, at["z"]], axis=1),
        # Clipped before the exponential: an untrained or corrupted network must not overflow.
        np.exp(np.clip(at["log_size"], -3.0, 4.0)),
        np.arctan2(at["yaw"][:, 0], at["yaw"][:, 1]),
        at["velocity"],
        np.where(allowed.any(1), attributes, UNKNOWN),
        scores,
    )
    return boxes.select(distinct(boxes))


def distinct(boxes: Boxes) -> NDArray[np.bool_]:
    """Mask [N] of boxes (best first) that no better box of their class overlaps in centre distance."""
    gaps = np.linalg.norm(boxes.centers_m[:, None, :2] - boxes.centers_m[None, :, :2], axis=-1)
    rivals = (boxes.labels[:, None] == boxes.labels[None]) & (gaps < SAME_OBJECT_M[boxes.labels][:, None])
    keep = np.ones(len(boxes), dtype=bool)
    for i in range(len(boxes)):
        if keep[i]:
            keep[i + 1 :] &= ~rivals[i, i + 1 :]
    return keep


def images_to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [..., H, W, 3] to float32 [..., 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, -3))).float() / 255
