"""Where vehicles stop: at a junction that they may not enter yet, or at the end of the road."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dwm.traffic.junctions import Request
from dwm.traffic.obstacles import Blockers

if TYPE_CHECKING:
    from dwm.traffic.vehicles import Vehicles

Array = NDArray[np.float64]
Entry = tuple[str, float, float]  # connector, where along the path it starts and ends
STOP_LINE_M = 1.0


def junction_gaps(vehicles: Vehicles, blockers: Blockers, taken: set[str]) -> Array:
    """Gap [A] to the line where each vehicle must stop, infinite where it may go on; grants and returns reservations."""
    gaps = np.full(len(vehicles.s), np.inf)
    active = [int(i) for i in np.flatnonzero(vehicles.active)]
    _give_way(vehicles, active, taken)
    asked = {i: _next_entry(vehicles, i) for i in active}
    entries: dict[int, tuple[str, float, float]] = {}
    requests: list[Request] = []
    for i in active:
        driver, half = vehicles.drivers[i], vehicles.size[i, 1] / 2
        if driver.stops:
            gaps[i] = driver.end_m - vehicles.s[i] - half
        entry, v = asked[i], vehicles.v[i]
        if entry is None:
            continue
        distance = entry[1] - vehicles.s[i] - half
        if distance < v**2 / 3.0 + 8.0:
            entries[i] = (entry[0], entry[2], distance)
            if _queues(vehicles, i, entry[1], blockers, asked):
                continue
            hurried = v**2 / (2 * max(distance, 0.1)) > 5.0
            free = _exit_free(vehicles, i, entry, blockers)
            requests.append(Request(vehicle=i, connector=entry[0], must_go=bool(hurried), exit_free=free))
    granted = vehicles.reservations.decide(requests, taken)
    for i, (token, end, distance) in entries.items():
        if i in granted:
            vehicles.drivers[i].held.append((token, end))
        else:
            gaps[i] = min(gaps[i], distance + STOP_LINE_M)
    return gaps


def _give_way(vehicles: Vehicles, active: list[int], taken: set[str]) -> None:
    """Return reservations that an external vehicle crosses, where the vehicle can still stop without haste."""
    for i in active if taken else ():
        driver, v = vehicles.drivers[i], vehicles.v[i]
        entries = {token: start for token, start, _ in driver.connectors}
        for token, end in list(driver.held):
            distance = entries.get(token, -np.inf) - vehicles.s[i] - vehicles.size[i, 1] / 2
            if vehicles.reservations.conflicts.get(token, frozenset()) & taken and distance > v**2 / 7.0 + 0.2 * v:
                vehicles.reservations.release(i, token)
                driver.held.remove((token, end))


def _next_entry(vehicles: Vehicles, index: int) -> Entry | None:
    driver, s = vehicles.drivers[index], vehicles.s[index]
    for token, start, end in driver.connectors:
        if start > s - 0.5 and vehicles.reservations.conflicts.get(token) and all(token != h for h, _ in driver.held):
            return token, start, end
    return None


def _queues(vehicles: Vehicles, index: int, start_m: float, blockers: Blockers, asked: dict[int, Entry | None]) -> bool:
    """Whether someone ahead in the same lane still waits for the junction: who cannot enter must not reserve."""
    s = vehicles.s
    ahead = blockers.owner[(blockers.vehicle == index) & (blockers.along_m + s[index] < start_m - 1.0)]
    return any(j >= 0 and (entry := asked.get(int(j))) is not None and entry[1] - s[j] < start_m - s[index] for j in set(ahead))


def _exit_free(vehicles: Vehicles, index: int, entry: Entry, blockers: Blockers) -> bool:
    """Whether no one stands where this vehicle would have to wait behind the junction."""
    _, start, end = entry
    mine = blockers.vehicle == index
    along = vehicles.s[index] + blockers.along_m[mine]
    stands = (blockers.speed_mps[mine] < 1.0) & (along > start) & (along < end + vehicles.size[index, 1] + 3.0)
    return not bool(stands.any())
