"""From a scene, a perturbation and a seed to a scenario, or to the reason why there is none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.scenario.conditions import conditions_of, new_conditions
from dwm.scenario.continuation import Continued, continue_scene
from dwm.scenario.feasibility import LIMITS, Limits, check_all, overlaps
from dwm.scenario.logged import BoxTable, brake_followers, empty_table, log_boxes
from dwm.scenario.perturbations import BASELINE, horizon, perturb
from dwm.scenario.types import AgentBoxes, LabelSource, Perturbation, Rejection, Scenario
from dwm.scenes.prompts import scene_prompt
from dwm.scenes.types import EgoTrack, Scene

Array = NDArray[np.float64]
MOVED = 1e-6  # poses that differ by less are the same
STOPPED_MPS = 0.2
CYCLES = ("vehicle.bicycle", "vehicle.motorcycle")


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
    timestamps, log_end = _timeline(scene, duration_s, fps, start_s)
    frames = len(timestamps)
    # Speeding up uses more of the baseline than the clip is long.
    longer = timestamps[0] + _steps(int(np.ceil(frames * horizon(perturbation))) + 2, fps)
    table = log_boxes(scene, timestamps[:log_end], frames)
    track, joint, notes = _baseline(scene, table, longer, log_end, seed, fps)
    baseline = track.ego_to_global[:frames]
    ego = perturb(track, timestamps, perturbation)
    moved = np.abs(ego - baseline).max(axis=(1, 2)) > MOVED
    if perturbation.name != BASELINE.name and not moved.any():
        detail = f"the ego path changes by {np.abs(ego - baseline).max():.1e} m, needs more than {MOVED:g} m: it hardly moves"
        return Rejection(scene=scene.name, perturbation=perturbation, seed=seed, reason="no_effect", detail=detail)
    before = _logged_overlaps(scene, table, baseline, frames)
    if moved.any():
        table.sources[:, moved] = np.where(table.present[:, moved], LabelSource.TRANSFORMED, table.sources[:, moved])
        reacted = brake_followers(scene, table, ego, baseline, fps, log_end - 1)
        notes += tuple(f"{scene.agents[i].instance_token} brakes for the ego" for i in reacted)
    if log_end < frames:
        if moved[:log_end].any():
            # Beyond the log there is no recorded path to shift: the moved ego joins the traffic from where it is.
            driven = EgoTrack(timestamps_us=timestamps[:log_end], ego_to_global=ego[:log_end])
            joint = continue_scene(scene, table, log_end - 1, timestamps[log_end - 1 :], seed, fps, moved=driven)
            ego = np.concatenate([ego[:log_end], joint.ego_to_global[1:]])
        else:
            ego = baseline
        assert joint is not None
        agents = _merge(scene, table, joint, log_end, frames, float(ego[log_end - 1, 2, 3]), fps)
    else:
        agents = _boxes(scene, table, (), fps)
    ignored = np.zeros_like(agents.present)
    index = {token: i for i, token in enumerate(agents.instance_tokens)}
    for i, agent in enumerate(scene.agents):
        if agent.instance_token in index:
            ignored[index[agent.instance_token]] = before[i]
    # The log itself happened: only what we made is judged.
    first = 0 if moved.any() else log_end
    violation, unchecked = check_all(
        ego, agents, scene.map, fps, baseline=baseline, first=first, limits=limits, ignored=ignored
    )
    if violation is not None:
        return Rejection(
            scene=scene.name, perturbation=perturbation, seed=seed, reason=violation.reason, detail=violation.detail
        )
    conditions, already = new_conditions(scene, conditions_of(perturbation))
    return Scenario(
        scene=scene, perturbation=perturbation, seed=seed, fps=fps, timestamps_us=timestamps, ego_to_global=ego,
        baseline_ego_to_global=baseline, agents=agents, is_key_frame=key_frames(frames, fps), log_end_index=log_end,
        prompt=scene_prompt(scene, [c.name for c in conditions]), notes=notes + unchecked + already,
    )  # fmt: skip


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


def _baseline(
    scene: Scene, table: BoxTable, timestamps_us: NDArray[np.int64], log_end: int, seed: int, fps: float
) -> tuple[EgoTrack, Continued | None, tuple[str, ...]]:
    """The ego path without perturbation, with the traffic that goes with it beyond the log."""
    logged_end = int(np.searchsorted(timestamps_us, scene.key_timestamps_us[-1], side="right"))
    poses = scene.ego.at(timestamps_us[:logged_end])
    if logged_end >= len(timestamps_us):
        return EgoTrack(timestamps_us=timestamps_us, ego_to_global=poses), None, ()
    if logged_end > log_end:
        # The clip ends within the log, but a faster ego reaches beyond it: the agents there do not matter.
        table = empty_table(len(scene.agents), logged_end)
    after = continue_scene(scene, table, logged_end - 1, timestamps_us[logged_end - 1 :], seed, fps)
    whole = np.concatenate([poses, after.ego_to_global[1:]])
    return EgoTrack(timestamps_us=timestamps_us, ego_to_global=whole), after, after.notes


def _logged_overlaps(scene: Scene, table: BoxTable, baseline: Array, frames: int) -> NDArray[np.bool_]:
    """Overlaps [A, T] that the log's own annotations have with the logged ego: noise, not collisions."""
    if not scene.agents:
        return np.zeros((0, frames), dtype=bool)
    sizes = np.stack([a.size_wlh_m for a in scene.agents])
    return overlaps(baseline, table.centers_m, table.yaws_rad, sizes, table.present)


