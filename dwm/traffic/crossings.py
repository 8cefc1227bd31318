"""Pedestrian crossings: vehicles stop before one while somebody is on it in their way, or waits to step onto it."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
SLOWEST_MPS = 0.8  # somebody who stands for a moment is taken to walk on


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
    claims: dict[int, list[Walker]] = {}
    for k, crossing in zip(on_foot, used, strict=True):
        if crossing >= 0:
            claims.setdefault(int(crossing), []).append(_walker(pedestrians, int(k)))
    for i in np.flatnonzero(vehicles.active) if claims else ():
        driver, half, s = vehicles.drivers[i], vehicles.size[i, 1] / 2, vehicles.s[i]
        for crossing, start, end in driver.crossings:
            gap = start - s - half
            if crossing not in claims or gap > LOOKAHEAD_M or gap < 0.0:
                driver.yields_at.discard(crossing)
                continue
            point = vehicles.paths[i, min(round((start + end) / 2), vehicles.paths.shape[1] - 1)]
            # Once decided, a driver sticks to it.
            stops_in_time = gap - idm.IDM.standstill_gap_m > vehicles.v[i] ** 2 / (2 * BRAKING_MPS2)
            if not any(_in_the_way(point, vehicles.size[i, 0] / 2, walker) for walker in claims[crossing]):
                driver.yields_at.discard(crossing)
            elif crossing in driver.yields_at or stops_in_time:
                driver.yields_at.add(crossing)
                gaps[i] = min(gaps[i], gap)
    return gaps


@dataclass(frozen=True, slots=True, kw_only=True)
class Walker:
    """A pedestrian on a crossing or about to step onto it."""

    x_m: float
    y_m: float
    vx_mps: float
    vy_mps: float
    waits: bool


def _walker(pedestrians: Pedestrians, k: int) -> Walker:
    speed, yaw = max(float(pedestrians.v[k]), SLOWEST_MPS), float(pedestrians.yaw[k])
    x, y = pedestrians.xy[k].tolist()
    waits = bool(pedestrians.waited[k] > 0.0)
    return Walker(x_m=x, y_m=y, vx_mps=speed * math.cos(yaw), vy_mps=speed * math.sin(yaw), waits=waits)


def _in_the_way(point: Array, half_width_m: float, walker: Walker) -> bool:
    """Whether somebody is, or soon will be, in the strip that a vehicle sweeps at a path point."""
    x, y, yaw = point[:3].tolist()
    cos, sin = math.cos(yaw), math.sin(yaw)
    aside = -(walker.x_m - x) * sin + (walker.y_m - y) * cos
    sideways = -walker.vx_mps * sin + walker.vy_mps * cos
    strip = half_width_m + BESIDE_M
    if abs(aside) < strip:
        return True
    if aside * sideways >= 0:
        return False
    return abs(aside) - strip < abs(sideways) * APPROACH_S or (walker.waits and abs(aside) < WAITING_M)
