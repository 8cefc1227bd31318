"""From image features to the bird's-eye-view grid, and from there to queries of objects and map points.

Shapes: B batch, V cameras, Q cells of the grid, N cells of all feature levels, D width, O object queries, I map instances,
P points of an instance.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from evaluators.vad.bev_encoder import BevEncoder
from evaluators.vad.bev_geometry import ego_shift, look_up, pillar_points, rotate_grid
from evaluators.vad.config import CAMERA_ORDER, CAN_BUS_SIZE, VadConfig
from evaluators.vad.decoder import Decoder
from evaluators.vad.deformable import Deformable

LEVEL_EMBEDDINGS = 4  # rows in the checkpoints, also where fewer levels exist
TURN_DEG = 17  # element of the CAN-bus vector


class GridPosition(nn.Module):
    """Learned positions of the grid's cells: half the width for the column, half for the row."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        h, w = config.bev_hw
        self.row_embed = nn.Embedding(h, config.width // 2)
        self.col_embed = nn.Embedding(w, config.width // 2)
        for table in (self.row_embed, self.col_embed):
            nn.init.uniform_(table.weight)

    def forward(self) -> Tensor:
        """[Q, D]."""
        row, column = self.row_embed.weight, self.col_embed.weight
        across, down = repeat(column, "c d -> (r c) d", r=len(row)), repeat(row, "r d -> (r c) d", c=len(column))
        return torch.cat([across, down], dim=-1)


class PerceptionTransformer(nn.Module):
    """The encoder, the two decoders, and what is learned about cameras, levels, motion and first reference points."""

    points_QZ3: Tensor

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        self.config, d = config, config.width
        self.level_embeds = nn.Parameter(torch.empty(LEVEL_EMBEDDINGS, d))
        self.cams_embeds = nn.Parameter(torch.empty(len(CAMERA_ORDER), d))
        self.reference_points = nn.Linear(d, 3)
        self.map_reference_points = nn.Linear(d, 2)
        self.can_bus_mlp = nn.Sequential(nn.Linear(CAN_BUS_SIZE, d // 2), nn.ReLU(), nn.Linear(d // 2, d), nn.ReLU())
        self.can_bus_mlp.add_module("norm", nn.LayerNorm(d))
        self.encoder = BevEncoder(config)
        self.decoder = Decoder(config)
        self.map_decoder = Decoder(config)
        self.register_buffer("points_QZ3", pillar_points(config), persistent=False)
        self._reset()

    def _reset(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, Deformable):
                module.reset()
        for embeds in (self.level_embeds, self.cams_embeds):
            nn.init.normal_(embeds)
        for first in (self.reference_points, self.map_reference_points, self.can_bus_mlp[0], self.can_bus_mlp[2]):
            nn.init.zeros_(first.bias)  # type: ignore[arg-type]

    def encode(
        self, features: list[Tensor], lidar_to_image_BV44: Tensor, image_hw: tuple[int, int], can_bus_B18: Tensor,
        queries_QD: Tensor, position_QD: Tensor, past_BQD: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The grid of a frame [B, Q, D] from feature maps [B, V, D, h, w] of every level; ``past_BQD`` as it was."""
        sizes_hw = [(level.shape[-2], level.shape[-1]) for level in features]
        camera = self.cams_embeds[:, None]
        flat = [
            rearrange(level, "b v d h w -> b v (h w) d") + camera + self.level_embeds[index]
            for index, level in enumerate(features)
        ]
        if past_BQD is not None:
            past_BQD = rotate_grid(past_BQD, can_bus_B18[:, TURN_DEG], self.config)
        return self.encoder(
            queries_QD + self.can_bus_mlp(can_bus_B18)[:, None], position_QD, ego_shift(can_bus_B18, self.config), past_BQD,
            torch.cat(flat, dim=2), sizes_hw, look_up(self.points_QZ3, lidar_to_image_BV44, image_hw),
        )  # fmt: skip

    def decode_objects(
        self, bev_BQD: Tensor, embedding_O2D: Tensor, branches: nn.ModuleList
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Features, regressions (x, y, w, l, z, ...) and reference points x, y, z of every layer, as ``Decoder`` gives."""
        position, query = repeat(embedding_O2D, "o d -> b o d", b=len(bev_BQD)).chunk(2, dim=-1)
        first = self.reference_points(position).sigmoid()
        return self.decoder(query, position, bev_BQD, first, branches, (0, 1, 4))

    def decode_map(
        self, bev_BQD: Tensor, embedding_IP2D: Tensor, branches: nn.ModuleList
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The same for map points x, y; the points of an instance one after the other."""
        position, query = repeat(embedding_IP2D, "i p d -> b (i p) d", b=len(bev_BQD)).chunk(2, dim=-1)
        first = self.map_reference_points(position).sigmoid()
        return self.map_decoder(query, position, bev_BQD, first, branches, (0, 1))
