"""What happens after the log ends: the ego and the agents go on by the traffic simulation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import rotation_from_quaternion, rotation_from_yaw, wrap_angle, yaw_from_rotation
from dwm.scenario.entrances import VISIBLE_M, WAITING, Entrances, LogTraffic, entropy
from dwm.scenario.feasibility import ego_boxes
from dwm.scenario.logged import BoxTable
from dwm.scenario.upsampling import at_frames, step_times_us, stride_of
from dwm.scenes.types import AgentTrack, EgoTrack, Scene
from dwm.traffic.drivable import DrivableField, drivable_field
from dwm.traffic.simulate import EGO_SIZE_WLH_M, Simulation, ego_at, rear_axle_poses
from dwm.traffic.types import AgentSpec, Behaviour, Rules

Array = NDArray[np.float64]
RULES = Rules(lane_changes=True, stop_at_crossings=True)
BLEND_S = 2.0
LONG_TRACK_M = 20.0  # shorter tracks do not tell on which side of the road somebody drives
DECAY_S = 3.0
STANDING_MPS = 0.3
CRAWLING_MPS, START_AGAIN_MPS = 3.0, 6.0  # an ego that never got faster queued or stood
RASTER_NOTE = (
    "no lanes near the ego at the end of the log: it follows the drivable area, {:.1f} m from its edge as in the log where there is "
    "room, and stops where that ends; lanes, right of way and crossings are unknown"
)
NO_LANE_NOTE = "no lane near the ego at the end of the log: it goes on at constant speed with a turn rate decaying over 3 s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Continued:
    """Agents over the simulated frames [K]; the first ``len(known)`` rows are scene agents, the rest entered later."""

    known: tuple[int, ...]  # indices into scene.agents
    specs: tuple[AgentSpec, ...]  # [A]
    xy_m: Array  # [A, K, 2]
    yaw_rad: Array  # [A, K]
    present: NDArray[np.bool_]  # [A, K]
    ego_to_global: Array  # [K, 4, 4]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EgoState:
    """Ego at the end of the log."""

    pose: Array  # [4, 4]
    speed_mps: float
    yaw_rate_radps: float
    desired_mps: float  # the speed that the log rarely exceeded while moving (90th percentile), or 0 where it never moved


def ego_state(track: EgoTrack, timestamp_us: int) -> EgoState:
    """Pose, and speed and turn rate over the last 0.6 s before a time."""
    pose = track.at(np.array([timestamp_us]))[0]
    times = (track.timestamps_us - track.timestamps_us[0]) * 1e-6
    recent = np.flatnonzero((track.timestamps_us <= timestamp_us) & (track.timestamps_us >= timestamp_us - 600_000))
    speed = rate = 0.0
    if len(recent) > 1:
        a, b = recent[0], recent[-1]
        heading = yaw_from_rotation(pose)
        along = (track.ego_to_global[recent, :2, 3] - pose[:2, 3]) @ np.array([np.cos(heading), np.sin(heading)])
        span = times[b] - times[a]
        # A parabola: the speed at the end, not the mean, when the ego brakes.
        fit = np.polyfit(times[recent] - times[b], along, 2 if len(recent) > 4 else 1)
        speed = float(fit[-2])
        turned = wrap_angle(yaw_from_rotation(track.ego_to_global[b]) - yaw_from_rotation(track.ego_to_global[a]))
        rate = float(turned / span)
    steps = np.linalg.norm(np.diff(track.ego_to_global[:, :2, 3], axis=0), axis=1) / np.maximum(np.diff(times), 1e-6)
    moving = steps[steps > 1.0]
    return EgoState(
        pose=pose,
        speed_mps=max(speed, 0.0),
        yaw_rate_radps=rate,
        desired_mps=float(np.percentile(moving, 90)) if len(moving) else 0.0,
    )


def turn_rate_path(state: EgoState, elapsed_s: Array) -> Array:
    """Poses [K, 4, 4] at constant speed with a turn rate that falls linearly to 0 over 3 s; standing stays standing."""
    fine = np.linspace(0.0, max(float(elapsed_s[-1]), 1e-6), max(int(elapsed_s[-1] * 200), 1) + 1)
    within = np.minimum(fine, DECAY_S)
    yaw0 = float(yaw_from_rotation(state.pose))
    speed = state.speed_mps if state.speed_mps > STANDING_MPS else 0.0
    yaw = yaw0 + (state.yaw_rate_radps if speed else 0.0) * (within - within**2 / (2 * DECAY_S))
    step = np.diff(fine)
    middle = (yaw[1:] + yaw[:-1]) / 2
    x = np.concatenate([[0.0], np.cumsum(speed * np.cos(middle) * step)]) + state.pose[0, 3]
    y = np.concatenate([[0.0], np.cumsum(speed * np.sin(middle) * step)]) + state.pose[1, 3]
    x, y, yaw = (np.interp(elapsed_s, fine, column) for column in (x, y, yaw))
    return _with_attitude(state.pose, x, y, yaw)


def continue_scene(
    scene: Scene,
    table: BoxTable,
    frame: int,
    timestamps_us: NDArray[np.int64],
    seed: int,
    fps: float,
    moved: EgoTrack | None = None,
) -> Continued:
    """Simulate from one frame of the log on.

    ``timestamps_us`` [K] start at that frame, whose boxes in ``table`` are the initial state. The ego goes on from where the
    log left it, or from the end of ``moved``, and takes part in the traffic like everybody else.
    """
    graph = scene.map.lane_graph if scene.map.lane_graph is not None and scene.map.lane_graph.lanes else None
    field = drivable_field(scene.map)
    desired = ego_state(scene.ego, int(timestamps_us[0])).desired_mps
    state = replace(ego_state(moved or scene.ego, int(timestamps_us[0])), desired_mps=desired)
    ego, notes = _ego_agent(scene, state, field)
    ego_path = turn_rate_path(state, (timestamps_us - timestamps_us[0]) * 1e-6) if ego is None else None
    simulation = Simulation(graph, np.random.default_rng(entropy(scene, seed, "traffic")), rules=RULES, field=field)
    known = tuple(int(i) for i in np.flatnonzero(table.present[:, frame]))
    if ego is not None:
        simulation.add(ego)
    else:
        # The ego's draw is consumed all the same: agents choose the same routes with and without it.
        simulation.rng.integers(2**63)
    first = len(simulation.specs)
    entrances = Entrances(scene, seed)
    for i in known:
        simulation.add(_agent_spec(scene, i, table, frame, fps, field, entrances.log))
    steps = step_times_us(timestamps_us, stride := stride_of(fps))
    coarse_path = turn_rate_path(state, (steps - steps[0]) * 1e-6) if ego is None else None
    centres = ego_boxes(coarse_path)[0] if coarse_path is not None else None
    states = []
    for k, now in enumerate(steps):
        if k:
            outside = ego_at(coarse_path, steps, k - 1) if coarse_path is not None else None
            simulation.step(float(now - steps[k - 1]) * 1e-6, outside)
        xy, yaw, speed, present = simulation.state()
        here = centres[k] if centres is not None else xy[0]
        for slot in np.flatnonzero(present & (np.hypot(*(xy - here).T) > VISIBLE_M)):
            simulation.remove(int(slot))
            present[slot] = False
        states.append((xy, yaw, speed, present))
        if 0 < k < len(steps) - 1 and k % max(round(fps / stride), 1) == 0:
            entrances.admit(simulation, here, xy, present, first)
    xy, yaw, present = at_frames(*_stacked(states), steps, timestamps_us)
    path = ego_path if ego_path is not None else _blended(np.column_stack([xy[0], yaw[0]]), state.pose, timestamps_us)
    return Continued(
        known=known, specs=tuple(simulation.specs[first:]), xy_m=xy[first:], yaw_rad=yaw[first:], present=present[first:],
        ego_to_global=path, notes=notes,
    )  # fmt: skip


def _stacked(states: list[tuple[Array, Array, Array, NDArray[np.bool_]]]) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """States of a growing number of agents as [A, C, ...]; whoever is yet to come waits where it will enter."""
    agents, steps = len(states[-1][0]), len(states)
    xy, yaw, speed = np.zeros((agents, steps, 2)), np.zeros((agents, steps)), np.zeros((agents, steps))
    present = np.zeros((agents, steps), dtype=bool)
    known = 0
    for k, (p, h, v, there) in enumerate(states):
        xy[: len(p), k], yaw[: len(p), k], speed[: len(p), k], present[: len(p), k] = p, h, v, there
        xy[known : len(p), :k], yaw[known : len(p), :k] = p[known:, None], h[known:, None]
        known = len(p)
    return xy, yaw, speed, present


def _ego_agent(scene: Scene, state: EgoState, field: DrivableField | None) -> tuple[AgentSpec | None, tuple[str, ...]]:
    """The ego as a vehicle in traffic, on a lane or along the drivable area; None where neither is near."""
    graph = scene.map.lane_graph
    centre, yaw = (v[0] for v in ego_boxes(state.pose[None]))
    lane = graph is not None and graph.nearest(float(centre[0]), float(centre[1]), float(yaw)) is not None
    if not lane and (field is None or not field.on_road(centre[None])[0]):
        return None, (NO_LANE_NOTE,)
    desired = state.desired_mps if state.desired_mps > CRAWLING_MPS else START_AGAIN_MPS
    clearance, side = 0.0, 1.0
    if not lane and field is not None:
        if max(state.desired_mps, state.speed_mps) <= STANDING_MPS:
            return None, (NO_LANE_NOTE,)
        track = scene.ego.ego_to_global
        poses = np.column_stack([track[:, :2, 3], yaw_from_rotation(track)])
        clearance, side = _place_on_road(scene, poses, EGO_SIZE_WLH_M[0] / 2, field)
    spec = AgentSpec(
        token="ego", category="vehicle.car", detection_class="car", size_wlh_m=EGO_SIZE_WLH_M, x_m=float(centre[0]),
        y_m=float(centre[1]), yaw_rad=float(yaw), speed_mps=state.speed_mps, behaviour="lane" if lane else "free",
        desired_speed_mps=max(desired, state.speed_mps * 0.9), stops_at_end=True, clearance_m=clearance, edge_side=side,
    )  # fmt: skip
    return spec, () if lane else (RASTER_NOTE.format(clearance),)


def _blended(ego_xyyaw: Array, pose: Array, timestamps_us: NDArray[np.int64]) -> Array:
    """Ego poses [K, 4, 4] that start exactly at ``pose``; what the lane match got wrong fades over 2 s."""
    poses = rear_axle_poses(ego_xyyaw[:, :2], ego_xyyaw[:, 2])
    u = np.clip((timestamps_us - timestamps_us[0]) * 1e-6 / BLEND_S, 0.0, 1.0)
    fade = 1 - u**3 * (10 - 15 * u + 6 * u**2)
    x = poses[:, 0, 3] + fade * (pose[0, 3] - poses[0, 0, 3])
    y = poses[:, 1, 3] + fade * (pose[1, 3] - poses[0, 1, 3])
    error = float(wrap_angle(yaw_from_rotation(pose) - ego_xyyaw[0, 2]))
    return _with_attitude(pose, x, y, ego_xyyaw[:, 2] + fade * error)


def _with_attitude(pose: Array, x_m: Array, y_m: Array, yaw_rad: Array) -> Array:
    """Planar poses with the height, roll and pitch of ``pose``."""
    out = np.repeat(pose[None], len(x_m), axis=0)
    out[:, 0, 3], out[:, 1, 3] = x_m, y_m
    out[:, :3, :3] = rotation_from_yaw(yaw_rad - yaw_from_rotation(pose)) @ pose[:3, :3]
    return out


def _agent_spec(
    scene: Scene, index: int, table: BoxTable, frame: int, fps: float, field: DrivableField | None, log: LogTraffic
) -> AgentSpec:
    """How a logged agent goes on."""
    agent = scene.agents[index]
    speed = _speed(table, index, frame, fps)
    behaviour, desired = _behaviour(scene, agent, table, index, frame, speed, log)
    x, y = table.centers_m[index, frame, :2]
    w, length, h = (float(v) for v in agent.size_wlh_m)
    speed = speed if behaviour != "static" else 0.0
    clearance, side = 0.0, 1.0
    if behaviour == "free" and field is not None:
        yaws = yaw_from_rotation(rotation_from_quaternion(agent.rotations_wxyz))
        clearance, side = _place_on_road(scene, np.column_stack([agent.centers_m[:, :2], yaws]), w / 2, field)
    return AgentSpec(
        token=agent.instance_token, category=agent.category, detection_class=agent.detection_class, size_wlh_m=(w, length, h),
        x_m=float(x), y_m=float(y), yaw_rad=float(table.yaws_rad[index, frame]), speed_mps=speed,
        behaviour=behaviour, desired_speed_mps=desired, clearance_m=clearance, edge_side=side,
    )  # fmt: skip


def _place_on_road(scene: Scene, poses: Array, half_width_m: float, field: DrivableField) -> tuple[float, float]:
    """Distance from the road's edge and the side it is on (1 right, -1 left) that a track [N, 3] kept."""
    usual = driving_side(scene.location)
    there = poses[field.on_road(poses[:, :2])]
    if len(there) == 0:
        return 0.0, usual
    far = float(np.linalg.norm(there[:, :2] - there[0, :2], axis=1).max()) > LONG_TRACK_M
    side = float(np.median(field.edge_side(there)))
    return field.preferred_clearance_m(there[:, :2], half_width_m), side if far and abs(side) > 0.3 else usual


