"""What it costs to score a clip, metric by metric, beside what it costs to make it: seconds for a minute of six-camera video.

Networks whose weights do not ship run with random ones: their own time does not depend on them, but VAD then finds hardly a box that
would have to be matched. What a run looks
at twice a second is timed so; what needs every frame is given every frame. FID and FVD by the public networks are not among them.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dwm.conditioning.build import ScenarioConditioner
from dwm.rollout.config import RolloutConfig
from dwm.rollout.world_model import WorldModel
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import KEY_FRAME_HZ, Scenario
from dwm.scenes.clips import read_video_frames
from dwm.scenes.types import CAMERAS
from evaluators.clip_detection import score_clip_detections
from evaluators.counterfactual import score_counterfactual
from evaluators.cross_view import cross_view_agreement
from evaluators.detection import evaluate_boxes_in_memory
from evaluators.detector.inference import Detector
from evaluators.drive import Drive
from evaluators.ego_motion.inference import EgoMotionReader
from evaluators.ego_motion.network import EgoMotion, EgoMotionConfig
from evaluators.ego_motion.odometry import ground_steps
from evaluators.ego_motion.score import ReadingConfig
from evaluators.flicker import score_appearance
from evaluators.frechet_features import FrechetFeatures
from evaluators.map_truth import map_lines, open_map
from evaluators.novelty import score_novelty
from evaluators.protocol import bootstrap_interval
from evaluators.vad.config import CONFIGS
from evaluators.vad.footage import VadFootage, seen_agents
from evaluators.vad.model import VAD
from evaluators.vad.score import judge_stretch, score_frames
from pipelines.bench.rollouts import (
    FPS,
    LOGGED_S,
    Moment,
    first_feasible,
    generate,
    rejections,
    size,
    starting_moments,
    true_frames,
)
from pipelines.clip_labels import detect_frames, matching, rig, visible_labels
from pipelines.config import EvaluateConfig
from pipelines.logged_looks import logged_looks
from pipelines.video import VideoWriter

Images = NDArray[np.uint8]
MAKING, VAD_SIZE = "generating and encoding it", "vad_proving_ground"


def bench_scoring_cost(
    dataroot: Path, version: str, codec: Path, weights: Path, things: Path, detector: Path, cases: int, duration_s: float
) -> str:
    """The table as Markdown; ``cases`` starting moments as driven, every metric on each, scaled to a minute."""
    world, rejected = WorldModel.load(codec, weights, things), Counter[str]()
    device = str(world.device)
    torch.manual_seed(0)
    timing = _Timing(
        world, Detector.load(detector, device), EgoMotionReader(EgoMotion(EgoMotionConfig()), device),
        VAD(CONFIGS[VAD_SIZE]).eval().to(device),
    )  # fmt: skip
    costs: dict[str, list[float]] = {}
    for moment in tqdm(starting_moments(dataroot, version, cases, LOGGED_S), desc="clips", disable=None):
        scenario = first_feasible(moment, [BASELINE], duration_s, rejected, "as driven")
        for name, seconds in ({} if scenario is None else timing.of(moment, scenario)).items():
            costs.setdefault(name, []).append(60 / duration_s * seconds)
    clips = len(next(iter(costs.values()), []))
    head = (
        f"{clips} clips of {duration_s:g} s, six cameras, {size(world.image_hw)}, {device}, {torch.get_num_threads()} threads"
    )
    return "\n".join([head, "", *_table(costs), *rejections(rejected)])


class _Timing:
    """Times everything on one clip after the other, with what a run would have loaded."""

    def __init__(self, world: WorldModel, detector: Detector, reader: EgoMotionReader, vad: VAD) -> None:
        self._world, self._detector, self._reader, self._vad = world, detector, reader, vad
        self._features = FrechetFeatures(detector)

    def of(self, moment: Moment, scenario: Scenario) -> dict[str, float]:
        """Seconds by what was done."""
        world, conditioner = self._world, self._world.conditioner(scenario)
        frames = range(len(scenario.timestamps_us))
        scored = list(frames)[:: max(1, round(EvaluateConfig().every_s * scenario.fps))]
        seconds: dict[str, float] = {}

        def timed(name: str, work: Callable[[], Any]) -> Any:
            started = time.perf_counter()
            out = work()
            seconds[name] = time.perf_counter() - started
            return out

        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{channel}.mp4" for channel in CAMERAS]
            timed(MAKING, lambda: _made(world, conditioner, list(frames), paths))
            video = timed("decoding", lambda: np.stack([read_video_frames(path, frames) for path in paths], axis=1))
        timed("flicker, sharpness, stills", lambda: score_appearance(video, scenario.fps, 1))
        timed("agreement across views", lambda: cross_view_agreement(video[scored], *rig(conditioner)))
        timed("novelty", lambda: _novelty(moment, world, video[scored]))
        timed("labels found by the detector", lambda: self._detection(scenario, conditioner, video, scored))
        reading = ReadingConfig()
        steps = video[reading.moments(scenario.fps, 0, len(video))]
        timed("ego motion, network", lambda: self._reader.steps(steps, *rig(conditioner)))
        timed("ego motion, odometry", lambda: ground_steps(steps, *rig(conditioner), reading.odometry))
        truth = timed("rendering true video", lambda: true_frames(moment, scenario, scored, world.image_hw))
        timed("PSNR, SSIM", lambda: score_counterfactual(video[scored], truth, 1 / EvaluateConfig().every_s, 1))
        timed("FID-pg, FVD-pg: features", lambda: (self._features.of_images(video[scored]), self._features.of_video(video)))
        stretch = self._stretch(scenario, conditioner, video)
        timed("VAD: table 7, forecasts, planning", lambda: self._vad_scores(stretch))
        return seconds

    def _detection(self, scenario: Scenario, conditioner: ScenarioConditioner, video: Images, scored: list[int]) -> None:
        labels = [visible_labels(scenario, conditioner, f)[1] for f in scored]
        found = detect_frames(self._detector, conditioner, scenario, video[scored], scored)
        score_clip_detections(labels, found, matching(self._detector))
        evaluate_boxes_in_memory(*({str(i): b for i, b in enumerate(boxes)} for boxes in (labels, found)))

    def _stretch(self, scenario: Scenario, conditioner: ScenarioConditioner, video: Images) -> VadFootage:
        """With the map's lines, which a run reads from its own tables."""
        drive, rows = Drive.of(scenario), list(range(0, len(video), round(scenario.fps / KEY_FRAME_HZ)))
        nusc_map = open_map(scenario.scene.dataroot, scenario.scene.location)
        lines = tuple(map_lines(nusc_map, drive.ego_to_global[row] @ drive.lidar_to_ego) for row in rows)
        return VadFootage(
            drive=drive, frames=tuple(rows), images=video[rows], lines=lines, given=1, seen=seen_agents(conditioner, rows)
        )

    def _vad_scores(self, stretch: VadFootage) -> None:
        scores = score_frames([judge_stretch(self._vad, stretch, str(self._world.device))])
        _ = scores.table_7(), scores.motion, scores.planning


