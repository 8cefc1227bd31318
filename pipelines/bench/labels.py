"""Labels held against what they claim: the devkit's boxes, the log's LiDAR counts, and rendered truth where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from nuscenes import NuScenes
from scipy.stats import spearmanr
from tqdm import tqdm

from dwm.geometry import wrap_angle
from dwm.scenario.build import build_scenario
from dwm.scenario.labels import label_clip
from dwm.scenario.lidar_counts import CountPairs, FillFactors, fill_factors, logged_counts
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from dwm.scenes.dataroot import open_dataroot
from dwm.scenes.nuscenes import list_scenes, read_scene
from dwm.scenes.proving_ground.counterfactual import open_counterfactual
from dwm.scenes.types import Scene
from pipelines.bench.label_truth import confusion_tables, overlap_table
from pipelines.clip_rows import LABEL_RANGE_M, box_rows
from pipelines.clip_scores import ClipScores

Array = NDArray[np.float64]
_NO_SCORES = ClipScores(rows=[], for_gate={}, scored_frames=(), detections={}, support={})
_RAYS = 5  # at least, for a ratio of counts


def bench_labels(dataroot: Path, version: str, things: Path) -> str:
    """Markdown tables: equality with the devkit, LiDAR counts; of a proving ground also overlap with masks and visibility."""
    nusc = open_dataroot(dataroot, version)
    scenes = [read_scene(dataroot, version, name) for name in list_scenes(dataroot, version)]
    pairs = [logged_counts(scene) for scene in tqdm(scenes, desc="LiDAR counts", disable=None)]
    lines = [*_equality(nusc, scenes, pairs), "", *_counts(pairs)]
    worlds = [(scene, world) for scene in scenes if (world := open_counterfactual(scene)) is not None]
    if not worlds:
        return "\n".join([*lines, "", "No rendered truth: not a proving-ground world."])
    return "\n".join([*lines, "", *overlap_table(worlds, things), "", *confusion_tables(worlds)])


@dataclass(slots=True)
class _Differences:
    """Largest absolute differences to the devkit."""

    boxes: int = 0
    velocities: int = 0
    dropped: int = 0
    center_m: float = 0.0
    size_m: float = 0.0
    yaw_rad: float = 0.0
    velocity_mps: float = 0.0


def _equality(nusc: NuScenes, scenes: list[Scene], pairs: list[CountPairs]) -> list[str]:
    """Rows of unperturbed one-frame scenarios at every key frame against ``NuScenes.get_box``."""
    worst = _Differences()
    for scene, counted in zip(tqdm(scenes, desc="devkit", disable=None), pairs, strict=True):
        factors = fill_factors(counted)
        for k in range(len(scene.key_timestamps_us)):
            _compare(nusc, scene, k, factors, worst)
    return [
        "**Boxes of unperturbed scenarios against the devkit, at key frames**", "", "| largest difference | value | n |", "|---|---|---|",
        f"| centre [m] | {worst.center_m:.1e} | {worst.boxes} |", f"| size [m] | {worst.size_m:.1e} | {worst.boxes} |",
        f"| yaw [rad] | {worst.yaw_rad:.1e} | {worst.boxes} |",
        f"| velocity, where the devkit has one [m/s] | {worst.velocity_mps:.1e} | {worst.velocities} |",
        f"| annotations within {LABEL_RANGE_M:.0f} m without a row: nothing sees them | | {worst.dropped} |",
    ]  # fmt: skip


def _compare(nusc: NuScenes, scene: Scene, k: int, factors: FillFactors, worst: _Differences) -> None:
    start_s = float(scene.key_timestamps_us[k] - scene.key_timestamps_us[0]) * 1e-6
    scenario = build_scenario(scene, BASELINE, 0, duration_s=1 / 12, start_s=start_s)
    assert isinstance(scenario, Scenario)
    rows = {row["instance_token"]: row for row in box_rows("", scenario, _NO_SCORES, label_clip(scenario, factors=factors))}
    for token in nusc.get("sample", scene.sample_tokens[k])["anns"]:
        box, row = nusc.get_box(token), rows.get(nusc.get("sample_annotation", token)["instance_token"])
        if row is None:
            near = np.linalg.norm(box.center[:2] - scenario.ego_to_global[0, :2, 3]) < LABEL_RANGE_M
            worst.dropped += int(near)
            continue
        center = np.array([row["center_x"], row["center_y"], row["center_z"]])
        size = np.array([row["size_w"], row["size_l"], row["size_h"]])
        forward = box.orientation.rotation_matrix[:, 0]
        worst.boxes += 1
        worst.center_m = max(worst.center_m, float(np.abs(center - box.center).max()))
        worst.size_m = max(worst.size_m, float(np.abs(size - box.wlh).max()))
        worst.yaw_rad = max(worst.yaw_rad, float(np.abs(wrap_angle(row["yaw"] - np.arctan2(forward[1], forward[0])))))
        velocity = nusc.box_velocity(token)[:2]
        if np.isfinite(velocity).all():
            worst.velocities += 1
            # A missing velocity must not pass for an equal one.
            own = np.array([np.inf if row[name] is None else row[name] for name in ("vx", "vy")])
            worst.velocity_mps = max(worst.velocity_mps, float(np.abs(own - velocity).max()))


def _counts(pairs: list[CountPairs]) -> list[str]:
    """Expected against logged points, of instances that did not take part in the calibration."""
    expected, raw, logged = [], [], []
    for counted in pairs:
        tokens = sorted(set(counted.instance_tokens))
        fitted = np.isin(counted.instance_tokens, tokens[::2])
        held_out = counted.select(np.flatnonzero(~fitted))
        factors = fill_factors(counted.select(np.flatnonzero(fitted)))
        expected.append(factors.counts(held_out.keys, held_out.rays))
        raw.append(held_out.rays)
        logged.append(held_out.points)
    found, rays, points = (np.concatenate(x).astype(np.float64) for x in (expected, raw, logged))
    enough = (rays >= _RAYS) & (points > 0)
    ratio, plain = found[enough] / points[enough], rays[enough] / points[enough]
    low, high = np.percentile(ratio, [25, 75])
    return [
        "**LiDAR points of annotations, expected of a scan against logged** (every other instance held out of the calibration)", "",
        "| figure | value | n |", "|---|---|---|",
        f"| expected over logged, median (quartiles) | {np.median(ratio):.2f} ({low:.2f} to {high:.2f}) | {enough.sum()} |",
        f"| rays over logged without fill factors, median | {np.median(plain):.2f} | {enough.sum()} |",
        f"| rank correlation | {spearmanr(found, points)[0]:.2f} | {len(points)} |",
        f"| annotations with points that no ray meets | {np.mean((rays == 0)[points > 0]):.1%} | {int((points > 0).sum())} |",
    ]  # fmt: skip
