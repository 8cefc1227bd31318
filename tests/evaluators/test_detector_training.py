"""The trainer, its checkpoints and its weights files."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dwm.config import load_config
from dwm.errors import InputError
from dwm.geometry import apply, invert, project, transform_from_xy_yaw
from evaluators.boxes import boxes_from
from evaluators.detection import evaluate_boxes_in_memory
from evaluators.detector.augment import AugmentConfig
from evaluators.detector.inference import Detector
from evaluators.detector.model import DetectorConfig
from evaluators.detector.samples import KeyFrames, sampling_weights
from evaluators.detector.train import DetectorTrainConfig, train_detector
from evaluators.detector.weights import load_detector

LOOKS_FORWARD = np.array([[0.0, 0, 1, 0.5], [-1, 0, 0, 0], [0, -1, 0, 1.6], [0, 0, 0, 1]])
MODEL = DetectorConfig(image_hw=(32, 64), half_range_m=12.8, heights_m=(0.5, 1.5), image_channels=8, bev_channels=8)
STILL = AugmentConfig(flip_probability=0, max_rotation_rad=0, max_gain=0, max_contrast=0, max_tint=0, max_noise=0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Kernels this small only wait for each other on several threads, badly so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def key_frames(count: int = 2) -> KeyFrames:
    """Grey images with one bright square per box, drawn where the box projects."""
    cameras = np.stack([transform_from_xy_yaw(0, 0, -v * math.pi / 3) @ LOOKS_FORWARD for v in range(6)])
    intrinsics = np.array([[40.0, 0, 32], [0, 40, 16], [0, 0, 1]])
    colors = np.array([[250, 40, 40], [40, 250, 40]])
    images = np.full((count, 6, 32, 64, 3), 90, np.uint8)
    boxes = []
    for s in range(count):
        rng = np.random.default_rng(s)
        angle = rng.uniform(0, 2 * math.pi) + np.arange(4) * math.pi / 2
        radius = rng.uniform(4, 9, 4)
        centers = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(4, 0.9)], -1)
        labels = np.array([0, 5, 0, 5])
        sizes = np.where((labels == 0)[:, None], [1.9, 4.5, 1.7], [0.7, 0.7, 1.8])
        boxes.append(boxes_from(labels, centers, sizes, np.full(4, 0.3), np.zeros((4, 2)), np.where(labels == 0, 5, 2)))
        for v in range(6):
            found, depth = project(apply(invert(cameras[v]), centers), intrinsics)
            for (u, row), d, label in zip(found, depth, labels, strict=True):
                if d > 0.5:
                    half = max(1, int(40 * 0.8 / d))
                    r, c = int(row), int(u)
                    images[s, v, max(r - half, 0) : max(r + half, 0), max(c - half, 0) : max(c + half, 0)] = colors[label // 5]
    return KeyFrames(
        images=images, intrinsics=np.tile(intrinsics, (count, 6, 1, 1)), camera_to_ego=np.tile(cameras, (count, 1, 1, 1)),
        ego_to_global=np.tile(np.eye(4), (count, 1, 1)), previous=np.maximum(np.arange(count) - 1, 0),
        boxes=tuple(boxes), tokens=tuple(f"frame{s}" for s in range(count)),
    )  # fmt: skip


def train_config(out: Path, **changes: object) -> DetectorTrainConfig:
    base = DetectorTrainConfig(
        out_dir=str(out), model=MODEL, augment=STILL, validation_split=None, batch_size=2, steps=4,
        warmup_steps=2, log_every_steps=1, learning_rate=3e-3,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_overfitting_two_frames_raises_average_precision(tmp_path: Path) -> None:
    frames = key_frames()
    truth = dict(zip(frames.tokens, frames.boxes, strict=True))

    def score(path: Path) -> float:
        return evaluate_boxes_in_memory(truth, Detector.load(path).detect_key_frames(frames)).mean_ap_with_truth

    before = score(train_detector(train_config(tmp_path / "short", steps=1), frames))
    after = score(train_detector(train_config(tmp_path / "long", steps=50, warmup_steps=10, log_every_steps=50), frames))
    assert before < 0.1
    assert after > 0.6


def test_a_resumed_run_ends_bit_identical_to_an_uninterrupted_one(tmp_path: Path) -> None:
    frames = key_frames()
    changes = {"augment": AugmentConfig(), "learning_rate": 1e-3}
    whole = load_file(train_detector(train_config(tmp_path / "whole", **changes), frames))
    # A long run cut after two steps: the schedule must already be the long one's.
    interrupted = train_config(tmp_path / "parts", **changes)
    stop = _StopAfter(frames, reads=4)
    with pytest.raises(KeyboardInterrupt):
        train_detector(dataclasses.replace(interrupted, checkpoint_every_steps=1), stop)  # type: ignore[arg-type]
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"] == 2
    parts = load_file(train_detector(interrupted, frames))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


class _StopAfter:
    """Key frames whose reader is interrupted."""

    def __init__(self, frames: KeyFrames, reads: int) -> None:
        self._frames, self._left = frames, reads

    def __getattr__(self, name: str) -> object:
        return getattr(self._frames, name)

    def __len__(self) -> int:
        return len(self._frames)

    def history(self, index: int, frames: int) -> object:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        return self._frames.history(index, frames)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    train_detector(train_config(tmp_path, steps=1), key_frames())
    with pytest.raises(InputError, match="another configuration"):
        train_detector(train_config(tmp_path, steps=2, learning_rate=1.0), key_frames())


def test_a_time_limit_ends_the_run_and_the_log_is_one_json_row_per_step(tmp_path: Path) -> None:
    config = train_config(tmp_path, steps=1000, max_minutes=1e-6)
    path = train_detector(config, key_frames(), key_frames())
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 1
    assert "val.mean_ap" in rows[-1]
    assert load_detector(path)[1]["steps"] == 1


def test_broken_weights_are_refused_by_name(tmp_path: Path) -> None:
    path = train_detector(train_config(tmp_path, steps=1), key_frames())
    model, _ = load_detector(path)
    metadata = {"kind": "roadreel-bev-detector", "config": json.dumps(dataclasses.asdict(MODEL))}
    state = {name: t.clone() for name, t in model.state_dict().items()}
    faults = {
        "holds NaN": {**state, "heatmap.bias": torch.full_like(state["heatmap.bias"], math.nan)},
        "has shape": {**state, "heatmap.bias": torch.zeros(3)},
        "do not fit": {name: t for name, t in state.items() if name != "heatmap.bias"},
    }
    for message, tensors in faults.items():
        save_file(tensors, tmp_path / "broken.safetensors", metadata)
        with pytest.raises(InputError, match=message) as error:
            load_detector(tmp_path / "broken.safetensors")
        assert "heatmap.bias" in str(error.value)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(InputError, match="not a readable"):
        load_detector(tmp_path / "text.safetensors")
    with pytest.raises(InputError, match="no such weights"):
        load_detector(tmp_path / "absent.safetensors")


def test_larger_images_are_resized_together_with_their_intrinsics(tmp_path: Path) -> None:
    detector = Detector.load(train_detector(train_config(tmp_path, steps=1), key_frames()))
    frames = key_frames()
    big = frames.images[0].repeat(2, axis=1).repeat(2, axis=2)
    small = detector.detect(frames.images[0], frames.intrinsics[0], frames.camera_to_ego[0])
    scaled = detector.detect(big, np.diag([2.0, 2.0, 1.0]) @ frames.intrinsics[0], frames.camera_to_ego[0])
    np.testing.assert_allclose(small.scores, scaled.scores, atol=1e-5)


def test_rare_classes_are_drawn_more_often() -> None:
    frames = key_frames(4)
    rare = boxes_from(np.array([7]), np.array([[5.0, 0, 1]]), np.ones((1, 3)), np.zeros(1))
    frames = dataclasses.replace(frames, boxes=(*frames.boxes[:3], rare))
    weights = sampling_weights(frames, 0.5)
    assert weights.sum() == pytest.approx(1)
    assert weights[3] / weights[0] == pytest.approx(math.sqrt(4) / math.sqrt(4 / 3))
    np.testing.assert_allclose(sampling_weights(frames, 0.0), 0.25)


def test_history_expresses_past_cameras_in_the_present_ego_frame() -> None:
    frames = key_frames(2)
    poses = np.stack([transform_from_xy_yaw(0, 0, 0), transform_from_xy_yaw(3, 0, 0)])
    frames = dataclasses.replace(frames, ego_to_global=poses)
    _, _, cameras = frames.history(1, 2)
    np.testing.assert_allclose(cameras[0], frames.camera_to_ego[1])
    np.testing.assert_allclose(cameras[1, :, 0, 3], frames.camera_to_ego[0, :, 0, 3] - 3)


def test_the_configuration_is_readable_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "detector.yaml"
    path.write_text("steps: 7\nmodel: {frames: 2, image_hw: [64, 112]}\naugment: {max_noise: 1.0}\n")
    config = load_config(DetectorTrainConfig, path, ["max_minutes=3.5"])
    assert (config.steps, config.max_minutes, config.model.frames, config.augment.max_noise) == (7, 3.5, 2, 1.0)
    assert tuple(config.model.image_hw) == (64, 112)