def _made(world: WorldModel, conditioner: ScenarioConditioner, frames: list[int], paths: list[Path]) -> None:
    video = generate(world, conditioner, RolloutConfig(), frames).images
    for path, view in zip(paths, video.swapaxes(0, 1), strict=True):
        with VideoWriter(path, view.shape[2], view.shape[1], FPS) as writer:
            for image in view:
                writer.write(image)


def _novelty(moment: Moment, world: WorldModel, images: Images) -> None:
    looks = logged_looks(moment.scene, world.image_hw)
    if looks is not None:
        score_novelty(images, looks)


def _table(costs: dict[str, list[float]]) -> list[str]:
    lines = ["| metric | seconds for a minute | 95 % interval | share of making it |", "|---|---|---|---|"]
    if not costs:
        return lines
    scoring = {name: values for name, values in costs.items() if name != MAKING}
    rows = {**scoring, "all of these": [sum(each) for each in zip(*scoring.values(), strict=True)], MAKING: costs[MAKING]}
    for name, values in rows.items():
        across = bootstrap_interval(np.array(values), np.random.default_rng(0))
        share = float(np.mean(values) / np.mean(costs[MAKING]))
        lines.append(f"| {name} | {across.value:.1f} | {across.low:.1f} to {across.high:.1f} | {share:.1%} |")
    return lines
