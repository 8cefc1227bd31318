"""Labels of a clip as its own cameras and LiDAR would see them from the commanded path.

Boxes, attributes and presence stand in the ``Scenario``. What depends on where the ego is does not: it is recomputed here
for every row that is not the log's own annotation seen from the log's own place (``LabelSource.LOG``).

Who hides whom is read off the boxes. A map knows no buildings, and the layout's imagined wall stands for them only beyond the log
(``LabelSource.SIMULATED``): an agent the log annotated was seen from about here, one that drives on may be anywhere in town.
`roadreel bench labels` holds both choices against rendered truth.

Shapes: A agents of the scenario, F labelled frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.conditioning.layout import LayoutBoxes, LayoutCaster
from dwm.scenario.lidar_counts import FillFactors, class_key, fill_factors, logged_counts, scan_rays
from dwm.scenario.sight import Boxes3D, Sight, Wall, look, visibility_level
from dwm.scenario.types import KEY_FRAME_HZ, LabelSource, Scenario
from dwm.scenes.types import AgentTrack, Scene

Array = NDArray[np.float64]
NEAR_M = 100.0  # things further away are neither measured nor hide anything
_SAME_M = 1e-6
_WALL_COLUMNS = 200  # of an image
NOTHING = LayoutBoxes(
    classes=np.zeros(0, np.int64), centers_m=np.zeros((0, 3)), sizes_wlh_m=np.zeros((0, 3)), yaws_rad=np.zeros(0),
    speeds_mps=np.zeros(0), identities=np.zeros(0),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLabels:
    """What the labels of a clip say beyond the scenario's boxes. Entries of absent or distant agents: 0, NaN or -1."""

    frames: NDArray[np.int64]  # [F] rising; every key frame is among them
    measured: NDArray[np.bool_]  # [A, F] present and near enough to be measured
    visibility: NDArray[np.int8]  # [A, F] nuScenes level 1 to 4
    occlusion: Array  # [A, F] hidden share of what lies in an image; NaN where nothing does
    truncation: Array  # [A, F] share outside every image
    num_lidar_pts: NDArray[np.int32]  # [A, F]
    counted_in_log: NDArray[np.bool_]  # [A, F] num_lidar_pts is the log's own
    velocities_mps: Array  # [A, F, 2] global; NaN where unknown
    seen: NDArray[np.bool_]  # [A] by a camera or a LiDAR ray, in at least one key frame
    notes: tuple[str, ...]


def label_clip(scenario: Scenario, labels_hz: float = KEY_FRAME_HZ, factors: FillFactors | None = None) -> ClipLabels:
    """Labels at the key frames, or at ``labels_hz`` frames a second with the key frames among them.

    ``factors`` of the scene are measured where not given.
    """
    scene, frames = scenario.scene, labelled_frames(scenario, labels_hz)
    logged, looker = _Logged(scene), Looker(scenario)
    factors = factors or fill_factors(logged_counts(scene))
    shape = (len(scenario.agents.instance_tokens), len(frames))
    out = ClipLabels(
        frames=frames, measured=np.zeros(shape, bool), visibility=np.zeros(shape, np.int8), occlusion=np.full(shape, np.nan),
        truncation=np.full(shape, np.nan), num_lidar_pts=np.full(shape, -1, np.int32), counted_in_log=np.zeros(shape, bool),
        velocities_mps=scenario.agents.velocities_mps[:, frames].copy(), seen=np.zeros(shape[0], bool),
        notes=_notes(scenario, logged, factors),
    )  # fmt: skip
    for f, frame in enumerate(frames.tolist()):
        _measure(looker, frame, factors, out, f)
        _keep_logged(scenario, frame, logged, out, f)
    return out


def labelled_frames(scenario: Scenario, labels_hz: float) -> NDArray[np.int64]:
    """Indices [F] of the frames that carry labels: key frames, and every ``fps / labels_hz``-th one above 2 Hz."""
    chosen = scenario.is_key_frame.copy()
    if labels_hz != KEY_FRAME_HZ:
        chosen[:: round(scenario.fps / labels_hz)] = True
    return np.flatnonzero(chosen)


def near_agents(scenario: Scenario, frame: int, range_m: float = NEAR_M) -> NDArray[np.int64]:
    """Indices of the agents present within a range of the ego."""
    agents, ego = scenario.agents, scenario.ego_to_global[frame, :2, 3]
    near = np.linalg.norm(agents.centers_m[:, frame, :2] - ego, axis=-1) < range_m
    return np.flatnonzero(agents.present[:, frame] & near)


