"""From logits to boxes, lines and a path, with numbers made by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dwm.scenes.types import DETECTION_CLASSES
from evaluators.boxes import ATTRIBUTES
from evaluators.mapping import MAP_CLASSES
from evaluators.vad.coders import decode_map, decode_objects, decode_plan
from evaluators.vad.config import OBJECT_CLASSES
from evaluators.vad.model import VadOutputs
from tests.evaluators.vad.vad_factories import TINY


def outputs(**fields: torch.Tensor) -> VadOutputs:
    """One sample, two layers, of which the first would decode to something else: nothing is above zero."""
    empty = dict(
        class_logits_LBOK=torch.full((2, 1, 3, 10), -9.0), boxes_LBO10=torch.zeros(2, 1, 3, 10),
        steps_BOMT2=torch.zeros(1, 3, 2, 3, 2), mode_logits_BOM=torch.zeros(1, 3, 2),
        map_class_logits_LBIJ=torch.full((2, 1, 2, 3), -9.0), map_points_LBIP2=torch.zeros(2, 1, 2, 2, 2),
        plan_BUT2=torch.zeros(1, 3, 3, 2), bev_BQD=torch.zeros(1, 1, 1),
    )  # fmt: skip
    return VadOutputs(**{**empty, **fields})


def test_objects_are_the_best_pairs_of_query_and_class_in_nuscenes_terms():
    logits = torch.full((2, 1, 3, 10), -9.0)
    logits[1, 0, 1, OBJECT_CLASSES.index("barrier")] = 2.0
    logits[1, 0, 1, OBJECT_CLASSES.index("bus")] = 1.0
    logits[1, 0, 0, OBJECT_CLASSES.index("pedestrian")] = 0.0
    logits[1, 0, 2, OBJECT_CLASSES.index("car")] = 3.0
    boxes = torch.zeros(2, 1, 3, 10)
    rotation = 0.3
    boxes[1, 0, 1] = torch.tensor(
        [1, 2, math.log(1.5), math.log(4.0), 0.25, math.log(1.75), 2 * math.sin(rotation), 2 * math.cos(rotation), 5, -6]
    )
    boxes[1, 0, 2, 1] = 35.5  # beyond the range of centres
    steps = torch.zeros(1, 3, 2, 3, 2)
    steps[0, 1, 1] = torch.tensor([[1.0, 0], [1, 2], [0, 2]])

    (found,) = decode_objects(outputs(class_logits_LBOK=logits, boxes_LBO10=boxes, steps_BOMT2=steps))
    assert len(found.boxes) == 20  # 3 queries x 10 classes, less those of the query beyond the range
    names = [DETECTION_CLASSES[i] for i in found.boxes.labels[:3]]
    assert names == ["barrier", "bus", "pedestrian"]
    np.testing.assert_allclose(found.boxes.scores[:3], 1 / (1 + np.exp([-2.0, -1.0, 0.0])), atol=1e-6)
    for i in range(2):
        np.testing.assert_allclose(found.boxes.centers_m[i], [1, 2, 0.25], atol=1e-6)
        np.testing.assert_allclose(found.boxes.sizes_wlh_m[i], [1.5, 4.0, 1.75], rtol=1e-6)
        np.testing.assert_allclose(found.boxes.yaws_rad[i], -0.3 - math.pi / 2, atol=1e-6)
        np.testing.assert_allclose(found.boxes.velocities_mps[i], [5, -6])
        np.testing.assert_allclose(found.futures_m[i, 1], [[1, 0], [2, 2], [2, 4]])
    assert found.futures_m.shape == (20, 2, 3, 2)


@pytest.mark.parametrize(
    ("name", "still", "moving"),
    [
        ("car", "vehicle.parked", "vehicle.moving"), ("bus", "vehicle.stopped", "vehicle.moving"),
        ("bicycle", "cycle.without_rider", "cycle.with_rider"), ("pedestrian", "pedestrian.standing", "pedestrian.moving"),
        ("barrier", None, None),
    ],
)  # fmt: skip
def test_attributes_follow_from_class_and_speed(name, still, moving):
    logits, boxes = torch.full((2, 1, 3, 10), -9.0), torch.zeros(2, 1, 3, 10)
    logits[1, 0, :2, OBJECT_CLASSES.index(name)] = torch.tensor([3.0, 2.0])
    boxes[1, 0, 0, 8:], boxes[1, 0, 1, 8:] = torch.tensor([0.12, 0.15]), torch.tensor([0.13, -0.16])  # 0.19 and 0.21 m/s
    (found,) = decode_objects(outputs(class_logits_LBOK=logits, boxes_LBO10=boxes))
    said = [ATTRIBUTES[k] if k >= 0 else None for k in found.boxes.attributes[:2]]
    assert said == [still, moving]


def test_at_most_a_hundred_objects_are_kept():
    logits = torch.randn(1, 1, 30, 10, generator=torch.Generator().manual_seed(0))
    (found,) = decode_objects(
        outputs(class_logits_LBOK=logits, boxes_LBO10=torch.zeros(1, 1, 30, 10), steps_BOMT2=torch.zeros(1, 30, 1, 1, 2))
    )
    assert len(found.boxes) == 100
    best = np.sort(logits.sigmoid().double().numpy().ravel())[::-1][:100]
    np.testing.assert_allclose(found.boxes.scores, best, atol=1e-7)


def test_lines_are_kept_whatever_their_score_with_points_in_metres():
    logits = torch.full((2, 1, 2, 3), -9.0)
    logits[1, 0, 1, MAP_CLASSES.index("boundary")] = -1.0
    points = torch.zeros(2, 1, 2, 2, 2)
    points[1, 0, 1] = torch.tensor([[0.5, 0.5], [1.0, 0.25]])
    (found,) = decode_map(outputs(map_class_logits_LBIJ=logits, map_points_LBIP2=points), TINY)
    assert found[0].class_name == "boundary" and len(found) == 6
    np.testing.assert_allclose(found[0].score, 1 / (1 + math.e), atol=1e-6)
    np.testing.assert_allclose(found[0].points_m, [[0, 0], [15, -15]])
    many = outputs(map_class_logits_LBIJ=torch.zeros(1, 1, 40, 3), map_points_LBIP2=torch.zeros(1, 1, 40, 2, 2))
    assert len(decode_map(many, replace(TINY, map_instances=40))[0]) == 50


def test_the_plan_is_that_of_each_samples_command_summed_over_steps():
    plans = torch.zeros(2, 3, 3, 2)
    plans[0, 1] = torch.tensor([[0.0, 1], [-1, 1], [-1, 0]])
    plans[1, 2] = torch.tensor([[0.0, 5], [0, 5], [0, 4]])
    found = decode_plan(outputs(plan_BUT2=plans), [1, 2])
    np.testing.assert_allclose(found, [[[0, 1], [-1, 2], [-2, 2]], [[0, 5], [0, 10], [0, 14]]])
