"""What the network is trained on: objects, map lines, futures and the plan (VAD, sec. 3.4; weights of its public configuration).

Shapes: B batch, O object queries, I map queries, K classes, M modes, T steps, P points of a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluators.mapping import MAP_CLASSES
from evaluators.vad.config import VadConfig
from evaluators.vad.matching import FOCAL_ALPHA, FOCAL_GAMMA, match_boxes, match_lines
from evaluators.vad.model import BOX_CODE_WEIGHTS, VadOutputs
from evaluators.vad.plan_losses import Surroundings, plan_losses
from evaluators.vad.targets import VadTargets

SURE = 0.5  # score from which on objects and lines constrain the plan


@dataclass(frozen=True, slots=True, kw_only=True)
class VadLossWeights:
    """Of each part; detection and map count once per decoder layer."""

    classes: float = 2.0
    boxes: float = 0.25
    map_classes: float = 2.0
    map_points: float = 1.0
    map_directions: float = 0.005
    futures: float = 0.2
    modes: float = 0.2
    plan: float = 1.0
    plan_collision: float = 1.0
    plan_boundary: float = 1.0
    plan_direction: float = 0.5


def vad_losses(
    outputs: VadOutputs, targets: Sequence[VadTargets], config: VadConfig, weights: VadLossWeights | None = None
) -> dict[str, Tensor]:
    """Weighted parts by name, means over the batch; "total" is their sum."""
    weights = weights or VadLossWeights()
    parts: dict[str, Tensor] = {}

    def add(found: dict[str, Tensor]) -> None:
        for name, value in found.items():
            weighted = getattr(weights, name) * value / len(targets)
            parts[name] = parts.get(name, torch.zeros_like(weighted)) + weighted

    for b, target in enumerate(targets):
        found, queries, rows = object_losses(outputs.class_logits_LBOK[:, b], outputs.boxes_LBO10[:, b], target)
        add(found)
        # Futures belong to the last layer's boxes.
        add(_future_losses(outputs.steps_BOMT2[b], outputs.mode_logits_BOM[b], target, queries, rows))
        for logits, points in zip(outputs.map_class_logits_LBIJ[:, b], outputs.map_points_LBIP2[:, b], strict=True):
            add(_map_losses(logits, points, target))
        add(plan_losses(outputs.plan_BUT2[b, target.command], target, surroundings(outputs, b, config)))
    return {**parts, "total": torch.stack(list(parts.values())).sum()}


def surroundings(outputs: VadOutputs, b: int, config: VadConfig) -> Surroundings:
    """What the network itself is sure of, as the plan is held against it; no gradient goes there."""
    sure = outputs.class_logits_LBOK[-1, b].sigmoid().amax(-1) >= SURE
    best = outputs.mode_logits_BOM[b].argmax(-1)[sure]
    steps = outputs.steps_BOMT2[b][sure]
    places = outputs.boxes_LBO10[-1, b][sure][:, None, :2] + steps[torch.arange(len(steps), device=steps.device), best].cumsum(
        -2
    )
    low, high = (places.new_tensor(config.range_m[i : i + 2]) for i in (0, 3))
    scores, lines = outputs.map_class_logits_LBIJ[-1, b].sigmoid(), low + outputs.map_points_LBIP2[-1, b] * (high - low)
    kinds = {name: lines[scores[:, k] >= SURE].detach() for k, name in enumerate(MAP_CLASSES)}
    return Surroundings(agents_NT2=places.detach(), boundaries_IP2=kinds["boundary"], dividers_IP2=kinds["divider"])


def focal_loss(logits_QK: Tensor, truth_QK: Tensor) -> Tensor:
    """Sum over all entries (Lin et al., 2017, eq. 5)."""
    p = logits_QK.sigmoid()
    wrong = torch.where(truth_QK > 0, 1 - p, p)
    alpha = torch.where(truth_QK > 0, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    return (alpha * wrong**FOCAL_GAMMA * F.binary_cross_entropy_with_logits(logits_QK, truth_QK, reduction="none")).sum()


def _one_hot(logits: Tensor, queries: Tensor, labels: Tensor) -> Tensor:
    truth = torch.zeros_like(logits)
    truth[queries, labels] = 1.0
    return truth


def object_losses(
    logits_LOK: Tensor, boxes_LO10: Tensor, target: VadTargets
) -> tuple[dict[str, Tensor], Tensor, Tensor]:  # fmt: skip
    """Classes and boxes of a sample, summed over the layers; and the last layer's queries with the objects they answer for."""
    classes, off = logits_LOK.new_zeros(()), boxes_LO10.new_zeros(())
    queries, rows = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    for logits, boxes in zip(logits_LOK, boxes_LO10, strict=True):
        queries, rows = match_boxes(logits, boxes, target.labels_N, target.boxes_N10)
        told = _object_losses(logits, boxes, target, queries, rows)
        classes, off = classes + told["classes"], off + told["boxes"]
    return {"classes": classes, "boxes": off}, queries, rows


def _object_losses(
    logits_OK: Tensor, boxes_O10: Tensor, target: VadTargets, queries: Tensor, rows: Tensor
) -> dict[str, Tensor]:
    count = max(len(queries), 1)
    truth = target.boxes_N10[rows]
    known = truth.isfinite()
    off = (boxes_O10[queries] - torch.nan_to_num(truth)).abs() * known * boxes_O10.new_tensor(BOX_CODE_WEIGHTS)
    return {
        "classes": focal_loss(logits_OK, _one_hot(logits_OK, queries, target.labels_N[rows])) / count,
        "boxes": off.sum() / count,
    }


def _future_losses(
    steps_OMT2: Tensor, mode_logits_OM: Tensor, target: VadTargets, queries: Tensor, rows: Tensor
) -> dict[str, Tensor]:
    """L1 of the steps of the mode that stays nearest to what came, and which mode that is."""
    known = target.steps_known_NT[rows]
    told = known.any(-1)
    queries, known, truth = queries[told], known[told], target.steps_NT2[rows][told]
    modes = steps_OMT2[queries]
    with torch.no_grad():
        apart = (modes.cumsum(-2) - truth[:, None].cumsum(-2)).norm(dim=-1)
        best = ((apart * known[:, None]).sum(-1) / known.sum(-1, keepdim=True).clamp_min(1)).argmin(-1)
    chosen = modes[torch.arange(len(best), device=best.device), best]
    off = (chosen - truth).abs().sum(-1) * known
    logits = mode_logits_OM[queries]
    count = max(len(best), 1)
    right = _one_hot(logits, torch.arange(len(best), device=best.device), best)
    return {"futures": off.sum() / known.sum().clamp_min(1), "modes": focal_loss(logits, right) / count}


def _map_losses(logits_IJ: Tensor, points_IP2: Tensor, target: VadTargets) -> dict[str, Tensor]:
    queries, rows, order = match_lines(logits_IJ, points_IP2, target.map_labels_I, target.map_points_IGP2)
    count = max(len(queries), 1)
    found, truth = points_IP2[queries], target.map_points_IGP2[rows, order]
    along, true_along = found.diff(dim=1), truth.diff(dim=1)
    turned = 1 - F.cosine_similarity(along, true_along, dim=-1, eps=1e-6)
    return {
        "map_classes": focal_loss(logits_IJ, _one_hot(logits_IJ, queries, target.map_labels_I[rows])) / count,
        "map_points": (found - truth).abs().sum() / count,
        "map_directions": turned.sum() / count,
    }
