"""A ring of six cameras, networks small enough to compare with loops, and the public checkpoints' shapes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from evaluators.mapping import MAP_CLASSES, MapLine
from evaluators.vad.config import COMMANDS, CONFIGS, OBJECT_CLASSES, VadConfig
from evaluators.vad.model import VadOutputs
from evaluators.vad.targets import VadTargets

# As CAMERA_ORDER: front, front right, front left, back, back left, back right; anticlockwise from forward.
YAWS_DEG = (0.0, -55.0, 55.0, 180.0, 110.0, -110.0)

TINY = replace(
    CONFIGS["vad_proving_ground"], image_hw=(32, 64), can_motion=True, stem_channels=4, stage_blocks=(1, 1), feature_stages=(1, 2),
    width=16, heads=2, feed_forward=24, encoder_layers=2, decoder_layers=2, bev_hw=(6, 4), rotation_center_xy=(2.0, 3.0),
    camera_points=8, object_queries=5, map_instances=4, map_points=3, modes=3, steps=2,
)  # fmt: skip


# Enough queries to say all there is in a small scene.
CONFIG = replace(CONFIGS["vad_proving_ground"], object_queries=12, map_instances=6, map_points=5)
SURE = 9.0  # logit
LINES = (
    MapLine(class_name="divider", points_m=np.array([[-1.8, -25.0], [-1.8, 25.0]])),
    MapLine(class_name="boundary", points_m=np.array([[5.0, -20.0], [6.0, 20.0]])),
    MapLine(class_name="ped_crossing", points_m=np.array([[-4.0, 10.0], [4.0, 10.0], [4.0, 13.0], [-4.0, 13.0], [-4.0, 10.0]])),
)


def perfect(target: VadTargets, config: VadConfig) -> VadOutputs:
    """Outputs of two layers that say what the target says, in another order and with lines drawn backwards."""
    queries, lines = config.object_queries, config.map_instances
    n, i = len(target.labels_N), len(target.map_labels_I)
    at, on = torch.arange(n) * 2 % queries + (torch.arange(n) * 2 >= queries).long(), torch.arange(lines - 1, lines - 1 - i, -1)
    logits, boxes = torch.full((queries, len(OBJECT_CLASSES)), -SURE), torch.zeros(queries, 10)
    logits[at, target.labels_N], boxes[at] = SURE, torch.nan_to_num(target.boxes_N10)
    steps, modes = torch.zeros(queries, config.modes, config.steps, 2), torch.full((queries, config.modes), -SURE)
    steps[:, :] = 50.0
    steps[at, 2], modes[at, 2] = target.steps_NT2, SURE
    map_logits, points = torch.full((lines, len(MAP_CLASSES)), -SURE), torch.full((lines, config.map_points, 2), 0.5)
    map_logits[on, target.map_labels_I], points[on] = SURE, target.map_points_IGP2[:, 1]
    plan = torch.zeros(len(COMMANDS), config.steps, 2)
    plan[target.command] = target.plan_T2

    def twice(part):
        return torch.stack([part[None]] * 2)

    return VadOutputs(
        class_logits_LBOK=twice(logits), boxes_LBO10=twice(boxes), steps_BOMT2=steps[None], mode_logits_BOM=modes[None],
        map_class_logits_LBIJ=twice(map_logits), map_points_LBIP2=twice(points), plan_BUT2=plan[None], bev_BQD=torch.zeros(1, 1, 1),
    )  # fmt: skip


def ring(image_hw: tuple[int, int], turned_deg: float = 0.0) -> Tensor:
    """LiDAR frame (x right, y forward) to pixels [6, 4, 4]: level cameras 70 degrees wide, at the origin."""
    h, w = image_hw
    focal = w / 2 / math.tan(math.radians(35.0))
    matrices = []
    for yaw_deg in YAWS_DEG:
        yaw = math.radians(yaw_deg + turned_deg)
        forward = torch.tensor([-math.sin(yaw), math.cos(yaw), 0.0])
        right = torch.tensor([math.cos(yaw), math.sin(yaw), 0.0])
        axes = torch.stack([right, torch.tensor([0.0, 0.0, -1.0]), forward])
        intrinsics = torch.tensor([[focal, 0.0, w / 2], [0.0, focal, h / 2], [0.0, 0.0, 1.0]])
        matrix = torch.eye(4)
        matrix[:3, :3] = intrinsics @ axes
        matrices.append(matrix)
    return torch.stack(matrices)


def frame(config: VadConfig, batch: int, seed: int, padded_hw: tuple[int, int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Noise images, the ring and a CAN-bus vector of an ego that has moved and turned."""
    hw = padded_hw or config.image_hw
    noise = torch.Generator().manual_seed(seed)
    images = torch.randn((batch, 6, 3, *hw), generator=noise)
    can_bus = 0.3 * torch.randn((batch, 18), generator=noise)
    can_bus[:, 17] = 10 * torch.randn(batch, generator=noise)
    return images, ring(hw).expand(batch, -1, -1, -1), can_bus


def stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in evaluation mode with no parameter left at zero or one."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=noise)
    return module.eval()


def public_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name, from lines of: name with * for a layer's index, the indices, the shape; - where there is none."""
    shapes = {}
    for line in (Path(__file__).parents[2] / "data" / f"{name}_keys.tsv").read_text().splitlines():
        template, indices, shape = line.split("\t")
        for index in indices.split(","):
            shapes[template.replace("*", index)] = () if shape == "-" else tuple(map(int, shape.split(",")))
    return shapes
