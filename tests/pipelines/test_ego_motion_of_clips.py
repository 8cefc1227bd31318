"""The ego's motion in a clip's scores: of what was generated, and of true video as the floor."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dwm.rollout.world_model import WorldModel
from dwm.scenario.perturbations import BASELINE
from evaluators.ego_motion.network import EgoMotion, EgoMotionConfig
from evaluators.ego_motion.path import path_error, steps_of
from evaluators.ego_motion.score import ReadingConfig
from pipelines.bench.rollouts import first_feasible, starting_moments, true_frames
from pipelines.clip_scores import ClipScorer
from pipelines.config import EvaluateConfig
from pipelines.metric_table import Judges
from tests.pipelines.tiny_models import VERSION, write_models


class StandsStill:
    """Reads no motion off any picture, and remembers what it saw."""

    sha256, model = "still", EgoMotion(EgoMotionConfig())

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def steps(self, images, intrinsics, camera_to_ego):
        self.seen.append(images)
        return np.zeros((len(images) - 1, 3))


def test_moments_are_a_sixth_of_a_second_apart_and_the_first_stretch_is_ten_seconds():
    moments = ReadingConfig().moments(12.0, 0, 720)
    assert (moments[:3], moments[-1], len(moments)) == ([0, 2, 4], 718, 360)
    assert (ReadingConfig().first_stretch(moments)[-1], len(ReadingConfig().first_stretch(moments))) == (120, 61)
    assert ReadingConfig().moments(12.0, 3, 8) == ReadingConfig().first_stretch([3, 5, 7]) == [3, 5, 7]


def test_true_video_is_read_as_the_clip_is(pg_dataroot: Path, tmp_path: Path):
    models, reader = write_models(tmp_path), StandsStill()
    world = WorldModel.load(models / "codec.safetensors", models / "world.safetensors", None)
    moment = starting_moments(pg_dataroot, VERSION, 1, 0.5)[0]
    scenario = first_feasible(moment, [BASELINE], 2.0, Counter(), "as driven")
    assert scenario is not None
    frames = list(range(len(scenario.timestamps_us)))
    truth, video = true_frames(moment, scenario, frames, world.image_hw), np.zeros((len(frames), 6, 128, 224, 3), np.uint8)
    judges = Judges(detector=None, ego_motion=reader)  # type: ignore[arg-type]
    scores = ClipScorer(scenario, world.conditioner(scenario), truth[:1], world, judges, EvaluateConfig()).score(video)
    poses = scenario.ego_to_global[::2]
    wanted = path_error(np.zeros((len(poses) - 1, 3)), steps_of(poses), 1 / 6).ade_m
    found = {row["source"]: row["value"] for row in scores.rows if row["metric"] == "ego_motion.ade_m"}
    assert wanted > 1 and found == {"generated": pytest.approx(wanted), "truth": pytest.approx(wanted)}
    true, made = reader.seen
    assert not made.any() and np.array_equal(true, truth[::2])
    assert scores.for_gate["ego_motion.ade_m"] == pytest.approx(wanted)
