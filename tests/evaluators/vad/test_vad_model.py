"""The whole network: memory of the frame before, batches, what is frozen, who attends to which map line, cost."""

import resource
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluators.vad import VAD, VadOutputs
from evaluators.vad.config import CONFIGS
from evaluators.vad.forecast import nearest_points
from evaluators.vad.fpn import FeaturePyramid
from evaluators.vad.resnet import ResNet
from evaluators.vad.weights import load_public
from tests.evaluators.vad.vad_factories import TINY, frame, public_shapes, ring, stirred


@pytest.fixture(scope="module")
def model() -> VAD:
    torch.manual_seed(0)
    model = VAD(TINY)
    stirred(model)
    return model


def fields(outputs: VadOutputs) -> dict[str, torch.Tensor]:
    return {name: getattr(outputs, name) for name in outputs.__dataclass_fields__}


@torch.no_grad()
def test_outputs_have_a_value_for_every_query_mode_step_and_command(model):
    outputs = fields(model(*frame(TINY, 2, seed=0)))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "class_logits_LBOK": (2, 2, 5, 10), "boxes_LBO10": (2, 2, 5, 10), "steps_BOMT2": (2, 5, 3, 2, 2),
        "mode_logits_BOM": (2, 5, 3), "map_class_logits_LBIJ": (2, 2, 4, 3), "map_points_LBIP2": (2, 2, 4, 3, 2),
        "plan_BUT2": (2, 3, 2, 2), "bev_BQD": (2, 24, 16),
    }  # fmt: skip
    low, high = torch.tensor(TINY.range_m[:3]), torch.tensor(TINY.range_m[3:])
    centers = outputs["boxes_LBO10"][..., [0, 1, 4]]
    assert bool((centers > low).all()) and bool((centers < high).all())
    assert bool((outputs["map_points_LBIP2"] > 0).all()) and bool((outputs["map_points_LBIP2"] < 1).all())


@torch.no_grad()
def test_the_frame_before_changes_what_is_seen_and_a_turn_changes_how(model):
    images, cameras, can_bus = frame(TINY, 1, seed=1)
    past = model.encode(*frame(TINY, 1, seed=2))
    alone, after = model(images, cameras, can_bus), model(images, cameras, can_bus, past)
    for name, value in fields(after).items():
        assert float((value - getattr(alone, name)).abs().max()) > 1e-4, name
    turned = can_bus.clone()
    turned[:, 17] = 0
    assert float((model.encode(images, cameras, turned, past) - after.bev_BQD).abs().max()) > 1e-4
    torch.testing.assert_close(model.encode(images, cameras, can_bus, past), after.bev_BQD)


