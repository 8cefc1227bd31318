"""Pedestrian crossings: vehicles stop before one while somebody is on it in their way, or waits to step onto it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dwm.traffic import idm
from dwm.traffic.pedestrians import Pedestrians
from dwm.traffic.vehicles import Vehicles

Array = NDArray[np.float64]
BRAKING_MPS2 = 2.5  # who would have to brake harder goes on
LOOKAHEAD_M = 60.0
WAITING_M = 10.0  # beside the path: who waits farther off, beyond other lanes, does not stop anyone
APPROACH_S = 4.0  # who will be in the way this soon is
BESIDE_M = 1.2  # kept beside a pedestrian


def crossing_gaps(vehicles: Vehicles, pedestrians: Pedestrians) -> Array:
    """Gap [A] to the near edge of the crossing that each vehicle must leave to somebody, infinite where it may go on."""
    gaps = np.full(len(vehicles.s), np.inf)
    network = vehicles.network
    if network is None or not network.graph.crossings:
        return gaps
    on_foot = np.flatnonzero(pedestrians.active & (pedestrians.crossing | (pedestrians.waited > 0.0)))
    if len(on_foot) == 0:
        return gaps
    users = network.crossing_of(pedestrians.ahead()[on_foot]), network.crossing_of(pedestrians.xy[on_foot])
    used = np.where(users[0] >= 0, users[0], users[1])
    claimed = set(used[used >= 0].tolist())
    for i in np.flatnonzero(vehicles.active) if claimed else ():
        half, s = vehicles.size[i, 1] / 2, vehicles.s[i]
        for crossing, start, end in vehicles.drivers[i].crossings:
            gap = start - s - half
            yields = vehicles.drivers[i].yields_at
            if crossing not in claimed or gap > LOOKAHEAD_M or gap < 0.0:
                yields.discard(crossing)
                continue
            point = vehicles.paths[i, min(round((start + end) / 2), vehicles.paths.shape[1] - 1)]
            who = on_foot[used == crossing]
            # Once decided, a driver sticks to it.
            stops_in_time = gap - idm.IDM.standstill_gap_m > vehicles.v[i] ** 2 / (2 * BRAKING_MPS2)
            if not _in_the_way(point, vehicles.size[i, 0] / 2, pedestrians, who).any():
                yields.discard(crossing)
            elif crossing in yields or stops_in_time:
                yields.add(crossing)
                gaps[i] = min(gaps[i], gap)
    return gaps


def _in_the_way(point: Array, half_width_m: float, pedestrians: Pedestrians, who: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the pedestrians ``who`` are, or soon will be, in the strip that a vehicle sweeps at a path point."""
    x, y, yaw = point[:3]
    left = np.array([-np.sin(yaw), np.cos(yaw)])
    aside = (pedestrians.xy[who] - [x, y]) @ left
    heading = np.stack([np.cos(pedestrians.yaw[who]), np.sin(pedestrians.yaw[who])], axis=-1)
    sideways = np.maximum(pedestrians.v[who], 0.8) * (heading @ left)
    strip = half_width_m + BESIDE_M
    approaches = aside * sideways < 0
    soon = approaches & (np.abs(aside) - strip < np.abs(sideways) * APPROACH_S)
    waits = approaches & (pedestrians.waited[who] > 0) & (np.abs(aside) < WAITING_M)
    return (np.abs(aside) < strip) | soon | waits
