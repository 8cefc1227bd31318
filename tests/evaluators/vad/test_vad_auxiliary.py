"""What helps training: the truth of cells, and its losses."""

from __future__ import annotations

import math

import pytest
import torch

from evaluators.mapping import MAP_CLASSES
from evaluators.vad.auxiliary import HelpedVad, auxiliary_losses, grid_truth
from evaluators.vad.config import OBJECT_CLASSES
from evaluators.vad.losses import VadLossWeights, object_losses
from evaluators.vad.targets import VadTargets, orders_of
from tests.evaluators.vad.vad_factories import TINY


def make_target(objects=(), lines=()) -> VadTargets:
    """Objects as (label, x, y, w, l, yaw), lines as (label, [P, 2] in shares)."""
    boxes = [
        [x, y, math.log(w), math.log(length), 0, 0.4, math.sin(-yaw - math.pi / 2), math.cos(-yaw - math.pi / 2), 1, 2]
        for _, x, y, w, length, yaw in objects
    ]
    n, points = len(objects), TINY.map_points
    spread = [torch.lerp(torch.tensor(a), torch.tensor(b), torch.linspace(0, 1, points)[:, None]) for _, (a, b) in lines]
    orders = [torch.from_numpy(orders_of(line.numpy())) for line in spread]
    return VadTargets(
        labels_N=torch.tensor([label for label, *_ in objects], dtype=torch.long),
        boxes_N10=torch.tensor(boxes).reshape(n, 10), steps_NT2=torch.zeros(n, TINY.steps, 2),
        steps_known_NT=torch.zeros(n, TINY.steps, dtype=torch.bool),
        map_labels_I=torch.tensor([label for label, _ in lines], dtype=torch.long),
        map_points_IGP2=torch.stack(orders).float() if orders else torch.zeros(0, 2 * (points - 1), points, 2),
        plan_T2=torch.zeros(TINY.steps, 2), plan_known_T=torch.zeros(TINY.steps, dtype=torch.bool), command=0,
    )  # fmt: skip


def cells_of(classes_QC: torch.Tensor, label: int) -> set[tuple[int, int]]:
    rows, columns = TINY.bev_hw
    return {(int(r), int(c)) for r, c in classes_QC[:, label].reshape(rows, columns).nonzero()}


def center(row: int, column: int) -> tuple[float, float]:
    rows, columns = TINY.bev_hw
    return -15 + 30 * (column + 0.5) / columns, -30 + 60 * (row + 0.5) / rows


def test_an_objects_cells_are_those_under_its_footprint():
    row, column = TINY.bev_hw[0] // 2, TINY.bev_hw[1] // 2
    x, y = center(row, column)
    step_x, step_y = 30 / TINY.bev_hw[1], 60 / TINY.bev_hw[0]
    # Along y at yaw 90 degrees: its own cell and one to each side of that.
    truth = grid_truth(make_target([(0, x + 0.1, y, 0.9 * step_x, 2.2 * step_y, math.pi / 2)]), TINY)
    assert cells_of(truth.classes_QC, 0) == {(row + k, column) for k in (-1, 0, 1)}
    assert float(truth.classes_QC.sum()) == 3.0
    boxes = truth.boxes_Q10.reshape(*TINY.bev_hw, 10)
    torch.testing.assert_close(boxes[row + 1, column, :2], torch.tensor([0.1, -step_y]), atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes[row, column, 2:4].exp(), torch.tensor([0.9 * step_x, 2.2 * step_y]))
    assert int(truth.boxes_Q10[:, 0].isfinite().sum()) == 3
    # The same car along x lies elsewhere.
    turned = grid_truth(make_target([(0, x, y, 0.5 * step_y, 2.2 * step_x, 0.0)]), TINY)
    assert cells_of(turned.classes_QC, 0) == {(row, column + k) for k in (-1, 0, 1)}


def test_what_is_smaller_than_a_cell_has_the_nearest_one():
    label = OBJECT_CLASSES.index("pedestrian")
    x, y = center(1, 2)
    truth = grid_truth(make_target([(label, x + 0.4, y - 0.4, 0.2, 0.2, 0.3)]), TINY)
    assert cells_of(truth.classes_QC, label) == {(1, 2)}


def test_a_line_has_the_cells_it_runs_through():
    column = 1
    share = (column + 0.5) / TINY.bev_hw[1]
    label = MAP_CLASSES.index("divider")
    truth = grid_truth(make_target(lines=[(label, ((share, 0.0), (share, 1.0)))]), TINY)
    found = cells_of(truth.classes_QC, len(OBJECT_CLASSES) + label)
    assert {(row, column) for row in range(TINY.bev_hw[0])} <= found
    assert not truth.boxes_Q10.isfinite().any()


def test_the_losses_are_those_of_cells_and_of_every_group_and_reach_the_grid():
    torch.manual_seed(0)
    model = HelpedVad(TINY, groups=2)
    target = make_target([(0, 1.0, 5.0, 2.0, 4.0, 0.2), (8, -3.0, 9.0, 0.7, 0.7, 0.0)], [(1, ((0.3, 0.0), (0.4, 1.0)))])
    bev = torch.randn(1, TINY.bev_hw[0] * TINY.bev_hw[1], TINY.width, requires_grad=True)
    weights = VadLossWeights(classes=3.0, boxes=0.5)
    losses = auxiliary_losses(model, bev, [target], weights)
    expected = 0.0
    for queries in model.queries:
        found = model.vad.pts_bbox_head.objects(bev, queries)
        expected += 0.5 * object_losses(found.class_logits_LBOK[:, 0], found.boxes_LBO10[:, 0], target)[0]["boxes"].item() / 2
    assert losses["group_boxes"].item() == pytest.approx(expected, rel=1e-5)
    twice = auxiliary_losses(model, bev.expand(2, -1, -1), [target, target], weights)
    for name, value in losses.items():
        assert twice[name].item() == pytest.approx(value.item(), rel=1e-4)
    losses["cell_boxes"].backward()
    assert bev.grad is not None and int((bev.grad.abs().sum(-1) > 0).sum()) == int(
        grid_truth(target, TINY).boxes_Q10[:, 0].isfinite().sum()
    ), "only occupied cells say where"


def test_a_head_that_knows_has_no_loss():
    target = make_target([(0, 1.0, 5.0, 2.0, 4.0, 0.2)])
    truth = grid_truth(target, TINY)
    known = torch.cat([torch.where(truth.classes_QC > 0, 20.0, -20.0), torch.nan_to_num(truth.boxes_Q10)], dim=-1)
    model = HelpedVad(TINY, groups=0)
    model.cells = torch.nn.Identity()
    losses = auxiliary_losses(model, known[None], [target], VadLossWeights())
    assert losses["cell_classes"].item() < 1e-6 and losses["cell_boxes"].item() == 0.0
