"""What helps the network learn from few drives, and is not part of its weights.

A head that says from each cell of the grid alone what stands on it gives the encoder a signal at every cell (after Yin et al.,
CenterPoint, CVPR 2021); further groups of object queries give the decoder more matches a frame (Chen et al., Group DETR, ICCV 2023).

Shapes: B batch, Q cells of the grid, D width, O object queries, N objects, I map lines, C classes of objects, then of lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.mapping import MAP_CLASSES
from evaluators.vad.bev_geometry import cell_centers
from evaluators.vad.config import OBJECT_CLASSES, VadConfig
from evaluators.vad.losses import VadLossWeights, focal_loss, object_losses
from evaluators.vad.model import BOX_CODE, VAD
from evaluators.vad.targets import VadTargets

_FINER = 8  # places looked at for each point of a line


class HelpedVad(nn.Module):
    """The network with both helps."""

    def __init__(self, config: VadConfig, groups: int) -> None:
        super().__init__()
        self.vad = VAD(config)
        self.cells = nn.Linear(config.width, len(OBJECT_CLASSES) + len(MAP_CLASSES) + BOX_CODE)
        nn.init.constant_(self.cells.bias, -4.0)
        self.queries = nn.ParameterList([torch.randn(config.object_queries, 2 * config.width) for _ in range(groups)])


@dataclass(frozen=True, slots=True, kw_only=True)
class GridTruth:
    """What stands on the cells of a sample."""

    classes_QC: Tensor  # 1.0 where it does
    boxes_Q10: Tensor  # of the object that stands there, its centre from the cell's; NaN elsewhere


def grid_truth(target: VadTargets, config: VadConfig) -> GridTruth:
    """Cells whose centre lies in an object's footprint, the nearest one at least, or within half a cell's diagonal of a line."""
    low, high = (target.boxes_N10.new_tensor(config.range_m[i : i + 2]) for i in (0, 3))
    centers = low + cell_centers(config.bev_hw).to(low) * (high - low)
    cell = (high - low) / low.new_tensor([config.bev_hw[1], config.bev_hw[0]])
    classes = centers.new_zeros(len(centers), len(OBJECT_CLASSES) + len(MAP_CLASSES))
    boxes = centers.new_full((len(centers), BOX_CODE), torch.nan)
    for code, label in zip(target.boxes_N10, target.labels_N, strict=True):
        yaw = -torch.atan2(code[6], code[7]) - torch.pi / 2
        apart = centers - code[:2]
        along = apart @ torch.stack([yaw.cos(), yaw.sin()])
        across = apart @ torch.stack([-yaw.sin(), yaw.cos()])
        inside = (along.abs() <= code[3].exp() / 2) & (across.abs() <= code[2].exp() / 2)
        inside[apart.norm(dim=-1).argmin()] = True
        classes[inside, label] = 1.0
        boxes[inside] = torch.cat([-apart[inside], code[2:].expand(int(inside.sum()), -1)], dim=-1)
    for points, label in zip(target.map_points_IGP2[:, 0], target.map_labels_I, strict=True):
        finer = F.interpolate(points.T[None], size=_FINER * len(points), mode="linear", align_corners=True)[0].T
        near = torch.cdist(centers, low + finer * (high - low)).amin(-1) <= cell.norm() / 2
        classes[near, len(OBJECT_CLASSES) + label] = 1.0
    return GridTruth(classes_QC=classes, boxes_Q10=boxes)


def auxiliary_losses(
    model: HelpedVad, bev_BQD: Tensor, targets: Sequence[VadTargets], weights: VadLossWeights
) -> dict[str, Tensor]:
    """Of cells and of groups, weighted as those of objects are; means over the batch, and over the groups."""
    said = model.cells(bev_BQD)
    classes, boxes = said[..., :-BOX_CODE], said[..., -BOX_CODE:]
    parts: dict[str, Tensor] = dict.fromkeys(
        ("cell_classes", "cell_boxes", "group_classes", "group_boxes"), bev_BQD.new_zeros(())
    )
    for b, target in enumerate(targets):
        truth = grid_truth(target, model.vad.config)
        known = truth.boxes_Q10.isfinite()
        off = (boxes[b] - torch.nan_to_num(truth.boxes_Q10)).abs() * known
        parts["cell_classes"] = parts["cell_classes"] + focal_loss(
            classes[b], truth.classes_QC
        ) / truth.classes_QC.sum().clamp_min(1)
        parts["cell_boxes"] = parts["cell_boxes"] + off.sum() / known[:, 0].sum().clamp_min(1)
    for queries in model.queries:
        found = model.vad.pts_bbox_head.objects(bev_BQD, queries)
        for b, target in enumerate(targets):
            told, _, _ = object_losses(found.class_logits_LBOK[:, b], found.boxes_LBO10[:, b], target)
            for name, value in told.items():
                parts[f"group_{name}"] = parts[f"group_{name}"] + value / len(model.queries)
    return {name: getattr(weights, name.split("_")[1]) * value / len(targets) for name, value in parts.items()}
