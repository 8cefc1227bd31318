"""Targets, matching and losses: closed forms, round trips through the coders, and planted permutations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dwm.geometry import invert
from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from dwm.scenes.types import DETECTION_CLASSES
from evaluators.boxes import boxes_from, boxes_of_agents
from evaluators.drive import Drive
from evaluators.vad.coders import decode_map, decode_objects, decode_plan
from evaluators.vad.losses import VadLossWeights, focal_loss, surroundings, vad_losses
from evaluators.vad.matching import match_boxes, match_lines
from evaluators.vad.model import VAD
from evaluators.vad.plan_losses import boundary_loss, collision_loss, direction_loss
from evaluators.vad.targets import box_code, orders_of, targets_of
from tests.evaluators.vad.vad_factories import CONFIG, LINES, TINY, frame, perfect
from tests.factories import make_scene


@pytest.fixture(scope="module")
def drive() -> Drive:
    made = build_scenario(make_scene(), BASELINE, 0, duration_s=6.0)
    assert isinstance(made, Scenario)
    return Drive.of(made)


def test_targets_are_read_back_by_the_coders(drive):
    target = targets_of(drive, 12, CONFIG, LINES)
    assert len(target.labels_N) > 0
    outputs = perfect(target, CONFIG)
    found = decode_objects(outputs)[0]
    sure = found.boxes.scores > 0.5
    low, high = np.array(CONFIG.range_m[:3]), np.array(CONFIG.range_m[3:])
    truth = boxes_of_agents(drive.agents, 12, drive.ego_to_global[12]).moved(invert(drive.lidar_to_ego))
    truth = truth.select(((truth.centers_m >= low) & (truth.centers_m <= high)).all(axis=1))
    order = np.argsort(truth.centers_m[:, 1])
    own = found.boxes.select(sure)
    mine = np.argsort(own.centers_m[:, 1])
    np.testing.assert_allclose(own.centers_m[mine], truth.centers_m[order], atol=1e-4)
    np.testing.assert_allclose(own.sizes_wlh_m[mine], truth.sizes_wlh_m[order], rtol=1e-5)
    np.testing.assert_allclose(np.cos(own.yaws_rad[mine] - truth.yaws_rad[order]), 1, atol=1e-6)
    np.testing.assert_allclose(own.velocities_mps[mine], truth.velocities_mps[order], atol=1e-4)
    assert own.labels[mine].tolist() == truth.labels[order].tolist()
    lines = decode_map(outputs, CONFIG)[0]
    ends = {line.class_name: line.points_m for line in lines if line.score > 0.5}
    np.testing.assert_allclose(sorted(ends["divider"][[0, -1], 1]), [-25, 25], atol=1e-4)
    path = decode_plan(outputs, [target.command])[0]
    driven = [
        invert(drive.ego_to_global[12] @ drive.lidar_to_ego) @ drive.ego_to_global[12 + 6 * k] @ drive.lidar_to_ego
        for k in range(1, 7)
    ]
    np.testing.assert_allclose(path, [pose[:2, 3] for pose in driven], atol=1e-4)


def test_futures_end_with_the_scenario_and_with_the_agent(drive):
    last = len(drive) - 1
    target = targets_of(drive, last - 12, CONFIG, ())
    assert target.plan_known_T.tolist() == [True, True, False, False, False, False]
    assert target.steps_known_NT[:, 2:].sum() == 0
    gone = drive.agents.present.copy()
    gone[:, 12 + 13 :] = False
    short = targets_of(replace(drive, agents=replace(drive.agents, present=gone)), 12, CONFIG, ())
    assert short.steps_known_NT.sum(1).max() == 2
    assert float(short.steps_NT2[:, 2:].abs().max()) == 0.0
    assert short.map_points_IGP2.shape == (0, 8, 5, 2)


def test_unseen_agents_are_no_targets(drive):
    nobody = np.zeros(len(drive.agents.instance_tokens), dtype=bool)
    assert len(targets_of(drive, 12, CONFIG, (), seen=nobody).labels_N) == 0


def test_what_is_perfect_costs_next_to_nothing(drive):
    target = targets_of(drive, 12, CONFIG, LINES)
    losses = vad_losses(
        perfect(target, CONFIG), [target], CONFIG, VadLossWeights(plan_collision=0.0, plan_boundary=0.0, plan_direction=0.0)
    )
    assert set(losses) == {*VadLossWeights.__slots__, "total"}
    assert float(losses["total"]) < 1e-3
    assert float(losses["total"]) == pytest.approx(sum(float(v) for k, v in losses.items() if k != "total"))


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("box", "boxes"),
        ("class", "classes"),
        ("line", "map_points"),
        ("plan", "plan"),
        ("future", "futures"),
        ("mode", "modes"),
    ],
)
def test_each_fault_shows_in_its_own_part(drive, fault, part):
    target = targets_of(drive, 12, CONFIG, LINES)
    outputs = perfect(target, CONFIG)
    faults = {
        "box": {"boxes_LBO10": outputs.boxes_LBO10 + 0.1}, "class": {"class_logits_LBOK": outputs.class_logits_LBOK.roll(1, -1)},
        "line": {"map_points_LBIP2": outputs.map_points_LBIP2 + 0.01}, "plan": {"plan_BUT2": outputs.plan_BUT2 + 0.3},
        "future": {"steps_BOMT2": outputs.steps_BOMT2 + 0.2}, "mode": {"mode_logits_BOM": outputs.mode_logits_BOM.roll(1, -1)},
    }  # fmt: skip
    clean, faulty = (vad_losses(o, [target], CONFIG) for o in (outputs, replace(outputs, **faults[fault])))
    grown = {name: float(faulty[name] - clean[name]) for name in VadLossWeights.__slots__}
    assert max(grown, key=grown.__getitem__) == part
    counts = {"box": len(target.labels_N), "future": int(target.steps_known_NT.sum())}
    if fault == "plan":
        assert grown["plan"] == pytest.approx(0.6, abs=1e-4)
    if fault == "future" and counts["future"]:
        assert grown["futures"] == pytest.approx(0.2 * 0.4, abs=1e-4)
    if fault == "line":  # 2 layers, 5 points, 2 coordinates, each 0.01 off
        assert grown["map_points"] == pytest.approx(2 * 10 * 0.01, abs=1e-3)
    if fault == "box" and counts["box"]:  # 2 layers, weights 8 x 1 and 2 x 0.2
        assert grown["boxes"] == pytest.approx(2 * 0.25 * 0.1 * 8.4, rel=1e-3)


def test_focal_loss_by_hand():
    p = 0.8
    logit = math.log(p / (1 - p))
    loss = focal_loss(torch.tensor([[logit, logit]]), torch.tensor([[1.0, 0.0]]))
    assert float(loss) == pytest.approx(0.25 * 0.04 * -math.log(0.8) + 0.75 * 0.64 * -math.log(0.2))


def test_a_frame_without_anything_has_a_loss_and_gradients():
    model = VAD(TINY)
    images, lidar_to_image, can_bus = frame(TINY, 1, 0)
    outputs = model(images, lidar_to_image, can_bus)
    target = targets_of(_empty(), 0, TINY, ())
    losses = vad_losses(outputs, [target], TINY)
    losses["total"].backward()
    assert all(math.isfinite(float(v.detach())) for v in losses.values())
    values = {name: float(value.detach()) for name, value in losses.items()}
    assert values["boxes"] == values["map_points"] == values["futures"] == 0.0 and values["classes"] > 0


def _empty() -> Drive:
    made = build_scenario(make_scene(agents=()), BASELINE, 0, duration_s=2.0)
    assert isinstance(made, Scenario)
    return Drive.of(made)


def test_matching_undoes_a_permutation_and_prefers_the_right_class():
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.normal(size=(4, 10)) * 5).float()
    labels = torch.tensor([0, 3, 3, 8])
    boxes, logits = torch.randn(7, 10) * 5, torch.full((7, 10), -3.0)
    where = torch.tensor([5, 0, 6, 2])
    boxes[where], logits[where, labels] = truth, 3.0
    queries, rows = match_boxes(logits, boxes, labels, truth)
    assert sorted(zip(rows.tolist(), queries.tolist(), strict=True)) == list(enumerate(where.tolist()))
    logits[5], logits[1], boxes[1] = -3.0, -3.0, truth[0]
    logits[1, 0] = 3.0
    queries, rows = match_boxes(logits, boxes, labels, truth)
    assert dict(zip(rows.tolist(), queries.tolist(), strict=True))[0] == 1, "of two equal boxes the one of its class"


def test_lines_match_in_whichever_order_they_are_drawn():
    square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
    shifted = np.array([[1.0, 1], [1, 0], [0, 0], [0, 1], [1, 1]])
    orders = orders_of(square)
    assert orders.shape == (8, 5, 2) and len(np.unique(orders.reshape(8, -1), axis=0)) == 8
    assert any(np.array_equal(order, shifted) for order in orders)
    straight = np.linspace([0, 0], [1, 3], 5)
    assert len(np.unique(orders_of(straight).reshape(8, -1), axis=0)) == 2
    truth = torch.from_numpy(np.stack([orders, orders_of(straight)])).float()
    points = torch.from_numpy(np.stack([straight[::-1], shifted, shifted + 0.3]).copy()).float()
    queries, rows, order = match_lines(torch.zeros(3, 3), points, torch.tensor([1, 0]), truth)
    assert dict(zip(rows.tolist(), queries.tolist(), strict=True)) == {0: 1, 1: 0}
    torch.testing.assert_close(truth[rows, order], points[queries])


def test_more_lines_than_queries_leave_some_unmatched():
    truth = torch.rand(5, 8, 5, 2)
    queries, rows, order = match_lines(torch.zeros(3, 3), torch.rand(3, 5, 2), torch.zeros(5, dtype=torch.long), truth)
    assert len(queries) == len(rows) == len(order) == 3


def test_constraints_of_the_plan_by_hand():
    path = torch.tensor([[0.0, 2.0], [0.0, 4.0]])
    agent = torch.tensor([[[1.0, 3.0], [8.0, 4.0]]])  # 1 m aside and 1 ahead at the first step, far away at the second
    assert float(collision_loss(path, agent)) == pytest.approx((0.5 + 2.0) / 2)
    boundary = torch.tensor([[[0.6, 0.0], [0.6, 2.0], [0.6, 30.0]]])
    assert float(boundary_loss(path, boundary)) == pytest.approx((0.4 + 0.0) / 2)
    steps = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    divider = torch.tensor([[[1.0, 4.0], [1.0, 2.0], [1.0, 0.0]]])  # drawn against the way of driving
    assert float(direction_loss(steps, divider)) == pytest.approx(math.pi / 4 / 2, abs=1e-5)
    assert float(direction_loss(steps, divider + torch.tensor([5.0, 0.0]))) == 0.0
    nothing = torch.zeros(0, 2, 2)
    assert float(collision_loss(path, nothing) + boundary_loss(path, nothing) + direction_loss(steps, nothing)) == 0.0


def test_the_plan_is_held_against_what_the_network_is_sure_of(drive):
    target = targets_of(drive, 12, CONFIG, LINES)
    around = surroundings(perfect(target, CONFIG), 0, CONFIG)
    assert len(around.agents_NT2) == len(target.labels_N) and len(around.boundaries_IP2) == len(around.dividers_IP2) == 1
    torch.testing.assert_close(around.agents_NT2[:, -1].sum(0), (target.boxes_N10[:, :2] + target.steps_NT2.sum(1)).sum(0))
    np.testing.assert_allclose(sorted(around.dividers_IP2[0, [0, -1], 1].tolist()), [-25, 25], atol=1e-4)


def test_a_code_holds_a_box():
    boxes = boxes_from(
        np.array([DETECTION_CLASSES.index("car")]), np.array([[1.0, 2.0, 0.5]]), np.array([[1.9, 4.5, 1.6]]), np.array([0.3]),
        velocities_mps=np.array([[3.0, -1.0]]),
    )  # fmt: skip
    expected = [
        1,
        2,
        math.log(1.9),
        math.log(4.5),
        0.5,
        math.log(1.6),
        math.sin(-0.3 - math.pi / 2),
        math.cos(-0.3 - math.pi / 2),
        3,
        -1,
    ]
    np.testing.assert_allclose(box_code(boxes)[0], expected, atol=1e-6)
