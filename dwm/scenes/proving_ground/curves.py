"""Paths made of straight lines and circular arcs, as lanes of a map expansion are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import wrap_angle

Array = NDArray[np.float64]
Pose = tuple[float, float, float]  # x, y, yaw
_SHORTEST_TANGENT_M = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A straight line (curvature 0) or a circular arc (curvature 1/radius, positive to the left)."""

    start: Pose
    length_m: float
    curvature: float

    def poses_at(self, s_m: Array) -> Array:
        """Poses [..., 3] at distances [...] along the piece."""
        x, y, yaw = self.start
        if abs(self.curvature) < 1e-9:
            return np.stack([x + s_m * np.cos(yaw), y + s_m * np.sin(yaw), np.full_like(s_m, yaw)], -1)
        turned = yaw + s_m * self.curvature
        dx, dy = np.sin(turned) - np.sin(yaw), np.cos(yaw) - np.cos(turned)
        return np.stack([x + dx / self.curvature, y + dy / self.curvature, wrap_angle(turned)], -1)

    @property
    def end(self) -> Pose:
        x, y, yaw = self.poses_at(np.array(self.length_m))
        return float(x), float(y), float(wrap_angle(yaw))


def sample(pieces: tuple[Piece, ...], spacing_m: float) -> Array:
    """Poses [P, 3] along a path, ends included, at most ``spacing_m`` apart, without repeated points."""
    runs = []
    for piece in pieces:
        count = max(int(np.ceil(piece.length_m / spacing_m)), 1)
        runs.append(piece.poses_at(np.linspace(0.0, piece.length_m, count + 1))[bool(runs) :])
    return np.concatenate(runs)


def straight(start: Pose, length_m: float) -> Piece:
    return Piece(start=start, length_m=length_m, curvature=0.0)


def connect(start: Pose, end: Pose) -> tuple[Piece, ...]:
    """A smooth path between two poses: straight, fillet, straight where their lines meet ahead; otherwise two arcs."""
    turn = float(wrap_angle(end[2] - start[2]))
    if abs(turn) > 0.02:
        before, after = _distances_to_meeting_point(start, end)
        tangent = min(before, after)
        if tangent > _SHORTEST_TANGENT_M:
            return _fillet(start, turn, tangent, before, after)
    return _biarc(start, end)


def _distances_to_meeting_point(start: Pose, end: Pose) -> tuple[float, float]:
    along_start, along_end = _unit(start[2]), _unit(end[2])
    before, after = np.linalg.solve(np.stack([along_start, along_end], -1), np.array(end[:2]) - np.array(start[:2]))
    return float(before), float(after)


def _fillet(start: Pose, turn: float, tangent: float, before: float, after: float) -> tuple[Piece, ...]:
    """Arc of radius tangent / tan(turn / 2) touching both lines at the same distance from where they meet."""
    curvature = np.tan(turn / 2) / tangent
    pieces: list[Piece] = []
    for length, bend in ((before - tangent, 0.0), (turn / curvature, curvature), (after - tangent, 0.0)):
        if length > 1e-6:
            at = pieces[-1].end if pieces else start
            pieces.append(Piece(start=at, length_m=float(length), curvature=float(bend)))
    return tuple(pieces)


def _biarc(start: Pose, end: Pose) -> tuple[Piece, ...]:
    """Two arcs of equal tangent length; the join solves |v|^2 = 2 d v.(t1 + t2) + 2 d^2 (1 - t1.t2)."""
    t1, t2 = _unit(start[2]), _unit(end[2])
    v = np.array(end[:2]) - np.array(start[:2])
    a, b, c = 2 * (1 - float(t1 @ t2)), 2 * float(v @ (t1 + t2)), -float(v @ v)
    d = -c / b if a < 1e-12 else (-b + np.sqrt(b * b - 4 * a * c)) / (2 * a)
    join = (np.array(start[:2]) + np.array(end[:2]) + d * (t1 - t2)) / 2
    first = _arc_to(start, join)
    return first, _arc_to(first.end, np.array(end[:2]))


def _arc_to(start: Pose, target: Array) -> Piece:
    chord = target - np.array(start[:2])
    distance = float(np.linalg.norm(chord))
    half = float(wrap_angle(np.arctan2(chord[1], chord[0]) - start[2]))
    if abs(half) < 1e-7:
        return Piece(start=start, length_m=distance, curvature=0.0)
    curvature = 2 * np.sin(half) / distance
    return Piece(start=start, length_m=float(2 * half / curvature), curvature=float(curvature))


def _unit(yaw: float) -> Array:
    return np.array([np.cos(yaw), np.sin(yaw)])