@torch.no_grad()
def test_swapped_scenes_give_swapped_outputs(model):
    """With rigs, motions and pasts of their own."""
    images, cameras, can_bus = frame(TINY, 2, seed=3)
    cameras = torch.stack([cameras[0], ring(TINY.image_hw, turned_deg=40.0)])
    past = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(4))
    both = fields(model(images, cameras, can_bus, past))
    swapped = fields(model(images.flip(0), cameras.flip(0), can_bus.flip(0), past.flip(0)))
    single = fields(model(images[1:], cameras[1:], can_bus[1:], past[1:]))
    for name, value in both.items():
        axis = 1 if "_LB" in name else 0
        torch.testing.assert_close(swapped[name], value.flip(axis), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(single[name], value.narrow(axis, 1, 1), atol=1e-5, rtol=1e-4)


def test_every_part_that_is_trained_gets_a_gradient():
    torch.manual_seed(0)
    model = VAD(replace(TINY, dropout=0.0))
    outputs = fields(model(*frame(TINY, 1, seed=5), torch.randn(1, 24, 16)))
    noise = torch.Generator().manual_seed(6)
    torch.stack([(v * torch.randn(v.shape, generator=noise)).sum() for v in outputs.values()]).sum().backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_objects_attend_to_certain_and_near_map_lines_only(model):
    head, noise = model.pts_bbox_head, torch.Generator().manual_seed(7)
    motion = torch.randn(1, 2, 3, 16, generator=noise)
    lanes = torch.randn(1, 4, 16, generator=noise)
    place = torch.tensor([[[0.5, 0.5], [0.9, 0.9]]])
    lane_place = torch.tensor([[[0.5, 0.65], [0.5, 0.75], [0.55, 0.5], [0.4, 0.4]]])
    score = torch.tensor([[0.9, 0.9, 0.4, 0.6]])
    found = head._on_map(motion, place, lanes, lane_place, score)
    # The second line is too far from the first object, the third is not certain.
    kept = [0, 3]
    first = head._on_map(motion[:, :1], place[:, :1], lanes[:, kept], lane_place[:, kept], torch.ones(1, 2))
    none = head._on_map(motion[:, 1:], place[:, 1:], lanes[:, :0], lane_place[:, :0], torch.ones(1, 0))
    torch.testing.assert_close(found[:, :1], first)
    torch.testing.assert_close(found[:, 1:], none)
    assert float((head._on_map(motion, place, lanes, lane_place, score * 0)[:, :1] - first).abs().max()) > 1e-3


def test_the_place_of_a_line_is_its_point_nearest_to_the_back_left_corner():
    points = torch.tensor([[[[0.9, 0.9], [0.5, 0.6], [0.7, 0.5]], [[0.1, 0.9], [0.9, 0.2], [0.6, 0.7]]]])
    torch.testing.assert_close(nearest_points(points), torch.tensor([[[0.5, 0.6], [0.1, 0.9]]]))


def test_frozen_norms_and_stages_do_not_learn():
    config = replace(TINY, frozen_stages=1, frozen_norms=True)
    net = ResNet(config).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    maps = net(torch.randn(2, 3, 32, 64))
    assert [tuple(m.shape) for m in maps] == [(2, 16, 8, 16), (2, 32, 4, 8)]
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {f"layer2.0.{part}.weight" for part in ("conv1", "conv2", "conv3", "downsample.0")}


def test_norms_that_are_not_frozen_learn():
    net = ResNet(TINY).train()
    net(torch.randn(2, 3, 32, 64))
    assert int(net.bn1.num_batches_tracked) == 1
    assert all(p.requires_grad for p in net.parameters())


def test_the_pyramid_adds_the_coarse_to_the_fine_and_one_level_more():
    pyramid = FeaturePyramid(replace(TINY, feature_levels=3))
    fine, coarse = torch.randn(1, 16, 4, 6), torch.randn(1, 32, 2, 3)
    lateral = [conv(x) for conv, x in zip(pyramid.lateral_convs, (fine, coarse), strict=True)]
    summed = lateral[0] + lateral[1].repeat_interleave(2, -1).repeat_interleave(2, -2)
    second = pyramid.fpn_convs[1](lateral[1])
    wanted = [pyramid.fpn_convs[0](summed), second, pyramid.fpn_convs[2](second)]
    for found, level in zip(pyramid([fine, coarse]), wanted, strict=True):
        torch.testing.assert_close(found, level)
    assert wanted[2].shape == (1, 16, 1, 2)


@pytest.mark.slow
@torch.no_grad()
def test_the_published_small_network_runs_on_a_processor(tmp_path: Path):
    """From a file of its public names and shapes; a frame with a past within 8 s on two cores, in 4 GiB."""
    noise = torch.Generator().manual_seed(0)
    state = {key: 0.02 * torch.randn(shape, generator=noise) for key, shape in public_shapes("vad_tiny").items()}
    state |= {key: value.abs() + 1 for key, value in state.items() if key.endswith("running_var")}
    state |= {key: torch.tensor(1) for key in state if key.endswith("num_batches_tracked")}
    path = tmp_path / "VAD_tiny.pth"
    torch.save({"meta": {}, "state_dict": state, "optimizer": {}}, path)
    model = load_public(path, "vad_tiny")
    config = CONFIGS["vad_tiny"]
    past = torch.randn(1, 10_000, 256, generator=noise)
    started = time.process_time()
    outputs = fields(model(*frame(config, 1, seed=1, padded_hw=(384, 640)), past))
    assert time.process_time() - started < 8 * 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20  # KiB
    assert outputs["bev_BQD"].shape == (1, 10_000, 256) and outputs["plan_BUT2"].shape == (1, 3, 6, 2)
    assert all(bool(value.isfinite().all()) for value in outputs.values())
