"""Futures of the objects, and the ego's plan, from interactions between objects, map and ego (VAD, sec. 3.2 and 3.3).

Shapes: B batch, O object queries, M modes, T steps, I map instances, P points of an instance, D width, U commands.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from evaluators.vad.config import COMMANDS, VadConfig
from evaluators.vad.layers import Interaction, class_branch, regression_branch

SUBGRAPH_LAYERS = 3


class PointMlp(nn.Module):
    """A linear layer, norm and relu, one name deeper, as the checkpoints have it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class LaneEncoder(nn.Module):
    """Points of an instance [..., P, D] to one feature [..., D] (Gao et al., VectorNet, CVPR 2020, eq. 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_seq = nn.ModuleDict({f"lmlp_{i}": PointMlp(width, width // 2) for i in range(SUBGRAPH_LAYERS)})

    def forward(self, points: Tensor) -> Tensor:
        for layer in self.layer_seq.values():
            points = layer(points)
            points = torch.cat([points, points.amax(-2, keepdim=True).expand_as(points)], dim=-1)
        return points.amax(-2)


def nearest_points(points_BIP2: Tensor) -> Tensor:
    """The point of each instance that is nearest to the corner of the range [B, I, 2].

    The public code means the one nearest to the ego, but measures from the origin of shares of the range: the corner at the
    ego's back left. Its weights were trained with that.
    """
    nearest = points_BIP2.norm(dim=-1).argmin(-1)
    return points_BIP2.gather(2, nearest[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]


class Forecast(nn.Module):
    """What follows perception; its parameters lie directly under the head's names in the checkpoints."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        self.config, d = config, config.width
        self.motion_decoder = Interaction(config)
        self.motion_map_decoder = Interaction(config)
        self.ego_agent_decoder = Interaction(config)
        self.ego_map_decoder = Interaction(config)
        self.lane_encoder = LaneEncoder(d)
        self.motion_mode_query = nn.Embedding(config.modes, d)
        self.ego_query = nn.Embedding(1, d)
        self.pos_mlp_sa, self.pos_mlp = nn.Linear(2, d), nn.Linear(2, d)
        self.ego_agent_pos_mlp, self.ego_map_pos_mlp = nn.Linear(2, d), nn.Linear(2, d)
        self.traj_branches = nn.ModuleList([regression_branch(2 * d, 2 * config.steps)])
        self.traj_cls_branches = nn.ModuleList([class_branch(2 * d, 1)])
        self.agent_fus_mlp = nn.Sequential(nn.Linear(2 * d * config.modes, d), nn.LayerNorm(d), nn.ReLU(), nn.Linear(d, d))
        self.ego_fut_decoder = regression_branch(2 * d, len(COMMANDS) * config.steps * 2)
        self._reset()

    def _reset(self) -> None:
        for part in (
            self.motion_decoder, self.motion_map_decoder, self.ego_agent_decoder, self.ego_map_decoder, self.lane_encoder,
        ):  # fmt: skip
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        nn.init.orthogonal_(self.motion_mode_query.weight)
        for position in (self.pos_mlp_sa, self.pos_mlp):
            nn.init.xavier_uniform_(position.weight)
            nn.init.zeros_(position.bias)

    def forecast(
        self, objects_BOD: Tensor, place_BO2: Tensor, lanes_BID: Tensor, lane_place_BI2: Tensor, lane_score_BI: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Step offsets in metres [B, O, M, T, 2], logits of the modes [B, O, M] and motion features [B, O, M, 2D].

        Places are x, y as shares of the range.
        """
        modes = self.config.modes
        query = rearrange(objects_BOD[:, :, None] + self.motion_mode_query.weight, "b o m d -> b (o m) d")
        position = repeat(self.pos_mlp_sa(place_BO2), "b o d -> b (o m) d", m=modes)
        alone = rearrange(self.motion_decoder(query, query, position, position), "b (o m) d -> b o m d", m=modes)
        motion = torch.cat([alone, self._on_map(alone, place_BO2, lanes_BID, lane_place_BI2, lane_score_BI)], dim=-1)
        offsets = rearrange(self.traj_branches[0](motion), "b o m (t xy) -> b o m t xy", xy=2)
        return offsets, self.traj_cls_branches[0](motion)[..., 0], motion

    def _on_map(
        self, motion_BOMD: Tensor, place_BO2: Tensor, lanes_BID: Tensor, lane_place_BI2: Tensor, lane_score_BI: Tensor
    ) -> Tensor:
        """Every object's modes attend to the map instances that are certain and near enough [B, O, M, D].

        An empty instance that everyone sees keeps attention defined where there is none; its place is (1, 1).
        """
        batch, objects = place_BO2.shape[:2]
        relative = lane_place_BI2[:, None] - place_BO2[:, :, None]
        ignored = (lane_score_BI <= self.config.map_score)[:, None] | ~(relative.norm(dim=-1) <= self.config.map_reach)
        relative = torch.cat([relative, relative.new_ones(batch, objects, 1, 2)], dim=2)
        ignored = torch.cat([ignored, ignored.new_zeros(batch, objects, 1)], dim=2)
        lanes = torch.cat([lanes_BID, lanes_BID.new_zeros(batch, 1, lanes_BID.shape[-1])], dim=1)
        query = rearrange(motion_BOMD, "b o m d -> (b o) m d")
        own_place = self.pos_mlp(query.new_zeros(1, 1, 2)).expand_as(query)
        mixed = self.motion_map_decoder(
            query, repeat(lanes, "b i d -> (b o) i d", o=objects), own_place,
            self.pos_mlp(relative.flatten(0, 1)), ignored.flatten(0, 1),
        )  # fmt: skip
        return mixed.unflatten(0, (batch, objects))

    def plan(self, motion_BOMD: Tensor, place_BO2: Tensor, lanes_BID: Tensor, lane_place_BI2: Tensor) -> Tensor:
        """The ego's step offsets in metres for every command [B, U, T, 2]; motion features are 2D wide.

        All objects and all map instances take part: the public threshold on their scores is zero.
        """
        agents = self.agent_fus_mlp(rearrange(motion_BOMD, "b o m d -> b o (m d)"))
        ego = repeat(self.ego_query.weight, "one d -> b one d", b=len(agents))
        origin = ego.new_zeros(len(ego), 1, 2)
        among_agents = self.ego_agent_decoder(ego, agents, self.ego_agent_pos_mlp(origin), self.ego_agent_pos_mlp(place_BO2))
        on_map = self.ego_map_decoder(
            among_agents, lanes_BID, self.ego_map_pos_mlp(origin), self.ego_map_pos_mlp(lane_place_BI2)
        )
        offsets = self.ego_fut_decoder(torch.cat([among_agents, on_map], dim=-1))
        return rearrange(offsets, "b 1 (u t xy) -> b u t xy", u=len(COMMANDS), xy=2)
