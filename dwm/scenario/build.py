"""From a scene, a perturbation and a seed to a scenario, or to the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.footprints import rectangles
from dwm.scenario.agents import finished, joined
from dwm.scenario.conditions import conditions_of, new_conditions
from dwm.scenario.continuation import Continued, continue_scene
from dwm.scenario.events import Event, Newcomer, Rerouted, Stage
from dwm.scenario.feasibility import (
    LIMITS,
    NEAR_ROAD_M,
    Limits,
    RoadDistance,
    Violation,
    check_all,
    check_drivable,
    overlaps,
    smoothed,
)
from dwm.scenario.followers import brake_followers, ego_as_leader
from dwm.scenario.logged import BoxTable, copied, empty_table, extended, log_boxes, rerouted
from dwm.scenario.perturbations import checked_parts, horizon, perturb
from dwm.scenario.reaction import Moving, react
from dwm.scenario.types import AgentBoxes, Infeasible, LabelSource, Perturbation, Rejection, Scenario
from dwm.scenes.prompts import scene_prompt
from dwm.scenes.types import EgoTrack, Scene

Array = NDArray[np.float64]
MOVED = 1e-6  # poses that differ by less are the same
_MOMENTS_TRIED = 8  # of those at which an event may happen
_HEEDED_AT_MOST = 4  # agents of the log that a moved ego slows down for
SMOOTHED_AT_MOST_M = 0.25  # a path that has to be moved further to become drivable is another path


def build_scenario(
    scene: Scene,
    perturbation: Perturbation,
    seed: int,
    *,
    duration_s: float = 60.0,
    fps: float = 12.0,
    start_s: float = 0.0,
    limits: Limits = LIMITS,
) -> Scenario | Rejection:
    """A clip of ``duration_s`` from the key frame nearest to ``start_s``, or why it is not feasible.

    The same arguments give the same arrays. Raises InputError for a clip without frames or a start beyond the log.
    """
    return ScenarioBuilder(scene, seed, duration_s=duration_s, fps=fps, start_s=start_s, limits=limits).build(perturbation)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Baseline:
    """The clip without a change, and on for as long as a faster ego needs."""

    track: EgoTrack
    after: Continued | None  # the traffic beyond the log, where the clip reaches that far
    notes: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Draft:
    """A scenario in the making."""

    scene: Scene  # with the newcomers among its agents
    table: BoxTable
    ego: Array  # [T, 4, 4]
    notes: tuple[str, ...]
    rerouted: list[int] = field(default_factory=list)  # agents of the log that left their paths


class ScenarioBuilder:
    """All scenarios of one clip: they share the log's boxes and the baseline, which cost as much as a scenario."""

    def __init__(
        self,
        scene: Scene,
        seed: int,
        *,
        duration_s: float = 60.0,
        fps: float = 12.0,
        start_s: float = 0.0,
        limits: Limits = LIMITS,
    ) -> None:
        self.scene, self.seed, self.fps, self.limits = scene, seed, fps, limits
        self.timestamps_us, self.log_end = _timeline(scene, duration_s, fps, start_s)
        self.frames = len(self.timestamps_us)
        self._log_times_s = (self.timestamps_us[: self.log_end] - self.timestamps_us[0]) * 1e-6
        self._table = log_boxes(scene, self.timestamps_us[: self.log_end], self.frames)
        self._road = RoadDistance(scene.map)
        self._baselines: dict[int, _Baseline] = {}

    def build(self, perturbation: Perturbation) -> Scenario | Rejection:
        """The clip under a change, or why it is not feasible."""
        try:
            return self._build(perturbation)
        except Infeasible as reason:
            return Rejection(
                scene=self.scene.name, perturbation=perturbation, seed=self.seed, reason=reason.reason, detail=reason.detail
            )

    def _build(self, perturbation: Perturbation) -> Scenario:
        base = self._baseline(horizon(perturbation))
        baseline = base.track.ego_to_global[: self.frames]
        ego = perturb(base.track, self.timestamps_us, perturbation, self.scene.map)
        parts = checked_parts(perturbation)
        moved = _differs(ego, baseline)
        if any(kind.move for _, kind, _ in parts) and not moved.any():
            much = np.abs(ego - baseline).max()
            raise Infeasible("no_effect", f"the ego path changes by {much:.1e} m, needs more than {MOVED:g} m: it hardly moves")
        if moved.any() and not moved[: self.log_end].any():
            begins, ends = np.argmax(moved) / self.fps, self.log_end / self.fps
            raise Infeasible("after_log", f"the path changes from {begins:.1f} s of the clip on, the log ends at {ends:.1f} s")
        before = self._logged_overlaps(baseline)
        draft = _Draft(scene=self.scene, table=copied(self._table), ego=ego, notes=base.notes)
        if any(kind.yields for _, kind, _ in parts):
            self._keep_distance(draft, before)
        for name, kind, params in parts:
            if kind.event is not None:
                self._happen(draft, name, kind.event, params)
        self._react(draft, baseline)
        self._leave_early(draft, baseline)
        agents = self._agents(draft, baseline, base)
        ignored = np.zeros_like(agents.present)
        index = {token: i for i, token in enumerate(agents.instance_tokens)}
        for i, agent in enumerate(self.scene.agents):
            if agent.instance_token in index and i not in draft.rerouted:
                ignored[index[agent.instance_token]] = before[i]
        # The log itself happened: only what we made is judged.
        moved = _differs(draft.ego, baseline)
        first = int(np.argmax(moved)) if moved.any() else self.log_end
        self._make_feasible(draft, agents, baseline, ignored, first)
        conditions, already = new_conditions(self.scene, conditions_of(perturbation))
        return Scenario(
            scene=self.scene, perturbation=perturbation, seed=self.seed, fps=self.fps, timestamps_us=self.timestamps_us,
            ego_to_global=draft.ego, baseline_ego_to_global=baseline, agents=agents, is_key_frame=key_frames(self.frames, self.fps),
            log_end_index=self.log_end, prompt=scene_prompt(self.scene, [c.name for c in conditions]),
            notes=draft.notes + already,
        )  # fmt: skip

    def _baseline(self, multiple: float) -> _Baseline:
        """The ego path without a change, long enough for a path that uses ``multiple`` of it."""
        # A path that is changed within the log leaves the baseline at its end.
        count = max(self.frames, int(np.ceil(self.log_end * multiple)) + 2)
        if count not in self._baselines:
            times = self.timestamps_us[0] + _steps(count, self.fps)
            self._baselines[count] = _drive_on(self.scene, self._table, times, self.log_end, self.seed, self.fps)
        return self._baselines[count]

    def _logged_overlaps(self, ego: Array) -> NDArray[np.bool_]:
        """Overlaps [A, T] of the log's own annotations with an ego path; those with the logged one are noise, not collisions."""
        if not self.scene.agents:
            return np.zeros((0, self.frames), dtype=bool)
        sizes, table = np.stack([a.size_wlh_m for a in self.scene.agents]), self._table
        return overlaps(ego, table.centers_m, table.yaws_rad, sizes, table.present, self.limits.clearance_m)

    def _keep_distance(self, draft: _Draft, before: NDArray[np.bool_]) -> None:
        """An ego that would drive into the log's traffic on its new line slows down for it, where that helps."""
        track = EgoTrack(timestamps_us=self.timestamps_us, ego_to_global=draft.ego.copy())
        heeded: list[int] = []
        for _ in range(_HEEDED_AT_MOST):
            hit = self._logged_overlaps(draft.ego)[:, : self.log_end] & ~before[:, : self.log_end]
            new = [i for i in np.flatnonzero(hit.any(axis=1)).tolist() if i not in heeded]
            if not new:
                break
            heeded.append(min(new, key=lambda i: int(np.argmax(hit[i]))))
            others = [_moving(draft, i, self.log_end) for i in heeded]
            draft.ego[: self.log_end] = react(track, self._log_times_s, others).ego_to_global
        draft.notes += tuple(f"the ego slows down for {self.scene.agents[i].instance_token}" for i in heeded)

    def _happen(self, draft: _Draft, name: str, event: Event, params: dict[str, float]) -> None:
        """Let an event happen at the first moment with room for it; logged traffic and the ego react to it."""
        track = EgoTrack(timestamps_us=self.timestamps_us, ego_to_global=draft.ego)
        stage = Stage(
            scene=draft.scene, table=draft.table, track=track, times_s=self._log_times_s, road=self._road,
            name=f"{self.scene.token}/{self.seed}",
        )  # fmt: skip
        moments = stage.moments(params[event.earliest], event.lasts_s(params), event.appears_m)
        why: Infeasible | None = None
        for moment in moments[:_MOMENTS_TRIED]:
            try:
                actor, evading = event.script(stage, moment, params)
                table, braking = self._met(draft, actor)
            except Infeasible as reason:
                why = why or reason
                continue
            break
        else:
            assert why is not None
            raise why
        draft.table, who = table, "somebody new"
        if isinstance(actor, Newcomer):
            draft.table = extended(table, actor.centers_m, actor.yaw_rad)
            draft.scene = replace(draft.scene, agents=(*draft.scene.agents, actor.as_track(self.timestamps_us)))
        else:
            draft.rerouted.append(actor.agent)
            who = f"{draft.scene.agents[actor.agent].instance_token} leaves its logged path"
        draft.notes += (f"{name} at {moment.time_s:.1f} s: {who}",)
        draft.notes += tuple(f"{self.scene.agents[i].instance_token} brakes for {name}" for i in braking)
        if evading is None:
            others = [actor.moving(), *(_moving(draft, i, self.log_end) for i in braking)]
            evading = draft.ego.copy()
            evading[: self.log_end] = react(track, self._log_times_s, others).ego_to_global
        draft.ego = evading

    def _met(self, draft: _Draft, actor: Newcomer | Rerouted) -> tuple[BoxTable, list[int]]:
        """The boxes once traffic brakes for somebody scripted, and who brakes; raises Infeasible where there is no room."""
        table, first = copied(draft.table), 0
        if isinstance(actor, Rerouted):
            first = actor.first
            rerouted(table, actor.agent, first, actor.centers_m, actor.yaw_rad)
        braking = brake_followers(self.scene, table, actor.moving(), self.fps, first)
        self._has_room(draft.scene, table, actor)
        return table, braking

    def _has_room(self, scene: Scene, table: BoxTable, actor: Newcomer | Rerouted) -> None:
        """Raises Infeasible where somebody scripted would be in somebody else or off the road."""
        first, own = (actor.first, actor.agent) if isinstance(actor, Rerouted) else (0, -1)
        moving, frames = actor.moving(), len(actor.yaw_rad)
        here, size = moving.xy_m, moving.size_wlh_m
        for i, agent in enumerate(scene.agents):
            if i == own:
                continue
            reach = (np.hypot(*size[:2]) + np.hypot(*agent.size_wlh_m[:2])) / 2
            near = np.linalg.norm(np.nan_to_num(table.centers_m[i, :frames, :2], nan=1e9) - here, axis=1) < reach
            close = first + np.flatnonzero((near & table.present[i, :frames])[first:])
            ours = rectangles(here[close], moving.yaw_rad[close], size)
            theirs = rectangles(table.centers_m[i, close, :2], table.yaws_rad[i, close], agent.size_wlh_m)
            if shapely.intersects(ours, theirs).any():
                raise Infeasible("event_blocked", f"{agent.category} {agent.instance_token} is where the other one would be")
        off = np.nan_to_num(self._road.of(here[first:]))
        drives = isinstance(actor, Rerouted) or actor.kind.detection_class == "car"
        if drives and off.min() < NEAR_ROAD_M and off.max() > self.limits.off_road_tolerance_m:
            raise Infeasible("event_off_road", f"the middle of the car would be {off.max():.2f} m off the drivable area")

    def _react(self, draft: _Draft, baseline: Array) -> None:
        """Logged followers brake for a changed ego, and every box seen from it is no longer the log's."""
        table, moved = draft.table, _differs(draft.ego, baseline)
        if moved.any():
            table.sources[:, moved] = np.where(table.present[:, moved], LabelSource.TRANSFORMED, table.sources[:, moved])
            ego, first = ego_as_leader(draft.ego[: self.log_end]), int(np.argmax(moved))
            reacted = brake_followers(self.scene, table, ego, self.fps, first)
            draft.notes += tuple(f"{self.scene.agents[i].instance_token} brakes for the ego" for i in reacted)
        table.sources[len(self.scene.agents) :] = LabelSource.SIMULATED

    def _leave_early(self, draft: _Draft, baseline: Array) -> None:
        """Raises Infeasible where the log's part is off the road, before the traffic beyond it is simulated."""
        first = int(np.argmax(_differs(draft.ego, baseline)))
        logged = baseline[: self.log_end]
        found, _ = check_drivable(draft.ego[: self.log_end], self._road, self.fps, self.limits, first=first, logged=logged)
        if first and found is not None:
            raise Infeasible(found.reason, found.detail)

    def _agents(self, draft: _Draft, baseline: Array, base: _Baseline) -> AgentBoxes:
        """Everybody's boxes over the whole clip; beyond the log a changed ego joins the traffic from where it is."""
        table, log_end, known = draft.table, self.log_end, len(self.scene.agents)
        moved = _differs(draft.ego, baseline)
        if log_end >= self.frames:
            return finished(draft.scene, table, (), self.fps)
        after = base.after
        if moved[:log_end].any() or len(draft.scene.agents) > known or draft.rerouted:
            driven = EgoTrack(timestamps_us=self.timestamps_us[:log_end], ego_to_global=draft.ego[:log_end])
            rest = self.timestamps_us[log_end - 1 :]
            after = continue_scene(draft.scene, table, log_end - 1, rest, self.seed, self.fps, moved=driven)
            draft.ego = np.concatenate([draft.ego[:log_end], after.ego_to_global[1:]])
        else:
            draft.ego = baseline
        assert after is not None
        return joined(draft.scene, table, after, log_end, self.frames, float(draft.ego[log_end - 1, 2, 3]), self.fps)

    def _make_feasible(
        self, draft: _Draft, agents: AgentBoxes, baseline: Array, ignored: NDArray[np.bool_], first: int
    ) -> None:
        """Smooth the path where that suffices; raises Infeasible with the broken limit otherwise."""
        found, unchecked = self._check(draft.ego, agents, baseline, ignored, first)
        if found is not None and found.reason == "kinematics":
            path, much = smoothed(draft.ego, self.fps, max(first - 1, 0))
            if much <= SMOOTHED_AT_MOST_M:
                found, unchecked = self._check(path, agents, baseline, ignored, first)
                draft.ego = path
                draft.notes += (f"the ego path was smoothed by at most {much:.2f} m",)
        if found is not None:
            raise Infeasible(found.reason, found.detail)
        draft.notes += unchecked

    def _check(
        self, ego: Array, agents: AgentBoxes, baseline: Array, ignored: NDArray[np.bool_], first: int
    ) -> tuple[Violation | None, tuple[str, ...]]:
        return check_all(
            ego, agents, self._road, self.fps, first=first, limits=self.limits, logged=baseline[: self.log_end], ignored=ignored
        )


