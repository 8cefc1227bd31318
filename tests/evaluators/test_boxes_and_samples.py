"""Boxes of scenes and scenarios, and the cache of key frames."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dwm.geometry import invert, quaternion_from_yaw, transform_from_xy_yaw
from dwm.scenario.types import AgentBoxes, Perturbation, Scenario
from dwm.scenes.types import DETECTION_CLASSES, AgentTrack, EgoTrack, Scene
from evaluators.boxes import (
    ALLOWED_ATTRIBUTES,
    ATTRIBUTES,
    Boxes,
    boxes_from,
    boxes_of_scenario,
    boxes_of_scene,
    cycles_in_racks,
)
from evaluators.detector.samples import KeyFrames, read_cache, write_cache

POSE = transform_from_xy_yaw(100.0, 50.0, np.pi / 2)
TIMES = np.array([1_000_000, 1_500_000])


def track(detection_class: str | None, center: list[float], visibility: int = 4) -> AgentTrack:
    return AgentTrack(
        instance_token="i", category="c", detection_class=detection_class, size_wlh_m=np.array([2.0, 4.5, 1.6]),
        timestamps_us=TIMES[:1], centers_m=np.array([center]), rotations_wxyz=quaternion_from_yaw(np.array([np.pi / 2])),
        velocities_mps=np.array([[0.0, 3.0]]), attributes=("vehicle.moving",), num_lidar_pts=np.array([7]), num_radar_pts=np.array([2]),
        visibility=np.array([visibility]), annotation_tokens=("a",),
    )  # fmt: skip


def scene_with(*agents: AgentTrack) -> Scene:
    ego = EgoTrack(timestamps_us=TIMES, ego_to_global=np.stack([POSE, POSE]))
    return Scene(
        dataroot=Path("."), version="v", token="t", name="scene-0001", description="", location="", date_captured="",
        key_timestamps_us=TIMES, sample_tokens=("s0", "s1"), cameras=(), frames={}, lidar_paths=(), lidar_to_ego=np.eye(4),
        ego=ego, agents=agents, map=None,  # type: ignore[arg-type]
    )  # fmt: skip


def test_annotations_come_in_the_ego_frame_at_their_own_key_frame_only() -> None:
    scene = scene_with(
        track("car", [100.0, 60.0, 1.0]), track(None, [0.0, 0, 0]), track("bus", [100.0, 70.0, 1.0], visibility=1)
    )
    boxes = boxes_of_scene(scene, 0, min_visibility=2)
    # The ego looks along global y: a car 10 m along y is 10 m ahead, driving ahead.
    np.testing.assert_allclose(boxes.centers_m, [[10.0, 0, 1]], atol=1e-9)
    np.testing.assert_allclose(boxes.yaws_rad, [0], atol=1e-9)
    np.testing.assert_allclose(boxes.velocities_mps, [[3.0, 0]], atol=1e-9)
    assert ATTRIBUTES[boxes.attributes[0]] == "vehicle.moving"
    assert boxes.num_pts[0] == 9, "as the devkit counts: LiDAR and radar"
    assert len(boxes_of_scene(scene, 0)) == 2
    assert len(boxes_of_scene(scene, 1)) == 0


def test_cycles_in_a_rack_are_no_truth_as_for_the_devkit() -> None:
    rack = dataclasses.replace(
        track(None, [100.0, 60.0, 1.0]), category="static_object.bicycle_rack", size_wlh_m=np.array([2.0, 6.0, 2.0])
    )
    along, aside = [100.0, 62.9, 1.0], [101.2, 60.0, 1.0]  # the rack lies along global y, 6 m long and 2 m wide
    scene = scene_with(rack, *(dataclasses.replace(track("bicycle", at), instance_token=str(at)) for at in (along, aside)),
                       dataclasses.replace(track("car", along), instance_token="car"))  # fmt: skip
    assert cycles_in_racks(scene, TIMES[0]) == {str(along)} and cycles_in_racks(scene, TIMES[1]) == set()
    boxes = boxes_of_scene(scene, 0)
    assert sorted(DETECTION_CLASSES[k] for k in boxes.labels) == ["bicycle", "car"]


def test_scenario_boxes_come_in_the_commanded_ego_frame_and_only_while_present() -> None:
    moved = transform_from_xy_yaw(100.0, 52.0, np.pi / 2)
    agents = AgentBoxes(
        instance_tokens=("a", "b", "c"), detection_classes=("car", "pedestrian", None), categories=("", "", ""),
        sizes_wlh_m=np.ones((3, 3)), centers_m=np.tile([[[97.0, 60.0, 1.0]]], (3, 2, 1)), yaws_rad=np.full((3, 2), np.pi),
        velocities_mps=np.zeros((3, 2, 2)), present=np.array([[True, True], [True, False], [True, True]]),
        label_sources=np.zeros((3, 2), np.int8), num_lidar_pts=np.full((3, 2), -1, np.int32), attributes=(("", ""),) * 3,
    )  # fmt: skip
    scenario = Scenario(
        scene=scene_with(), perturbation=Perturbation(name="none", params={}, severity=0.0), seed=0, fps=2.0,
        timestamps_us=TIMES,
        ego_to_global=np.stack([POSE, moved]), baseline_ego_to_global=np.stack([POSE, POSE]), agents=agents,
        is_key_frame=np.array([True, True]), log_end_index=2, prompt="",
    )  # fmt: skip
    first, second = boxes_of_scenario(scenario, 0), boxes_of_scenario(scenario, 1)
    assert first.labels.tolist() == [0, 5]
    assert second.labels.tolist() == [0]
    np.testing.assert_allclose(second.centers_m, [[8.0, 3.0, 1.0]], atol=1e-9)
    np.testing.assert_allclose(second.yaws_rad, [np.pi / 2], atol=1e-9)


def test_moving_there_and_back_gives_the_boxes_again() -> None:
    boxes = boxes_from(
        np.array([0, 1]), np.array([[1.0, 2, 3], [4, 5, 6]]), np.ones((2, 3)), np.array([0.2, -2.0]), np.ones((2, 2))
    )
    back = boxes.moved(POSE).moved(invert(POSE))
    np.testing.assert_allclose(back.centers_m, boxes.centers_m, atol=1e-9)
    np.testing.assert_allclose(back.yaws_rad, boxes.yaws_rad, atol=1e-9)
    np.testing.assert_allclose(back.velocities_mps, boxes.velocities_mps, atol=1e-9)


def test_only_cones_and_barriers_have_no_attribute() -> None:
    assert ALLOWED_ATTRIBUTES.sum(1).tolist() == [3, 3, 3, 3, 3, 3, 2, 2, 0, 0]


def test_the_cache_returns_what_was_written_and_history_stays_inside_its_scene(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def part(count: int) -> KeyFrames:
        boxes = [boxes_from(np.zeros(k, np.int64), rng.normal(size=(k, 3)), np.ones((k, 3)), np.zeros(k)) for k in range(count)]
        return KeyFrames(
            images=rng.integers(0, 255, (count, 6, 4, 5, 3), dtype=np.uint8), intrinsics=rng.normal(size=(count, 6, 3, 3)),
            camera_to_ego=rng.normal(size=(count, 6, 4, 4)), ego_to_global=np.tile(np.eye(4), (count, 1, 1)),
            previous=np.maximum(np.arange(count) - 1, 0), boxes=tuple(boxes),
            tokens=tuple(str(rng.integers(9**9)) for _ in range(count)),
        )  # fmt: skip

    parts = [part(2), part(3)]
    write_cache(tmp_path, parts)
    cached = read_cache(tmp_path)
    assert isinstance(cached.images, np.memmap)
    assert cached.previous.tolist() == [0, 0, 2, 2, 3]
    assert cached.tokens == parts[0].tokens + parts[1].tokens
    np.testing.assert_array_equal(cached.images[3], parts[1].images[1])
    assert [len(b) for b in cached.boxes] == [0, 1, 0, 1, 2]
    for a, b in zip(cached.boxes, parts[0].boxes + parts[1].boxes, strict=True):
        for name in Boxes.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("index", [0, 1])
def test_boxes_can_be_selected_by_index(index: int) -> None:
    boxes = boxes_from(np.array([3, 4]), np.zeros((2, 3)), np.ones((2, 3)), np.zeros(2))
    assert boxes.select(np.array([index])).labels.tolist() == [3 + index]
