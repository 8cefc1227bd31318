"""Things that happen to the ego: another road user gets in its way by a script, and the ego reacts.

A car of the log that is beside the ego's line leaves its own path; where a script needs somebody who is not there, a newcomer is
put on the road, far away when the clip begins, so that nobody appears out of nothing in front of a camera. Beyond the
log both go on in the traffic simulation like everybody else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import quaternion_from_yaw
from dwm.scenario.feasibility import RoadDistance
from dwm.scenario.logged import BoxTable
from dwm.scenario.paths import arc_length, ramp, ramp_slope, seconds, shifted, speed_along
from dwm.scenario.reaction import FRONT_M, Line, Moving
from dwm.scenario.sideways import ROAD_PER_METRE
from dwm.scenario.types import Infeasible
from dwm.scenes.types import AgentTrack, EgoTrack, Scene, SceneMap
from dwm.traffic.populate import KINDS, Kind
from dwm.traffic.simulate import EGO_SIZE_WLH_M

Array = NDArray[np.float64]
VEHICLE_APPEARS_M, SMALL_APPEARS_M = 45.0, 25.0  # nearest distance of a newcomer when the clip begins
SLOWEST_EGO_MPS = 3.0
EVASION_CLEARANCE_M = 0.5
EVASION_MPS2 = 2.5
_MOMENT_S = 0.5  # between the moments at which an event is tried
_KERB_SEARCH_M, _KERB_UNKNOWN_M = 12.0, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomer:
    """A scripted road user at the frames [L] before the end of the log."""

    token: str
    kind: Kind
    centers_m: Array  # [L, 3]
    yaw_rad: Array  # [L]

    def moving(self) -> Moving:
        return Moving(xy_m=self.centers_m[:, :2], yaw_rad=self.yaw_rad, size_wlh_m=np.array(self.kind.size_wlh_m))

    def as_track(self, timestamps_us: NDArray[np.int64]) -> AgentTrack:
        """As if it had been annotated at every frame; ``timestamps_us`` are those of the clip."""
        n = len(self.yaw_rad)
        return AgentTrack(
            instance_token=self.token, category=self.kind.category, detection_class=self.kind.detection_class,
            size_wlh_m=np.array(self.kind.size_wlh_m), timestamps_us=timestamps_us[:n], centers_m=self.centers_m,
            rotations_wxyz=quaternion_from_yaw(self.yaw_rad), velocities_mps=np.full((n, 2), np.nan), attributes=("",) * n,
            num_lidar_pts=np.full(n, -1), num_radar_pts=np.zeros(n, np.int64), visibility=np.full(n, 4), annotation_tokens=("",) * n,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerouted:
    """A road user of the log on another path, at the frames [L] before the end of the log."""

    agent: int  # its place among the scene's
    size_wlh_m: Array
    centers_m: Array  # [L, 3]
    yaw_rad: Array  # [L]
    first: int  # the frame from which it is elsewhere than in the log

    def moving(self) -> Moving:
        return Moving(xy_m=self.centers_m[:, :2], yaw_rad=self.yaw_rad, size_wlh_m=self.size_wlh_m)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When something reaches the ego: where the ego would then be on its line, and how fast."""

    time_s: float  # from the clip's start
    driven_m: float
    speed_mps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where an event is set: the ego's commanded track, the clip's frames before the end of the log, who is there, the map."""

    scene: Scene
    table: BoxTable
    track: EgoTrack
    times_s: Array  # [L] since the track's first pose
    road: RoadDistance
    name: str  # what newcomers' tokens are made from

    def newcomer(self, event: str, kind: Kind, line: Line, s_m: Array, left_m: Array, yaw_rad: Array | None = None) -> Newcomer:
        """Someone at distances [L] along the ego's line and to the left of it; heading as the line, turned by ``yaw_rad``."""
        points, yaw = line.at(s_m, left_m)
        points[:, 2] += kind.size_wlh_m[2] / 2
        token = hashlib.sha256(f"{self.name}/{event}".encode()).hexdigest()[:32]
        return Newcomer(token=token, kind=kind, centers_m=points, yaw_rad=yaw if yaw_rad is None else yaw + yaw_rad)

    def moments(self, earliest_s: float, lasts_s: float, appears_m: float) -> list[Moment]:
        """Every half second from ``earliest_s`` on when an event may reach the ego.

        By then the ego has driven ``appears_m``, it drives fast enough, and the log goes on for ``lasts_s``. Raises Infeasible
        without any.
        """
        end = (float(self.times_s[-1]) if len(self.times_s) else 0.0) - lasts_s
        if earliest_s > end:
            over = f"over at {earliest_s + lasts_s:.1f} s of the clip, the log ends at {end + lasts_s:.1f} s"
            raise Infeasible("after_log", f"the event is {over}")
        own, times = seconds(self.track), np.arange(earliest_s, end + 1e-9, _MOMENT_S)
        driven = np.interp(times, own, arc_length(self.track.ego_to_global))
        speeds = np.interp(times, own, speed_along(self.track))
        far = driven >= appears_m
        if not far.any():
            place = f"where the ego is at {times[-1]:.1f} s is {driven[-1]:.1f} m ahead when the clip begins"
            raise Infeasible("too_near", f"{place}, needs {appears_m:g} m")
        fine = far & (speeds >= SLOWEST_EGO_MPS)
        if not fine.any():
            slow = f"at most {speeds[far].max():.1f} m/s from {times[far][0]:.1f} s on, needs {SLOWEST_EGO_MPS:g} m/s"
            raise Infeasible("ego_too_slow", f"the ego drives {slow} for anything to get in its way")
        return [
            Moment(time_s=t, driven_m=s, speed_mps=v) for t, s, v in np.stack([times, driven, speeds], axis=1)[fine].tolist()
        ]


