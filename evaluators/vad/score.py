"""What VAD makes of stretches of video, true or generated, in the scores that papers print (MiLA, table 7; VAD, tables 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dwm.geometry import invert, yaw_from_rotation
from evaluators.boxes import Boxes
from evaluators.ego_collision import FutureAgents
from evaluators.mapping import LineMatches, MapReport, map_report, match_lines
from evaluators.motion import ForecastMotion, MotionScore, TrueMotion, evaluate_motion
from evaluators.planning import STEPS, PlannedFrame, PlanningReport, evaluate_planning
from evaluators.vad.coders import decode_map, decode_objects, decode_plan
from evaluators.vad.footage import Stretch
from evaluators.vad.model import VAD, VadOutputs
from evaluators.vad.runner import run_stretch
from evaluators.vad.targets import STEP_S, command_of, driven_of, places_of
from evaluators.vad_detection import VadDetectionReport, evaluate_vad_boxes

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedFrame:
    """What is true of a key frame and what VAD says, as each family of metrics wants it."""

    truth: Boxes  # ego frame
    found: Boxes
    ego_to_global: Array  # [4, 4]
    lines: LineMatches
    motion: tuple[TrueMotion, ForecastMotion]
    planned: PlannedFrame


def judge_stretch(model: VAD, stretch: Stretch, device: str = "cpu") -> list[JudgedFrame]:
    """Run VAD over a stretch; given frames are read, not judged. An agent that no picture shows is no truth."""
    frames = (stretch.frame(k, model.config) for k in range(len(stretch)))
    outputs = enumerate(run_stretch(model, frames, device))
    return [_judged(stretch, k, model, out) for k, out in outputs if k >= stretch.given]


@dataclass(frozen=True)
class VadScores:
    """All families over key frames together; each is computed when it is asked for."""

    frames: tuple[JudgedFrame, ...]

    @cached_property
    def detection(self) -> VadDetectionReport:
        named = {str(k): frame for k, frame in enumerate(self.frames)}
        return evaluate_vad_boxes(
            {token: f.truth for token, f in named.items()}, {token: f.found for token, f in named.items()},
            {token: f.ego_to_global for token, f in named.items()},
        )  # fmt: skip

    @cached_property
    def map(self) -> MapReport:
        return map_report([frame.lines for frame in self.frames])

    @cached_property
    def motion(self) -> dict[str, MotionScore]:
        return evaluate_motion([frame.motion for frame in self.frames])

    @cached_property
    def planning(self) -> PlanningReport:
        return evaluate_planning([frame.planned for frame in self.frames])

    def table_7(self) -> dict[str, float]:
        """MiLA's columns. Its text leaves the threshold of Recall_Line open: here the mean over classes and thresholds."""
        return {
            "mAP_OD": self.detection.scores.mean_ap, "NDS": self.detection.scores.nds, "mAP_Line": self.map.mean_ap,
            "Recall_Line": self.map.mean_recall,
        }  # fmt: skip


def score_frames(stretches: Sequence[Sequence[JudgedFrame]]) -> VadScores:
    """The key frames of all stretches together; a stretch may be given more than once."""
    return VadScores(frames=tuple(frame for stretch in stretches for frame in stretch))


def _judged(stretch: Stretch, k: int, model: VAD, outputs: VadOutputs) -> JudgedFrame:
    drive, frame = stretch.drive, stretch.frames[k]
    lidar_to_ego = drive.lidar_to_ego
    objects = decode_objects(outputs)[0]
    truth, rows = drive.seen_boxes(frame, stretch.seen[k])
    to_lidar = invert(drive.ego_to_global[frame] @ lidar_to_ego)
    times = frame + np.round(np.arange(STEPS + 1) * STEP_S * drive.fps).astype(np.int64)
    places, known = places_of(drive, rows, times, to_lidar)
    futures = places[:, 1:]
    ends = np.minimum(times[1:], len(drive) - 1)
    yaws = drive.agents.yaws_rad[rows][:, ends] + float(yaw_from_rotation(to_lidar))
    now = truth.moved(invert(lidar_to_ego))
    # As in the public pipeline, agents outside the network's range are no truth of forecasts.
    low, high = np.array(model.config.range_m[:2]), np.array(model.config.range_m[3:5])
    inside = ((now.centers_m[:, :2] >= low) & (now.centers_m[:, :2] <= high)).all(axis=1)
    motion = (
        TrueMotion(
            labels=now.labels[inside], centers_m=now.centers_m[inside, :2], futures_m=futures[inside], known=known[inside]
        ),
        ForecastMotion(
            labels=objects.boxes.labels, scores=objects.boxes.scores, centers_m=objects.boxes.centers_m[:, :2],
            futures_m=objects.boxes.centers_m[:, None, None, :2] + objects.futures_m,
        ),
    )  # fmt: skip
    driven, driven_known = driven_of(drive, times, to_lidar)
    plan = decode_plan(outputs, [command_of(driven, driven_known)])[0]
    planned = PlannedFrame(
        planned_m=_forward_left(plan), driven_m=_forward_left(driven[1:]), driven_known=driven_known,
        agents=FutureAgents(
            categories=tuple(drive.agents.categories[i] for i in rows), sizes_wl_m=now.sizes_wlh_m[:, :2],
            now_m=_forward_left(now.centers_m[:, :2]), centers_m=_forward_left(futures), yaws_rad=yaws - np.pi / 2, known=known,
        ),
    )  # fmt: skip
    return JudgedFrame(
        truth=truth, found=objects.boxes.moved(lidar_to_ego), ego_to_global=drive.ego_to_global[frame],
        lines=match_lines(stretch.lines[k], decode_map(outputs, model.config)[0]), motion=motion, planned=planned,
    )  # fmt: skip


def _forward_left(places: Array) -> Array:
    """LiDAR axes (x right, y forward) to those of planning (x forward, y left)."""
    return np.stack([places[..., 1], -places[..., 0]], axis=-1)
