"""What goes into the traffic simulation and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Behaviour = Literal["lane", "free", "static", "pedestrian"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """One agent at the start of the simulation. Pose is that of the box centre, in the global frame."""

    token: str
    category: str  # nuScenes category
    detection_class: str | None
    size_wlh_m: tuple[float, float, float]
    x_m: float
    y_m: float
    yaw_rad: float
    speed_mps: float
    behaviour: Behaviour
    desired_speed_mps: float
    stops_at_end: bool = False  # where the lane graph ends: stop instead of vanishing
    clearance_m: float = 0.0  # from the edge of the road, kept where no lanes are known; 0: that of the first pose
    edge_side: float = 1.0  # which side that edge is on: 1 right, -1 left


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What drivers do besides following, giving way and braking for whoever is in their way."""

    lane_changes: bool = False
    stop_at_crossings: bool = False  # before the crossing, also for pedestrians who wait to step onto it


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficLog:
    """Agents over time. A agents, T frames; values where ``present`` is False repeat the last known ones."""

    tokens: tuple[str, ...]  # [A]
    xy_m: Array  # [A, T, 2]
    yaw_rad: Array  # [A, T]
    speed_mps: Array  # [A, T]
    present: NDArray[np.bool_]  # [A, T]