def _differs(ego: Array, baseline: Array) -> NDArray[np.bool_]:
    return np.abs(ego - baseline).max(axis=(1, 2)) > MOVED


def _moving(draft: _Draft, agent: int, frames: int) -> Moving:
    return Moving(
        xy_m=draft.table.centers_m[agent, :frames, :2], yaw_rad=draft.table.yaws_rad[agent, :frames],
        size_wlh_m=draft.scene.agents[agent].size_wlh_m,
    )  # fmt: skip


def _drive_on(
    scene: Scene, table: BoxTable, timestamps_us: NDArray[np.int64], log_end: int, seed: int, fps: float
) -> _Baseline:
    logged_end = int(np.searchsorted(timestamps_us, scene.key_timestamps_us[-1], side="right"))
    poses = scene.ego.at(timestamps_us[:logged_end])
    if logged_end >= len(timestamps_us):
        return _Baseline(track=EgoTrack(timestamps_us=timestamps_us, ego_to_global=poses), after=None, notes=())
    if logged_end > log_end:
        # The clip ends within the log, but a faster ego reaches beyond it: the agents there do not matter.
        table = empty_table(len(scene.agents), logged_end)
    after = continue_scene(scene, table, logged_end - 1, timestamps_us[logged_end - 1 :], seed, fps)
    whole = np.concatenate([poses, after.ego_to_global[1:]])
    return _Baseline(track=EgoTrack(timestamps_us=timestamps_us, ego_to_global=whole), after=after, notes=after.notes)


