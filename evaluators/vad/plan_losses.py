"""The plan's losses: what was driven, and three constraints (VAD, sec. 3.3.3, eq. 3 to 6).

In the LiDAR frame, x right and y forward. Shapes: T steps, N agents, I lines, P points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evaluators.vad.targets import VadTargets

SIDE_M, AHEAD_M = 1.5, 3.0  # delta_X and delta_Y: nearer to an agent than this costs
AGENT_REACH_M = 3.0  # agents farther off than this do not count
BOUNDARY_M = 1.0  # delta_bd
DIVIDER_REACH_M = 2.0  # delta_dir: a divider farther off says nothing of the direction
_STANDING_M = 1.0  # over the whole plan: a path shorter than this has no direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a plan must keep clear of and go along with; metres."""

    agents_NT2: Tensor  # where they will be at each step
    boundaries_IP2: Tensor
    dividers_IP2: Tensor


def plan_losses(steps_T2: Tensor, target: VadTargets, around: Surroundings) -> dict[str, Tensor]:
    """Unweighted, of one plan in metres from step to step."""
    path = steps_T2.cumsum(0)
    known = target.plan_known_T
    off = (steps_T2 - target.plan_T2).abs().sum(-1) * known
    return {
        "plan": off.sum() / known.sum().clamp_min(1),
        "plan_collision": collision_loss(path, around.agents_NT2),
        "plan_boundary": boundary_loss(path, around.boundaries_IP2),
        "plan_direction": direction_loss(steps_T2, around.dividers_IP2),
    }


def collision_loss(path_T2: Tensor, agents_NT2: Tensor) -> Tensor:
    """Eq. 3 and 4: by how much the nearest agent of each step is nearer than SIDE_M sideways and AHEAD_M ahead, both added."""
    if not len(agents_NT2):
        return path_T2.sum() * 0.0
    apart = agents_NT2 - path_T2
    distance, nearest = apart.norm(dim=-1).min(dim=0)
    side, ahead = apart.abs()[nearest, torch.arange(len(path_T2), device=path_T2.device)].unbind(-1)
    near = distance < AGENT_REACH_M
    return (((SIDE_M - side).clamp_min(0) + (AHEAD_M - ahead).clamp_min(0)) * near).mean()


def boundary_loss(path_T2: Tensor, boundaries_IP2: Tensor) -> Tensor:
    """Eq. 5: by how much the nearest boundary is nearer than BOUNDARY_M."""
    if not len(boundaries_IP2):
        return path_T2.sum() * 0.0
    return (BOUNDARY_M - torch.cdist(path_T2, boundaries_IP2.flatten(0, 1)).amin(-1)).clamp_min(0).mean()


def direction_loss(steps_T2: Tensor, dividers_IP2: Tensor) -> Tensor:
    """Eq. 6: the angle [rad] between each step and the nearest stretch of a divider within DIVIDER_REACH_M, whichever way it is drawn."""
    if not len(dividers_IP2) or float(steps_T2.detach().sum(0).norm()) < _STANDING_M:
        return steps_T2.sum() * 0.0
    starts, along = dividers_IP2[:, :-1].flatten(0, 1), dividers_IP2.diff(dim=1).flatten(0, 1)
    path = steps_T2.cumsum(0)
    distance, nearest = torch.cdist(path.detach(), starts + along / 2).min(-1)
    chosen = along[nearest]
    across = steps_T2[:, 0] * chosen[:, 1] - steps_T2[:, 1] * chosen[:, 0]
    with_it = (steps_T2 * chosen).sum(-1)
    angle = torch.atan2(across.abs() + 1e-9, with_it.abs() + 1e-9)
    return (angle * (distance < DIVIDER_REACH_M)).mean()
