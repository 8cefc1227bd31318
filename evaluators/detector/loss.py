"""Focal loss on heatmaps and L1 on box regressions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluators.detector.targets import Targets

WEIGHTS = {"heatmap": 1.0, "offset": 0.5, "z": 0.25, "log_size": 0.5, "yaw": 0.5, "velocity": 0.1, "attribute": 0.1}


def focal_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """Penalty-reduced focal loss, alpha 2 and beta 4, per centre (Law and Deng, CornerNet, eq. 1)."""
    # In logits throughout: log(sigmoid) of a saturated float is -inf.
    probability = logits.sigmoid()
    centre = heatmap == 1
    positive = F.logsigmoid(logits) * (1 - probability) ** 2
    negative = F.logsigmoid(-logits) * probability**2 * (1 - heatmap) ** 4
    return -torch.where(centre, positive, negative).sum() / centre.sum().clamp(min=1)


def detection_losses(outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
    """Unweighted losses by name, and their weighted sum as ``total``."""
    losses = {"heatmap": focal_loss(outputs["heatmap"], targets.heatmap_BLXY)}
    for name in ("offset", "z", "log_size", "yaw", "velocity"):
        wanted = {
            "offset": targets.offset_K2, "z": targets.z_K1, "log_size": targets.log_size_K3,
            "yaw": targets.yaw_K2, "velocity": targets.velocity_K2,
        }[name]  # fmt: skip
        losses[name] = _l1(_at_centres(outputs[name], targets), wanted)
    known = targets.attribute_K >= 0
    logits = _at_centres(outputs["attribute"], targets)
    # Multiplied rather than skipped, so that every parameter has a gradient in every step.
    losses["attribute"] = (
        F.cross_entropy(logits[known], targets.attribute_K[known]) if bool(known.any()) else 0.0 * logits.sum()
    )
    losses["total"] = torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()
    return losses


def _at_centres(maps: Tensor, targets: Targets) -> Tensor:  # [K, C]
    return maps[targets.batch_K, :, targets.row_K, targets.column_K]


def _l1(found: Tensor, wanted: Tensor) -> Tensor:
    known = ~wanted.isnan()
    return (found - wanted.nan_to_num()).abs().mul(known).sum() / known.sum().clamp(min=1) * wanted.shape[1]
