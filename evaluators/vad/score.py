"""What VAD makes of stretches of video, true or generated, in the scores that papers print (MiLA, table 7; VAD, tables 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import invert, yaw_from_rotation
from dwm.scenario.types import Scenario
from evaluators.boxes import Boxes, boxes_of_scenario
from evaluators.ego_collision import FutureAgents
from evaluators.mapping import MapLine, MapReport, evaluate_map_lines
from evaluators.motion import ForecastMotion, MotionScore, TrueMotion, evaluate_motion
from evaluators.planning import STEPS, PlannedFrame, PlanningReport, evaluate_planning
from evaluators.vad.coders import decode_map, decode_objects, decode_plan
from evaluators.vad.footage import VadFootage
from evaluators.vad.model import VAD, VadOutputs
from evaluators.vad.runner import run_stretch
from evaluators.vad.targets import STEP_S, driven_of, places_of
from evaluators.vad_detection import VadDetectionReport, evaluate_vad_boxes

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class VadScores:
    """All families over all key frames together."""

    detection: VadDetectionReport
    map: MapReport
    motion: dict[str, MotionScore]
    planning: PlanningReport
    key_frames: int

    def table_7(self) -> dict[str, float]:
        """MiLA's columns. Its text leaves the threshold of Recall_Line open: here the mean over classes and thresholds."""
        return {
            "mAP_OD": self.detection.scores.mean_ap, "NDS": self.detection.scores.nds, "mAP_Line": self.map.mean_ap,
            "Recall_Line": self.map.mean_recall,
        }  # fmt: skip


@dataclass(slots=True)
class _Gathered:
    truth: dict[str, Boxes]
    found: dict[str, Boxes]
    poses: dict[str, Array]
    true_lines: dict[str, Sequence[MapLine]]
    found_lines: dict[str, Sequence[MapLine]]
    motion: list[tuple[TrueMotion, ForecastMotion]]
    planned: list[PlannedFrame]


def score_stretches(model: VAD, stretches: Sequence[VadFootage], device: str = "cpu") -> VadScores:
    """Run VAD over every stretch and score it against labels and map; an agent that no picture shows is no truth."""
    all_of = _Gathered({}, {}, {}, {}, {}, [], [])
    for n, stretch in enumerate(stretches):
        config = model.config
        frames = (stretch.frame(k, config) for k in range(len(stretch)))
        for k, outputs in enumerate(run_stretch(model, frames, device)):
            _gather(all_of, f"{n}.{k}", stretch, k, model, outputs)
    return VadScores(
        detection=evaluate_vad_boxes(all_of.truth, all_of.found, all_of.poses),
        map=evaluate_map_lines(all_of.true_lines, all_of.found_lines), motion=evaluate_motion(all_of.motion),
        planning=evaluate_planning(all_of.planned), key_frames=len(all_of.truth),
    )  # fmt: skip


def _gather(out: _Gathered, token: str, stretch: VadFootage, k: int, model: VAD, outputs: VadOutputs) -> None:
    scenario, frame = stretch.scenario, stretch.frames[k]
    lidar_to_ego = scenario.scene.lidar_to_ego
    objects = decode_objects(outputs)[0]
    truth, rows = _truth(scenario, frame, stretch.seen[k])
    out.truth[token], out.found[token] = truth, objects.boxes.moved(lidar_to_ego)
    out.poses[token] = scenario.ego_to_global[frame]
    out.true_lines[token] = stretch.lines[k]
    out.found_lines[token] = decode_map(outputs, model.config)[0]
    to_lidar = invert(scenario.ego_to_global[frame] @ lidar_to_ego)
    times = frame + np.round(np.arange(STEPS + 1) * STEP_S * scenario.fps).astype(np.int64)
    places, known = places_of(scenario, rows, times, to_lidar)
    futures = places[:, 1:]
    ends = np.minimum(times[1:], len(scenario.timestamps_us) - 1)
    yaws = scenario.agents.yaws_rad[rows][:, ends] + float(yaw_from_rotation(to_lidar))
    now = truth.moved(invert(lidar_to_ego))
    out.motion.append((
        TrueMotion(labels=now.labels, centers_m=now.centers_m[:, :2], futures_m=futures, known=known),
        ForecastMotion(
            labels=objects.boxes.labels, scores=objects.boxes.scores, centers_m=objects.boxes.centers_m[:, :2],
            futures_m=objects.boxes.centers_m[:, None, None, :2] + objects.futures_m,
        ),
    ))  # fmt: skip
    driven, driven_known = driven_of(scenario, times, to_lidar)
    target = stretch.targets(k, model.config)
    plan = decode_plan(outputs, [target.command])[0]
    out.planned.append(
        PlannedFrame(
            planned_m=_forward_left(plan), driven_m=_forward_left(driven[1:]), driven_known=driven_known,
            agents=FutureAgents(
                categories=tuple(scenario.agents.categories[i] for i in rows), sizes_wl_m=now.sizes_wlh_m[:, :2],
                now_m=_forward_left(now.centers_m[:, :2]), centers_m=_forward_left(futures), yaws_rad=yaws - np.pi / 2, known=known,
            ),
        )
    )  # fmt: skip


def _truth(scenario: Scenario, frame: int, seen: NDArray[np.bool_]) -> tuple[Boxes, NDArray[np.int64]]:
    """Labelled boxes in the ego frame that some picture shows, and their agents."""
    known = np.array([c is not None for c in scenario.agents.detection_classes], dtype=bool)
    rows = np.flatnonzero(scenario.agents.present[:, frame] & known)
    boxes = boxes_of_scenario(scenario, frame).select(np.flatnonzero(seen[rows]))
    return replace(boxes, num_pts=np.maximum(boxes.num_pts, 1)), rows[seen[rows]]


def _forward_left(places: Array) -> Array:
    """LiDAR axes (x right, y forward) to those of planning (x forward, y left)."""
    return np.stack([places[..., 1], -places[..., 0]], axis=-1)