class Looker:
    """What the cameras of a scenario see of its agents."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._walls = LayoutCaster(scenario.scene.map)

    def sight(self, frame: int, rows: NDArray[np.int64], wall: bool | None = None) -> Sight:
        """Sight of some agents at a frame; only these hide each other. ``wall``: hide none or all of them, not the simulated."""
        simulated = self.scenario.agents.label_sources[rows, frame] == LabelSource.SIMULATED
        hides = simulated if wall is None else np.full(len(rows), wall)
        cameras, ego = self.scenario.scene.cameras, self.scenario.ego_to_global[frame]
        return look(cameras, ego, boxes_of(self.scenario, frame, rows), self._wall(ego, hides) if hides.any() else None)

    def _wall(self, ego_to_global: Array, hides: NDArray[np.bool_]) -> Wall:
        # The wall is the same in every row of an upright camera's image: two rows are enough to cast.
        layout = self._walls.cast(self.scenario.scene.cameras, ego_to_global, NOTHING, 2, _WALL_COLUMNS)
        return Wall(depth_VW=layout.wall_depth_VW.double().numpy(), hides_A=hides)


def boxes_of(scenario: Scenario, frame: int, rows: NDArray[np.int64]) -> Boxes3D:
    """Boxes of some agents at a frame."""
    agents = scenario.agents
    return Boxes3D(
        centers_m=agents.centers_m[rows, frame], sizes_wlh_m=agents.sizes_wlh_m[rows], yaws_rad=agents.yaws_rad[rows, frame]
    )


def _measure(looker: Looker, frame: int, factors: FillFactors, out: ClipLabels, f: int) -> None:
    """Fills column ``f`` with what the sensors would find."""
    scenario = looker.scenario
    agents, rows = scenario.agents, near_agents(scenario, frame)
    if not len(rows):
        return
    sight = looker.sight(frame, rows)
    rays = scan_rays(scenario.scene.lidar_to_ego, scenario.ego_to_global[frame], boxes_of(scenario, frame, rows))
    rays = np.round(rays * (1 - sight.behind_wall)).astype(np.int64)
    keys = tuple(class_key(agents.detection_classes[i], agents.categories[i]) for i in rows)
    out.measured[rows, f] = True
    out.visibility[rows, f] = visibility_level(sight.visible)
    out.occlusion[rows, f], out.truncation[rows, f] = sight.occlusion, sight.truncation
    out.num_lidar_pts[rows, f] = factors.counts(keys, rays)
    if scenario.is_key_frame[frame]:
        out.seen[rows] |= (sight.visible > 0) | (rays > 0)


class _Logged:
    """Annotations of a log by agent and time."""

    def __init__(self, scene: Scene) -> None:
        self.agents = {agent.instance_token: agent for agent in scene.agents}
        levels = [agent.visibility for agent in scene.agents]
        # Tables made from derived copies hold one level throughout: a placeholder.
        self.knows_visibility = bool(levels) and len(np.unique(np.concatenate(levels))) > 1

    def annotation(self, token: str, timestamp_us: int) -> tuple[AgentTrack, int] | None:
        """The agent and the index of its annotation at exactly this time."""
        agent = self.agents.get(token)
        if agent is None:
            return None
        found = np.flatnonzero(agent.timestamps_us == timestamp_us)
        return (agent, int(found[0])) if len(found) else None


def _keep_logged(scenario: Scenario, frame: int, logged: _Logged, out: ClipLabels, f: int) -> None:
    """Puts the log's own numbers where the box is the log's own annotation."""
    agents, time = scenario.agents, int(scenario.timestamps_us[frame])
    for a in np.flatnonzero(agents.present[:, frame]).tolist():
        found = logged.annotation(agents.instance_tokens[a], time)
        if found is None or np.abs(found[0].centers_m[found[1]] - agents.centers_m[a, frame]).max() > _SAME_M:
            continue
        agent, i = found
        out.velocities_mps[a, f] = agent.velocities_mps[i]
        if agents.label_sources[a, frame] != LabelSource.LOG:
            continue
        out.num_lidar_pts[a, f], out.counted_in_log[a, f] = agent.num_lidar_pts[i], True
        if logged.knows_visibility:
            out.visibility[a, f] = agent.visibility[i]
        out.seen[a] |= bool(agent.num_lidar_pts[i] > 0 or (logged.knows_visibility and agent.visibility[i] > 1))


def _notes(scenario: Scenario, logged: _Logged, factors: FillFactors) -> tuple[str, ...]:
    agents, notes = scenario.agents, []
    if logged.agents and not logged.knows_visibility:
        notes.append("the log's visibility is one level throughout, a placeholder: it is recomputed")
    keys = tuple(class_key(c, n) for c, n in zip(agents.detection_classes, agents.categories, strict=True))
    if missing := factors.missing(keys):
        how = "of all classes" if factors.overall != 1 else "1 (the log has no counts)"
        notes.append(f"LiDAR points per ray were not measured for {', '.join(missing)}: the factor is that {how}")
    return tuple(notes)
