"""Which query answers for which object or line: the assignment of least cost (Carion et al., DETR, ECCV 2020).

Costs and weights are those of VAD's public configuration. Shapes: O queries, N targets, K classes, G orders, P points.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # Lin et al., Focal Loss, ICCV 2017
_CLASS_COST, _BOX_COST, _POINTS_COST = 2.0, 0.25, 1.0
_COSTED = 8  # entries of a box's code; velocities are not


@torch.no_grad()
def match_boxes(logits_OK: Tensor, boxes_O10: Tensor, labels_N: Tensor, truth_N10: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and the targets they answer for, N of each or as many as there are queries."""
    apart_ON = torch.cdist(boxes_O10[:, :_COSTED], truth_N10[:, :_COSTED], p=1)
    return _assigned(_CLASS_COST * _class_cost(logits_OK, labels_N) + _BOX_COST * apart_ON)


@torch.no_grad()
def match_lines(logits_OK: Tensor, points_OP2: Tensor, labels_N: Tensor, truth_NGP2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same for lines, and in which order each target's points are nearest."""
    count, orders = truth_NGP2.shape[:2]
    apart = torch.cdist(points_OP2.flatten(1), truth_NGP2.flatten(0, 1).flatten(1), p=1).view(len(points_OP2), count, orders)
    nearest, order = apart.min(dim=-1) if count else (apart.sum(-1), apart.sum(-1).long())
    query, target = _assigned(_CLASS_COST * _class_cost(logits_OK, labels_N) + _POINTS_COST * nearest)
    return query, target, order[query, target]


def _class_cost(logits_OK: Tensor, labels_N: Tensor) -> Tensor:
    p = logits_OK.sigmoid()
    missed = -(p + 1e-12).log() * FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA
    invented = -(1 - p + 1e-12).log() * (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA
    return (missed - invented)[:, labels_N]


def _assigned(cost_ON: Tensor) -> tuple[Tensor, Tensor]:
    query, target = linear_sum_assignment(torch.nan_to_num(cost_ON, nan=1e4, posinf=1e4, neginf=-1e4).cpu().numpy())
    return torch.as_tensor(query, device=cost_ON.device), torch.as_tensor(target, device=cost_ON.device)
