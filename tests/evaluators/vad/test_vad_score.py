"""A network that says what is true gets every figure's best; planted faults show in their own family."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from dwm.geometry import transform
from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from evaluators.drive import Drive
from evaluators.vad.config import VadConfig
from evaluators.vad.footage import VadFootage
from evaluators.vad.model import VadOutputs
from evaluators.vad.score import judge_stretch, score_frames
from tests.evaluators.vad.vad_factories import CONFIG, LINES, perfect
from tests.factories import key_times, make_agent, make_scene

FRAMES = tuple(range(0, 37, 6))


@pytest.fixture(scope="module")
def footage() -> VadFootage:
    keys = key_times(16)
    agents = [
        make_agent("leader", lambda t: (15.0 + 9.0 * t, 0.0, 0.0), keys),
        make_agent("beside", lambda t: (-4.0 + 9.0 * t, 3.5, 0.0), keys),
        make_agent(
            "walker", lambda t: (20.0 + 9.0 * t, 6.0, 0.0), keys, category="human.pedestrian.adult",
            detection_class="pedestrian", size_wlh_m=(0.7, 0.7, 1.7),
        ),
    ]  # fmt: skip
    turned = transform(np.array([0.94, 0.0, 1.84]), np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    scene = replace(make_scene(key_frames=16, agents=agents, ego_speed_mps=9.0), lidar_to_ego=turned)  # x right, y forward
    made = build_scenario(scene, BASELINE, 0, duration_s=7.0)
    assert isinstance(made, Scenario)
    return VadFootage(
        drive=Drive.of(made), frames=FRAMES, images=np.zeros((len(FRAMES), 6, 32, 64, 3), np.uint8), lines=(LINES,) * len(FRAMES),
        seen=np.ones((len(FRAMES), len(made.agents.instance_tokens)), dtype=bool),
    )  # fmt: skip


@dataclass
class Oracle:
    """Says key frame after key frame what is true, changed by a fault."""

    footage: VadFootage
    fault: dict
    config: VadConfig = CONFIG
    asked: int = 0

    def __call__(self, images, lidar_to_image, can_bus, past) -> VadOutputs:
        assert (past is None) == (self.asked == 0)
        outputs = perfect(self.footage.targets(self.asked, CONFIG), CONFIG)
        self.asked += 1
        return replace(outputs, **{name: change(getattr(outputs, name)) for name, change in self.fault.items()})


def scored(footage: VadFootage, **fault):
    return score_frames([judge_stretch(Oracle(footage, fault), footage)])


def test_truth_scores_perfectly(footage):
    scores = scored(footage)
    table = scores.table_7()
    classes = sum(count > 0 for count in scores.detection.scores.truth_counts.values())
    assert classes > 0 and len(scores.frames) == len(FRAMES)
    assert table["mAP_OD"] == pytest.approx(classes / 10)
    assert scores.detection.scores.nds_with_truth == pytest.approx(1.0), "attributes follow from speeds and classes"
    assert table["mAP_Line"] == table["Recall_Line"] == pytest.approx(1.0)
    assert scores.planning.frames == len(FRAMES)
    assert scores.planning.average.l2_m[3] == pytest.approx(0.0, abs=1e-4)
    assert scores.planning.average.grid_collision_rate[3] == scores.planning.average.heading_collision_rate[3] == 0.0
    assert scores.motion["car"].ade_m == pytest.approx(0.0, abs=1e-3) and scores.motion["car"].false_alarms == 0


def test_a_plan_that_drifts_aside_shows_in_both_conventions(footage):
    aside = torch.tensor([0.1, 0.0])  # each of six steps
    planning = scored(footage, plan_BUT2=lambda plan: plan + aside).planning
    assert planning.at_time.l2_m[3] == pytest.approx(0.6, abs=1e-3)
    assert planning.average.l2_m[3] == pytest.approx(0.35, abs=1e-3)


def test_lines_and_boxes_off_by_metres_are_missed_and_the_rest_is_not_touched(footage):
    scores = scored(footage, map_points_LBIP2=lambda points: points + 0.2)  # 6 m aside, 12 m ahead
    assert scores.table_7()["Recall_Line"] < 0.2 and scores.table_7()["mAP_OD"] == scored(footage).table_7()["mAP_OD"]
    scores = scored(footage, boxes_LBO10=lambda boxes: boxes + torch.tensor([5.0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
    assert scores.table_7()["mAP_OD"] < 0.02 and scores.table_7()["mAP_Line"] == pytest.approx(1.0)
    assert scores.motion["car"].false_alarms > 0


def test_forecasts_owe_nothing_to_agents_out_of_range(footage):
    agents = footage.drive.agents
    far = replace(
        footage.drive, agents=replace(agents, centers_m=agents.centers_m + np.array([[[60.0, 0, 0]], [[0, 0, 0]], [[0, 0, 0]]]))
    )
    near = scored(footage).motion["car"]
    score = scored(replace(footage, drive=far)).motion["car"]
    assert near.truths > score.truths > 0 and near.epa == score.epa == 1.0


def test_agents_that_no_picture_shows_are_no_truth(footage):
    blind = replace(footage, seen=np.zeros_like(footage.seen))
    scores = score_frames([judge_stretch(Oracle(footage, {}), blind)])
    assert sum(scores.detection.scores.truth_counts.values()) == 0


def test_given_frames_are_read_and_not_judged_and_stretches_may_come_again(footage):
    frames = judge_stretch(Oracle(footage, {}), replace(footage, given=2))
    assert len(frames) == len(FRAMES) - 2
    np.testing.assert_array_equal(frames[0].ego_to_global, footage.drive.ego_to_global[FRAMES[2]])
    once, twice = score_frames([frames]), score_frames([frames, frames])
    assert len(twice.frames) == 2 * len(once.frames) and twice.table_7() == pytest.approx(once.table_7())
