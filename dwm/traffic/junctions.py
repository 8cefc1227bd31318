"""Right of way inside junctions: a vehicle reserves its connector before it enters; first come, first served."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A vehicle that wants to enter a connector."""

    vehicle: int
    connector: str
    must_go: bool  # too close and too fast to stop
    exit_free: bool  # there is room behind the junction


@dataclass(slots=True)
class Reservations:
    """Who holds which connector. ``conflicts`` names the connectors that exclude each other."""

    conflicts: dict[str, frozenset[str]]
    _holders: dict[str, set[int]] = field(default_factory=dict)
    _arrival: dict[tuple[int, str], int] = field(default_factory=dict)
    _clock: int = 0

    def hold(self, vehicle: int, connector: str) -> None:
        self._holders.setdefault(connector, set()).add(vehicle)
        self._arrival.pop((vehicle, connector), None)

    def release(self, vehicle: int, connector: str) -> None:
        self._holders.get(connector, set()).discard(vehicle)
        self._arrival.pop((vehicle, connector), None)

    def forget(self, vehicle: int) -> None:
        """Release everything that a vehicle holds or asked for."""
        for holders in self._holders.values():
            holders.discard(vehicle)
        self._arrival = {key: when for key, when in self._arrival.items() if key[0] != vehicle}

    def decide(self, requests: list[Request], taken: set[str]) -> set[int]:
        """The vehicles that may enter now; they hold their connector. ``taken``: connectors used by an external vehicle.

        Requests are served in the order in which they were first made, and one that waits for a conflicting vehicle
        keeps its place, so that nobody starves; one that waits for room behind the junction does not block others.
        """
        for request in requests:
            key = (request.vehicle, request.connector)
            if key not in self._arrival:
                self._clock += 1
                self._arrival[key] = self._clock
        waiting: set[str] = set()
        granted: set[int] = set()
        for request in sorted(requests, key=lambda r: (not r.must_go, self._arrival[r.vehicle, r.connector])):
            against = self.conflicts.get(request.connector, frozenset())
            busy = bool(against & taken) or any(self._holders.get(c, set()) - {request.vehicle} for c in against)
            if request.must_go or (request.exit_free and not busy and not against & waiting):
                granted.add(request.vehicle)
                self.hold(request.vehicle, request.connector)
            elif request.exit_free:
                waiting.add(request.connector)
        return granted