def key_frames(frames: int, fps: float) -> NDArray[np.bool_]:
    """Which frames [T] are the first at or after each half second."""
    halves = np.floor(np.arange(frames) * 2 / fps + 1e-9)
    return np.diff(halves, prepend=-1.0) > 0


def _steps(frames: int, fps: float) -> NDArray[np.int64]:
    return np.round(np.arange(frames) * 1e6 / fps).astype(np.int64)


def _timeline(scene: Scene, duration_s: float, fps: float, start_s: float) -> tuple[NDArray[np.int64], int]:
    """Frame times [T] and the index of the first one beyond the last key frame."""
    if not fps > 0:
        raise InputError("fps", f"{fps} frames a second", "give a positive rate, e.g. 12")
    frames = round(duration_s * fps) if duration_s > 0 else 0
    if frames < 1:
        raise InputError("duration_s", "scenario has zero length", f"give at least one frame: {1 / fps:.3f} s at {fps:g} fps")
    keys = scene.key_timestamps_us
    if len(keys) == 0:
        raise InputError(scene.name, "the scene has no key frames", "use a scene with samples")
    length = float(keys[-1] - keys[0]) * 1e-6
    if not 0.0 <= start_s <= length + 1e-6:
        raise InputError(
            "start_s", f"{start_s} s is not within the log of {length:.1f} s", f"start between 0 and {length:.1f} s"
        )
    start = int(np.argmin(np.abs(keys - keys[0] - start_s * 1e6)))
    timestamps = keys[start] + _steps(frames, fps)
    return timestamps, int(np.searchsorted(timestamps, keys[-1], side="right"))