def _merge(
    scene: Scene, table: BoxTable, after: Continued, log_end: int, frames: int, ground_m: float, fps: float
) -> AgentBoxes:
    """The log's boxes followed by the simulated ones."""
    entered = after.specs[len(after.known) :]
    rest = frames - log_end
    whole = empty_table(len(scene.agents) + len(entered), frames)
    for name in ("centers_m", "yaws_rad", "present", "sources", "num_lidar_pts"):
        getattr(whole, name)[: len(scene.agents)] = getattr(table, name)
    whole.attributes[: len(scene.agents)] = table.attributes
    rows = [*after.known, *range(len(scene.agents), len(scene.agents) + len(entered))]
    heights = [table.centers_m[i, log_end - 1, 2] for i in after.known] + [ground_m + s.size_wlh_m[2] / 2 for s in entered]
    for k, (row, z) in enumerate(zip(rows, heights, strict=True)):
        whole.present[row, log_end:] = after.present[k, 1 : rest + 1]
        whole.centers_m[row, log_end:, :2], whole.centers_m[row, log_end:, 2] = after.xy_m[k, 1 : rest + 1], z
        whole.yaws_rad[row, log_end:] = after.yaw_rad[k, 1 : rest + 1]
    return _boxes(scene, whole, entered, fps)


def _boxes(scene: Scene, table: BoxTable, entered: tuple, fps: float) -> AgentBoxes:
    """The finished table, without agents that never appear."""
    who = [(a.instance_token, a.detection_class, a.category, a.size_wlh_m) for a in scene.agents]
    who += [(s.token, s.detection_class, s.category, np.array(s.size_wlh_m)) for s in entered]
    keep = np.flatnonzero(table.present.any(axis=1))
    velocities = _velocities(table.centers_m[keep, :, :2], table.present[keep], fps)
    speeds = np.linalg.norm(np.nan_to_num(velocities), axis=-1)
    attributes = tuple(
        _attributes(who[i][2], table.attributes[i], speeds[k], table.present[i], i >= len(scene.agents))
        for k, i in enumerate(keep)
    )
    there = table.present[keep][..., None]
    return AgentBoxes(
        instance_tokens=tuple(who[i][0] for i in keep), detection_classes=tuple(who[i][1] for i in keep),
        categories=tuple(who[i][2] for i in keep),
        sizes_wlh_m=np.reshape([who[i][3] for i in keep], (-1, 3)).astype(np.float64),
        centers_m=np.where(there, table.centers_m[keep], 0.0), yaws_rad=table.yaws_rad[keep],
        velocities_mps=np.where(there, velocities, 0.0), present=table.present[keep],
        label_sources=table.sources[keep], num_lidar_pts=table.num_lidar_pts[keep], attributes=attributes,
    )  # fmt: skip


def _velocities(xy_m: Array, present: NDArray[np.bool_], fps: float) -> Array:
    """Velocities [A, T, 2] by central differences, one-sided at the ends of presence; NaN for a single frame."""
    forward = np.full_like(xy_m, np.nan)
    forward[:, :-1] = (xy_m[:, 1:] - xy_m[:, :-1]) * fps
    both = present[:, :-1] & present[:, 1:]
    forward[:, :-1][~both] = np.nan
    backward = np.full_like(xy_m, np.nan)
    backward[:, 1:] = forward[:, :-1]
    mean = (forward + backward) / 2
    out = np.where(np.isnan(mean), np.where(np.isnan(forward), backward, forward), mean)
    out[~present] = np.nan
    return out


def _attributes(
    category: str, logged: list[str], speed_mps: Array, present: NDArray[np.bool_], entered: bool
) -> tuple[str, ...]:
    """Attributes [T]: the logged one, else what the speed suggests; a rider does not get off in between."""
    rider = "cycle.with_rider" if entered and category in CYCLES else ""
    out = []
    for there, own, speed in zip(present, logged, speed_mps, strict=True):
        rider = own if own.startswith("cycle.") else rider
        out.append((own or rider or default_attribute(category, float(speed))) if there else "")
    return tuple(out)


def default_attribute(category: str, speed_mps: float) -> str:
    """The nuScenes attribute that a speed suggests; '' where the category has none."""
    moves = speed_mps > STOPPED_MPS
    if category in CYCLES:
        return "cycle.with_rider" if moves else "cycle.without_rider"
    if category.startswith("vehicle."):
        return "vehicle.moving" if moves else "vehicle.stopped"
    if category.startswith("human."):
        return "pedestrian.moving" if moves else "pedestrian.standing"
    return ""