# Who gets in the way, and the ego's line where it evades sideways (poses [N, 4, 4] of the track), else None.
Happening = tuple[Newcomer | Rerouted, Array | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that may happen at a moment; where there is no room for it then, at a later one."""

    script: Callable[[Stage, Moment, dict[str, float]], Happening]
    earliest: str  # the parameter that says when at the earliest [s]
    lasts_s: Callable[[dict[str, float]], float] = lambda params: 1.0
    appears_m: float = 0.0  # how far ahead at least the place is when the clip begins


def stopped_vehicle(stage: Stage, moment: Moment, params: dict[str, float]) -> Happening:
    """A car stands on the ego's line where the ego would be at the moment; ``hold_s`` later it drives off."""
    kind = KINDS["car"]
    away = np.maximum(stage.times_s - moment.time_s - params["hold_s"], 0.0)
    target = max(moment.speed_mps, 5.0)
    gaining = np.minimum(away, target / 1.5)
    s = moment.driven_m + FRONT_M + kind.size_wlh_m[1] / 2 + 0.75 * gaining**2 + target * (away - gaining)
    return stage.newcomer("stopped_vehicle", kind, Line(stage.track.ego_to_global), s, np.zeros_like(s)), None


def crossing_pedestrian(stage: Stage, moment: Moment, params: dict[str, float]) -> Happening:
    """A pedestrian walks across at ``speed_mps``, entering the ego's corridor ``ttc_s`` before the ego would be there."""
    side = float(np.sign(params["side"]))
    line, place = Line(stage.track.ego_to_global), moment.driven_m + FRONT_M + 0.5
    near, far = (_kerb_m(stage.scene.map, line, place, way) for way in (side, -side))
    corridor = EGO_SIZE_WLH_M[0] / 2 + 0.5
    enters = moment.time_s - params["ttc_s"]
    walked = params["speed_mps"] * (stage.times_s - enters) + near - corridor
    left = side * (near - np.clip(walked, 0.0, near + far))
    turned = np.full_like(left, -side * np.pi / 2)
    return stage.newcomer("crossing_pedestrian", KINDS["pedestrian"], line, np.full_like(left, place), left, turned), None


def debris(stage: Stage, moment: Moment, params: dict[str, float]) -> Happening:
    """Something lies ``left_m`` beside the middle of the ego's line where the ego is at the moment; the ego drives round it.

    nuScenes' debris has no detection class, so what lies there is a traffic cone.
    """
    kind, place, left = KINDS["traffic_cone"], moment.driven_m + FRONT_M, params["left_m"]
    newcomer = stage.newcomer(
        "debris", kind, Line(stage.track.ego_to_global), np.full(len(stage.times_s), place), np.full(len(stage.times_s), left)
    )
    aside = (EGO_SIZE_WLH_M[0] + kind.size_wlh_m[0]) / 2 + EVASION_CLEARANCE_M
    ways = [
        _round(stage.track, moment.driven_m, shift, moment.speed_mps) for shift in sorted((left - aside, left + aside), key=abs)
    ]
    # The shorter way, unless only the other one stays on the road.
    off = [np.nan_to_num(stage.road.of_ego(way)).max() for way in ways]
    return newcomer, ways[1] if off[1] == 0 < off[0] else ways[0]


def _round(track: EgoTrack, place_m: float, shift_m: float, speed_mps: float) -> Array:
    """Poses [N, 4, 4] that are ``shift_m`` to the left while the car passes a place, and back on the line after it."""
    arc = arc_length(track.ego_to_global)
    # The quintic's strongest bend is 5.77 times the shift over the square of its length.
    length = max(ROAD_PER_METRE * abs(shift_m), 12.0, speed_mps * np.sqrt(5.77 * abs(shift_m) / EVASION_MPS2))
    begin, back = place_m - 2.0 - length, place_m + 2 * FRONT_M
    if begin < 0:
        raise Infeasible("too_near", f"the ego would have to evade {-begin:.1f} m before the clip begins")
    out, home = (arc - begin) / length, (arc - back) / length
    shift = shift_m * (ramp(out) - ramp(home))
    return shifted(track.ego_to_global, shift, shift_m * (ramp_slope(out) - ramp_slope(home)) / length)


def _kerb_m(scene_map: SceneMap, line: Line, place_m: float, side: float) -> float:
    """How far from the line the road ends on a side, and a step further; 5 m where the map does not know."""
    away = np.arange(1.5, _KERB_SEARCH_M, 0.25)
    points, _ = line.at(np.full_like(away, place_m), side * away)
    closed = ~scene_map.lookup("drivable", points[:, :2])
    return float(away[int(np.argmax(closed))]) + 0.7 if closed.any() and not closed.all() else _KERB_UNKNOWN_M
