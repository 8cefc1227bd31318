"""The lane graph of a map expansion: centre lines, successors and neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from dwm.geometry import wrap_angle

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One lane or lane connector, sampled along its centre line."""

    token: str
    centerline: Array  # [P, 3] x, y, yaw in the global frame, P >= 2, spaced <= 1 m
    is_connector: bool
    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]
    left: str | None = None  # neighbour in the same direction
    right: str | None = None
    speed_limit_mps: float = 13.4
    width_m: float = 3.5
    arc_m: Array = field(init=False)  # [P] distance along the centre line

    def __post_init__(self) -> None:
        steps = np.linalg.norm(np.diff(self.centerline[:, :2], axis=0), axis=1)
        object.__setattr__(self, "arc_m", np.concatenate([[0.0], np.cumsum(steps)]))

    @property
    def length_m(self) -> float:
        return float(self.arc_m[-1])

    def pose_at(self, s_m: float | Array) -> Array:
        """Pose [..., 3] (x, y, yaw) at a distance along the lane, clamped to its ends."""
        yaw = np.unwrap(self.centerline[:, 2])
        columns = (self.centerline[:, 0], self.centerline[:, 1], yaw)
        return np.stack([np.interp(s_m, self.arc_m, c) for c in columns], axis=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePoint:
    """A position relative to the graph: lane, distance along it, offset to its left."""

    lane: str
    s_m: float
    lateral_m: float
    heading_error_rad: float


class LaneGraph:
    """Lanes by token, with nearest-lane look-up. ``crossings`` are pedestrian-crossing polygons, each [K, 2]."""

    def __init__(self, lanes: dict[str, Lane], crossings: tuple[Array, ...] = ()) -> None:
        self.lanes, self.crossings = lanes, crossings
        owners = [(token, i) for token, lane in lanes.items() for i in range(len(lane.centerline))]
        self._owners = owners
        points = [lane.centerline[:, :2] for lane in lanes.values()]
        self._tree = KDTree(np.concatenate(points)) if points else None

    def nearest(
        self, x_m: float, y_m: float, yaw_rad: float, max_distance_m: float = 4.0, max_heading_rad: float = 0.8
    ) -> LanePoint | None:
        """The lane point closest to a pose among lanes of a similar heading, or None."""
        if self._tree is None:
            return None
        best: LanePoint | None = None
        best_cost = np.inf
        for index in self._tree.query_ball_point([x_m, y_m], max_distance_m):
            token, i = self._owners[index]
            px, py, pyaw = self.lanes[token].centerline[i]
            error = float(wrap_angle(yaw_rad - pyaw))
            if abs(error) > max_heading_rad:
                continue
            dx, dy = x_m - px, y_m - py
            along, lateral = dx * np.cos(pyaw) + dy * np.sin(pyaw), -dx * np.sin(pyaw) + dy * np.cos(pyaw)
            point = LanePoint(
                lane=token, s_m=float(self.lanes[token].arc_m[i] + along), lateral_m=float(lateral), heading_error_rad=error
            )
            # Heading breaks ties inside junctions, where connectors overlap.
            cost = abs(lateral) + abs(along) + 2 * abs(error)
            if cost < best_cost:
                best, best_cost = point, cost
        return best