def driving_side(location: str) -> float:
    """Which side the kerb is on in a nuScenes location: 1 right; -1 left, in Singapore."""
    return -1.0 if location.startswith("singapore") else 1.0


def _behaviour(
    scene: Scene, agent: AgentTrack, table: BoxTable, index: int, frame: int, speed_mps: float, log: LogTraffic
) -> tuple[Behaviour, float]:
    """Parked and standing things stay; a vehicle with a driver that merely stopped in a lane (at a light) drives on."""
    group = agent.category.split(".")[0]
    graph = scene.map.lane_graph
    if group in ("human", "animal"):
        return ("pedestrian", max(speed_mps, 0.8)) if speed_mps > STANDING_MPS else ("static", 0.0)
    if group != "vehicle":
        return "static", 0.0
    (x, y), yaw = table.centers_m[index, frame, :2], float(table.yaws_rad[index, frame])
    point = graph.nearest(float(x), float(y), yaw) if graph is not None else None
    waits = table.attributes[index][frame] in WAITING
    if speed_mps <= STANDING_MPS and not (waits and point is not None and abs(point.lateral_m) < 1.2):
        return "static", 0.0
    usual = float(np.median(log.speeds_mps)) if len(log.speeds_mps) else 7.0
    slowest = 4.0 if agent.category == "vehicle.bicycle" else float(np.clip(usual, 4.0, 13.0))
    desired = max(speed_mps, slowest)
    return ("lane", desired) if point is not None else ("free", desired)


def _speed(table: BoxTable, index: int, frame: int, fps: float) -> float:
    """Speed along the heading over up to the last half second of the table."""
    back = frame
    while back > 0 and frame - back < fps / 2 and table.present[index, back - 1]:
        back -= 1
    if back == frame:
        return 0.0
    moved = table.centers_m[index, frame, :2] - table.centers_m[index, back, :2]
    yaw = table.yaws_rad[index, frame]
    return max(float(moved @ np.array([np.cos(yaw), np.sin(yaw)])) * fps / (frame - back), 0.0)
