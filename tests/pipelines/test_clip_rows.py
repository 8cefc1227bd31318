"""Box and map rows of a clip: both frames agree, what nobody sees is left out, rates are as asked."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dwm.geometry import apply, invert
from dwm.scenario.build import build_scenario
from dwm.scenario.labels import label_clip
from dwm.scenario.types import Perturbation, Scenario
from evaluators.boxes import boxes_from
from pipelines.clip_rows import box_rows
from pipelines.clip_scores import ClipScores
from pipelines.map_rows import map_rows
from pipelines.schema import table_from_rows
from tests.factories import make_agent, make_scene

ASIDE = Perturbation(name="lateral_offset", params={"offset_m": 1.5, "onset_s": 0.5, "ramp_s": 3.0}, severity=0.5)


def scores(**fields: object) -> ClipScores:
    empty = dict(rows=[], for_gate={}, scored_frames=(), detections={}, support={})
    return ClipScores(**{**empty, **fields})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """An ego that moves aside, a car ahead, a truck beside the road, and one behind the truck that nobody ever sees."""
    keys = make_scene(key_frames=13).key_timestamps_us
    truck: dict[str, Any] = dict(size_wlh_m=(3.0, 8.0, 4.0), category="vehicle.truck", detection_class="truck")
    agents = (
        make_agent("ahead", lambda t: (35.0 + 10 * t, 0.0, 0.3), keys),
        make_agent("truck", lambda t: (25.0 + 10 * t, 5.5, 0.0), keys, **truck),
        make_agent("hidden", lambda t: (36.0 + 10 * t, 8.0, 0.0), keys, size_wlh_m=(0.4, 0.4, 1.0)),
    )
    silent = tuple(replace(a, num_lidar_pts=a.num_lidar_pts * (a.instance_token != "hidden")) for a in agents)
    built = build_scenario(make_scene(key_frames=13, agents=silent), ASIDE, 0, duration_s=5.5)
    assert isinstance(built, Scenario)
    return built


def test_rows_in_the_ego_frame_are_the_global_ones_seen_from_the_commanded_pose(scenario: Scenario) -> None:
    rows = box_rows("clip", scenario, scores(), label_clip(scenario))
    assert len(rows) >= 22
    for row in rows:
        to_ego = invert(scenario.ego_to_global[row["frame_index"]])
        center = apply(to_ego, np.array([[row["center_x"], row["center_y"], row["center_z"]]]))[0]
        assert np.allclose(center, [row[f"center_ego_{k}"] for k in "xyz"])
        heading = to_ego[:3, :3] @ [np.cos(row["yaw"]), np.sin(row["yaw"]), 0.0]
        assert np.allclose(heading[:2], [np.cos(row["yaw_ego"]), np.sin(row["yaw_ego"])])
        assert np.allclose(to_ego[:2, :2] @ [row["vx"], row["vy"]], [row["vx_ego"], row["vy_ego"]])
    # At the end the ego has moved 1.5 m to the left of a road along x: the car ahead lies to its right.
    last = [row for row in rows if row["instance_token"] == "ahead"][-1]
    assert last["center_ego_y"] == pytest.approx(-1.5, abs=0.01)
    assert (last["label_source"], last["num_lidar_pts_source"]) == ("transformed", "simulated")


def test_an_agent_nobody_ever_sees_has_no_rows_and_the_table_holds_the_others_whole(scenario: Scenario) -> None:
    labels = label_clip(scenario)
    rows = box_rows("clip", scenario, scores(), labels)
    tokens = {row["instance_token"] for row in rows}
    hidden = scenario.agents.instance_tokens.index("hidden")
    assert not labels.seen[hidden] and (labels.visibility[hidden] == 1).all()
    assert tokens == {"ahead", "truck"}
    table = table_from_rows("boxes", rows)
    for column in ("visibility", "occlusion", "truncation", "num_lidar_pts", "num_lidar_pts_source", "center_ego_x", "vx_ego"):
        assert table[column].null_count == 0, column


def test_every_frame_has_rows_at_the_clips_own_rate_and_only_key_frames_are_samples(scenario: Scenario) -> None:
    rows = box_rows("clip", scenario, scores(), label_clip(scenario, 12.0))
    ahead = [row for row in rows if row["instance_token"] == "ahead"]
    assert [row["frame_index"] for row in ahead] == list(range(66))
    assert [row["sample_index"] for row in ahead if row["sample_index"] >= 0] == list(range(11))
    between = {row["label_source"] for row in ahead if row["sample_index"] < 0}
    assert between == {"interpolated", "transformed"}
    sparse = [row for row in box_rows("clip", scenario, scores(), label_clip(scenario)) if row["instance_token"] == "ahead"]
    # Key-frame rows are the same at any rate.
    assert sparse == [row for row in ahead if row["sample_index"] >= 0]


def test_detections_have_ego_columns_and_nothing_that_only_labels_know(scenario: Scenario) -> None:
    found = boxes_from(np.array([0]), np.array([[12.0, 3.0, 0.8]]), np.array([[1.9, 4.5, 1.6]]), np.array([0.2]))
    rows = box_rows("clip", scenario, scores(detections={60: found}), label_clip(scenario))
    (row,) = [row for row in rows if row["label_source"] == "detected"]
    assert np.allclose([row["center_ego_x"], row["center_ego_y"], row["yaw_ego"]], [12.0, 3.0, 0.2])
    assert row["vx"] is None and row["vx_ego"] is None
    (stored,) = table_from_rows("boxes", [row]).to_pylist()
    assert stored["occlusion"] is stored["visibility"] is stored["num_lidar_pts_source"] is None


def test_map_rows_hold_the_drivable_area_and_the_lines_around_the_paths(scenario: Scenario) -> None:
    rows = map_rows("clip", scenario)
    kinds = {row["kind"] for row in rows}
    assert kinds == {"drivable", "boundary", "centerline"}  # the factory's map has lanes, but no vectors and no crossing
    assert len({row["element_id"] for row in rows}) == len(rows)
    lane = next(np.array(row["points_xy_m"]).reshape(-1, 2) for row in rows if row["kind"] == "centerline")
    reach = scenario.ego_to_global[:, 0, 3]
    assert lane[0, 0] == pytest.approx(reach.min() - 80) and lane[-1, 0] == pytest.approx(reach.max() + 80)
    assert not any(row["is_polygon"] for row in rows if row["kind"] != "drivable")
