"""Boxes to targets and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dwm.scenes.types import DETECTION_CLASSES
from evaluators.boxes import ALLOWED_ATTRIBUTES, ATTRIBUTES, Boxes, boxes_from
from evaluators.detector.decode import DecodeConfig, decode
from evaluators.detector.loss import detection_losses, focal_loss
from evaluators.detector.model import REGRESSIONS, DetectorConfig
from evaluators.detector.targets import Targets, draw_gaussian, gaussian_radius, make_targets

CONFIG = DetectorConfig(half_range_m=25.6)


def some_boxes(n: int = 12, seed: int = 0) -> Boxes:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(DETECTION_CLASSES)
    angle = np.arange(n) * 2 * math.pi / n
    centers = np.stack([20 * np.cos(angle), 20 * np.sin(angle), rng.uniform(0, 2, n)], -1) + rng.uniform(-0.3, 0.3, (n, 3))
    attributes = np.where(ALLOWED_ATTRIBUTES[labels].any(1), ALLOWED_ATTRIBUTES[labels].argmax(1), -1)
    return boxes_from(
        labels, centers, rng.uniform(0.4, 5, (n, 3)), rng.uniform(-math.pi, math.pi, n), rng.normal(0, 5, (n, 2)), attributes
    )


def as_outputs(targets: Targets) -> dict[str, torch.Tensor]:
    """Perfect network outputs for targets."""
    batch, _, n, _ = targets.heatmap_BLXY.shape
    maps = {name: torch.zeros(batch, channels, n, n) for name, channels in REGRESSIONS.items()}
    values = {"offset": targets.offset_K2, "z": targets.z_K1, "log_size": targets.log_size_K3, "yaw": targets.yaw_K2}
    values["velocity"] = targets.velocity_K2
    values["attribute"] = torch.nn.functional.one_hot(targets.attribute_K.clamp(min=0), len(ATTRIBUTES)).float()
    for name, value in values.items():
        maps[name][targets.batch_K, :, targets.row_K, targets.column_K] = value
    return {"heatmap": torch.logit(targets.heatmap_BLXY.clamp(1e-6, 1 - 1e-6)), **maps}


def test_decoding_inverts_targets() -> None:
    batch = [some_boxes(12, seed=0), some_boxes(7, seed=1)]
    decoded = decode(as_outputs(make_targets(batch, CONFIG)), CONFIG, DecodeConfig(min_score=0.99))
    for boxes, found in zip(batch, decoded, strict=True):
        assert len(found) == len(boxes)
        order = np.linalg.norm(found.centers_m[:, None] - boxes.centers_m[None], axis=-1).argmin(0)
        found = found.select(order)
        for name in ("centers_m", "sizes_wlh_m", "yaws_rad", "velocities_mps"):
            np.testing.assert_allclose(getattr(found, name), getattr(boxes, name), atol=1e-3)
        np.testing.assert_array_equal(found.labels, boxes.labels)
        np.testing.assert_array_equal(found.attributes, boxes.attributes)


def test_boxes_outside_the_grid_make_no_target() -> None:
    boxes = boxes_from(np.array([0, 0]), [[30.0, 0, 1], [-25.7, 0, 1]], np.full((2, 3), 2.0), np.zeros(2))  # type: ignore[arg-type]
    targets = make_targets([boxes], CONFIG)
    assert len(targets.row_K) == 0
    assert targets.heatmap_BLXY.max() == 0


def test_a_second_weaker_centre_on_the_same_car_is_suppressed_but_not_on_the_next_pedestrian() -> None:
    pair = [[10.0, 0.0, 1.0], [11.7, 0.0, 1.0]]
    for label, expected in ((0, 1), (5, 2)):
        maps = as_outputs(make_targets([boxes_from(np.array([label] * 2), pair, np.ones((2, 3)), np.zeros(2))], CONFIG))  # type: ignore[arg-type]
        maps["offset"][:, 0, 45:48] = 0.4  # the second centre's cell: pulls both within 1.7 m
        found = decode(maps, CONFIG, DecodeConfig(min_score=0.99))[0]
        assert len(found) == expected


def test_gaussian_radius_keeps_the_stated_overlap() -> None:
    width, length, overlap = 6.0, 14.0, 0.1
    r = gaussian_radius(width, length, overlap)
    grown = width * length / ((width + 2 * r) * (length + 2 * r))
    shrunk = max(width - 2 * r, 0) * max(length - 2 * r, 0) / (width * length)
    moved = (width - r) * (length - r)
    shifted = moved / (2 * width * length - moved)
    assert min(grown, shrunk, shifted) == pytest.approx(overlap, abs=1e-6)


def test_gaussian_is_clipped_at_the_border_and_keeps_the_stronger_value() -> None:
    heatmap = np.zeros((8, 8), np.float32)
    draw_gaussian(heatmap, 0, 7, 3)
    assert heatmap[0, 7] == 1
    sigma = 7 / 6
    assert heatmap[2, 7] == pytest.approx(math.exp(-4 / (2 * sigma**2)))
    draw_gaussian(heatmap, 1, 7, 3)
    assert heatmap[0, 7] == 1


def test_focal_loss_matches_the_closed_form() -> None:
    heatmap = torch.tensor([[1.0, 0.5, 0.0]])
    p = torch.tensor([[0.8, 0.3, 0.1]])
    expected = -((0.2**2) * math.log(0.8) + 0.5**4 * 0.3**2 * math.log(0.7) + 0.1**2 * math.log(0.9))
    assert focal_loss(torch.logit(p), heatmap).item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_stays_finite_for_saturated_logits() -> None:
    assert torch.isfinite(focal_loss(torch.tensor([[200.0, -200.0]]), torch.tensor([[0.0, 1.0]])))


def test_perfect_outputs_cost_next_to_nothing_and_unknown_velocity_is_ignored() -> None:
    boxes = some_boxes()
    boxes.velocities_mps[3] = np.nan
    targets = make_targets([boxes], CONFIG)
    outputs = as_outputs(targets)
    outputs["velocity"] = outputs["velocity"].nan_to_num(nan=99.0)
    losses = detection_losses(outputs, targets)
    assert losses["velocity"] == 0
    assert max(losses[name].item() for name in ("offset", "z", "log_size", "yaw")) < 1e-6
    outputs["z"] += 0.5
    assert detection_losses(outputs, targets)["z"].item() == pytest.approx(0.5, rel=1e-4)


def test_every_class_gets_only_its_own_attributes() -> None:
    boxes = boxes_from(
        np.array([0, 5, 7, 9]), np.array([[5.0, 5, 1], [-5, 5, 1], [5, -5, 1], [-5, -5, 1]]), np.ones((4, 3)), np.zeros(4)
    )
    maps = as_outputs(make_targets([boxes], CONFIG))
    maps["attribute"][:] = torch.arange(8.0)[None, :, None, None]
    found = decode(maps, CONFIG, DecodeConfig(min_score=0.99))[0]
    names = {
        DETECTION_CLASSES[label]: ATTRIBUTES[a] if a >= 0 else ""
        for label, a in zip(found.labels, found.attributes, strict=True)
    }
    assert names == {
        "car": "vehicle.stopped", "pedestrian": "pedestrian.sitting_lying_down", "bicycle": "cycle.without_rider",
        "barrier": "",
    }  # fmt: skip
