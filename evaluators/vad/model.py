"""VAD: six cameras to objects with futures, a vector map and an ego plan.

Jiang et al., "VAD: Vectorized Scene Representation for Efficient Autonomous Driving", ICCV 2023. Modules carry the names
of the public checkpoints, so that these load as they are.

Shapes: B batch, V cameras in ``CAMERA_ORDER``, Q cells of the bird's-eye-view grid, D width, L decoder layers, O object
queries, K object classes, M modes, T steps, I map instances, P points of an instance, J map classes, U commands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from dwm.errors import InputError
from dwm.models.weights import register_model
from evaluators.mapping import MAP_CLASSES
from evaluators.vad.config import CONFIGS, OBJECT_CLASSES, VadConfig
from evaluators.vad.decoder import refined
from evaluators.vad.forecast import Forecast, nearest_points
from evaluators.vad.fpn import FeaturePyramid
from evaluators.vad.layers import class_branch, regression_branch
from evaluators.vad.perception import GridPosition, PerceptionTransformer
from evaluators.vad.resnet import ResNet

BOX_CODE = 10  # cx, cy, log w, log l, cz, log h, sin, cos, vx, vy
# Weights of the code's entries in the training loss; the checkpoints hold them.
BOX_CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
MAP_CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class VadOutputs:
    """Raw outputs, in metres in the LiDAR frame unless said otherwise."""

    class_logits_LBOK: Tensor
    boxes_LBO10: Tensor  # cx, cy, log w, log l, cz, log h, sin, cos, vx, vy
    steps_BOMT2: Tensor  # offset of an object from step to step
    mode_logits_BOM: Tensor
    map_class_logits_LBIJ: Tensor
    map_points_LBIP2: Tensor  # x, y as shares of the range
    plan_BUT2: Tensor  # offset of the ego from step to step, for each command
    bev_BQD: Tensor  # what the next frame needs


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectOutputs:
    """What the object decoder says."""

    class_logits_LBOK: Tensor
    boxes_LBO10: Tensor  # as in ``VadOutputs``
    places_BO2: Tensor  # of the last layer, as shares of the range
    features_BOD: Tensor  # of the last layer


class VadHead(Forecast):
    """Objects, map, futures and plan from the feature levels of a frame."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__(config)
        d, layers = config.width, config.decoder_layers
        self.code_weights = nn.Parameter(torch.tensor(BOX_CODE_WEIGHTS), requires_grad=False)
        self.map_code_weights = nn.Parameter(torch.tensor(MAP_CODE_WEIGHTS), requires_grad=False)
        self.positional_encoding = GridPosition(config)
        self.transformer = PerceptionTransformer(config)
        self.bev_embedding = nn.Embedding(config.bev_hw[0] * config.bev_hw[1], d)
        self.query_embedding = nn.Embedding(config.object_queries, 2 * d)
        self.map_instance_embedding = nn.Embedding(config.map_instances, 2 * d)
        self.map_pts_embedding = nn.Embedding(config.map_points, 2 * d)
        self.cls_branches = nn.ModuleList([class_branch(d, len(OBJECT_CLASSES)) for _ in range(layers)])
        self.reg_branches = nn.ModuleList([regression_branch(d, BOX_CODE) for _ in range(layers)])
        self.map_cls_branches = nn.ModuleList([class_branch(d, len(MAP_CLASSES)) for _ in range(layers)])
        self.map_reg_branches = nn.ModuleList([regression_branch(d, 2) for _ in range(layers)])

    def encode(
        self, features: list[Tensor], lidar_to_image_BV44: Tensor, image_hw: tuple[int, int], can_bus_B18: Tensor,
        past_BQD: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The grid of a frame [B, Q, D]."""
        return self.transformer.encode(
            features, lidar_to_image_BV44, image_hw, can_bus_B18, self.bev_embedding.weight, self.positional_encoding(),
            past_BQD,
        )  # fmt: skip

    def forward(self, bev_BQD: Tensor) -> VadOutputs:
        objects = self.objects(bev_BQD, self.query_embedding.weight)
        map_classes, map_points, map_features = self._map(bev_BQD)
        # Positions reach the interactions as numbers: no gradient flows back through them.
        place, lane_place = objects.places_BO2.detach(), nearest_points(map_points[-1].detach())
        lanes = self.lane_encoder(map_features)
        steps, mode_logits, motion = self.forecast(
            objects.features_BOD, place, lanes, lane_place, map_classes[-1].sigmoid().amax(-1)
        )  # fmt: skip
        return VadOutputs(
            class_logits_LBOK=objects.class_logits_LBOK, boxes_LBO10=objects.boxes_LBO10, steps_BOMT2=steps, mode_logits_BOM=mode_logits,
            map_class_logits_LBIJ=map_classes, map_points_LBIP2=map_points,
            plan_BUT2=self.plan(motion, place, lanes, lane_place), bev_BQD=bev_BQD,
        )  # fmt: skip

    def objects(self, bev_BQD: Tensor, queries_OE: Tensor) -> ObjectOutputs:
        """What queries and their positions (side by side, E twice the width) find on a grid."""
        decoded = self.transformer.decode_objects(bev_BQD, queries_OE, self.reg_branches)
        low, high = bev_BQD.new_tensor(self.config.range_m[:3]), bev_BQD.new_tensor(self.config.range_m[3:])
        centers = [refined(reference, code, (0, 1, 4)) for _, code, reference in decoded]
        boxes = []
        for (_, code, _), center in zip(decoded, centers, strict=True):
            x, y, z = (low + center * (high - low)).unbind(-1)
            boxes.append(torch.cat([torch.stack([x, y], -1), code[..., 2:4], z[..., None], code[..., 5:]], dim=-1))
        classes = [branch(features) for (features, _, _), branch in zip(decoded, self.cls_branches, strict=True)]
        return ObjectOutputs(
            class_logits_LBOK=torch.stack(classes), boxes_LBO10=torch.stack(boxes), places_BO2=centers[-1][..., :2],
            features_BOD=decoded[-1][0],
        )  # fmt: skip

    def _map(self, bev_BQD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits [L, B, I, J] and points [L, B, I, P, 2]; of the last layer features [B, I, P, D]."""
        embedding = self.map_instance_embedding.weight[:, None] + self.map_pts_embedding.weight
        decoded = self.transformer.decode_map(bev_BQD, embedding, self.map_reg_branches)
        shape = embedding.shape[:2]
        points = [refined(reference, code, (0, 1)).unflatten(1, shape) for _, code, reference in decoded]
        features = [flat.unflatten(1, shape) for flat, _, _ in decoded]
        classes = [branch(instances.mean(2)) for instances, branch in zip(features, self.map_cls_branches, strict=True)]
        return torch.stack(classes), torch.stack(points), features[-1]


class VAD(nn.Module):
    """The whole network; one frame at a time, the grid of the frame before handed in."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        self.config = config
        self.img_backbone = ResNet(config)
        self.img_neck = FeaturePyramid(config)
        self.pts_bbox_head = VadHead(config)

    def encode(
        self, images_BV3HW: Tensor, lidar_to_image_BV44: Tensor, can_bus_B18: Tensor, past_bev_BQD: Tensor | None = None
    ) -> Tensor:
        """The grid of a frame [B, Q, D]; enough for the frames before the one that counts.

        Args:
            images_BV3HW: normalised and padded, as ``evaluators.vad.inputs`` makes them.
            lidar_to_image_BV44: LiDAR frame to pixels of these images.
            can_bus_B18: with differences to the frame before (``evaluators.vad.inputs.since``).
            past_bev_BQD: the grid of the frame before; None on the first frame of a scene.
        """
        maps = self.img_neck(self.img_backbone(rearrange(images_BV3HW, "b v c h w -> (b v) c h w")))
        features = [rearrange(level, "(b v) d h w -> b v d h w", b=len(images_BV3HW)) for level in maps]
        image_hw = (images_BV3HW.shape[-2], images_BV3HW.shape[-1])
        return self.pts_bbox_head.encode(features, lidar_to_image_BV44, image_hw, can_bus_B18, past_bev_BQD)

    def forward(
        self, images_BV3HW: Tensor, lidar_to_image_BV44: Tensor, can_bus_B18: Tensor, past_bev_BQD: Tensor | None = None
    ) -> VadOutputs:
        """Everything the network says about a frame; arguments as ``encode``."""
        return self.pts_bbox_head(self.encode(images_BV3HW, lidar_to_image_BV44, can_bus_B18, past_bev_BQD))


register_model("vad", VadConfig, VAD)


def build_vad(name: str) -> VAD:
    """An untrained network of ``CONFIGS``; InputError for any other name."""
    if name not in CONFIGS:
        raise InputError("VAD", f"no size is called '{name}'", f"sizes: {', '.join(CONFIGS)}")
    return VAD(CONFIGS[name])
