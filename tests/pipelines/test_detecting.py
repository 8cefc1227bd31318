"""Submissions of a log's key frames, read back by the devkit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nuscenes.eval.common.loaders import load_prediction
from nuscenes.eval.detection.data_classes import DetectionBox

from dwm.errors import InputError
from dwm.geometry import apply
from dwm.scenes.nuscenes import read_scene
from evaluators.boxes import Boxes, boxes_from, boxes_of_scene
from evaluators.detection import evaluate_detection
from pipelines.detecting import detect_logs, options_of
from tests.evaluators.test_mmdet3d import SMALL, shipped_config, with_mmdet3d

VERSION = "v1.0-mini"
REAL = Path(__file__).parents[3] / "shared/data/nuscenes-sample"


class Knows:
    """Says what it was told to, frame after frame, and remembers what it was shown."""

    def __init__(self, frames: list[Boxes]) -> None:
        self._frames, self.shown = iter(frames), []

    def detect(self, images, intrinsics, camera_to_ego) -> Boxes:
        self.shown.append((images, intrinsics, camera_to_ego))
        return next(self._frames)


def test_the_truth_as_a_detector_scores_full_marks(pg_dataroot, tmp_path):
    scenes = [read_scene(pg_dataroot, VERSION, name) for name in ("scene-0001", "scene-0002")]
    truth = [boxes_of_scene(scene, k) for scene in scenes for k in range(len(scene.sample_tokens))]
    said = detect_logs(pg_dataroot, VERSION, [], Knows(truth), tmp_path / "s.json")
    assert said == f"{tmp_path / 's.json'}: {sum(map(len, truth))} boxes in {len(truth)} key frames"
    report = evaluate_detection(pg_dataroot, VERSION, "pg_all", tmp_path / "s.json", tmp_path / "scores")
    assert report.mean_ap_with_truth == pytest.approx(1.0, abs=1e-6) and report.samples == len(truth)


def test_a_box_before_a_camera_is_moved_by_where_the_ego_was_when_that_fired(pg_dataroot, tmp_path):
    scene = read_scene(pg_dataroot, VERSION, "scene-0001")
    eye = np.array([[0.3, 0.2, 9.0]])  # metres right, down, ahead of the front camera

    class Front(Knows):
        def detect(self, images, intrinsics, camera_to_ego) -> Boxes:
            super().detect(images, intrinsics, camera_to_ego)
            return boxes_from(np.array([0]), apply(camera_to_ego[0], eye), np.ones((1, 3)), np.zeros(1), scores=np.ones(1))

    nothing = [Boxes.empty()] * len(scene.sample_tokens)
    detector = Front(nothing)
    detect_logs(pg_dataroot, VERSION, ["scene-0001"], detector, tmp_path / "s.json")
    results = json.loads((tmp_path / "s.json").read_text())["results"]
    shots = [f for f in scene.frames["CAM_FRONT"] if f.is_key_frame]
    for token, shot in zip(scene.sample_tokens, shots, strict=True):
        wanted = apply(shot.ego_to_global @ scene.cameras[0].camera_to_ego, eye)[0]
        np.testing.assert_allclose(results[token][0]["translation"], wanted, atol=1e-6)
    assert_shown(detector, scene, (32, 56))
    smaller = Front(nothing)
    detect_logs(pg_dataroot, VERSION, ["scene-0001"], smaller, tmp_path / "half.json", scale=0.5)
    assert_shown(smaller, scene, (16, 28))
    with pytest.raises(InputError, match="scale: 0 of an image"):
        detect_logs(pg_dataroot, VERSION, [], smaller, tmp_path / "none.json", scale=0)


def assert_shown(detector: Knows, scene, size_hw: tuple[int, int]) -> None:
    images, intrinsics, _ = detector.shown[0]
    assert [image.shape for image in images] == [(*size_hw, 3)] * 6
    np.testing.assert_allclose(intrinsics, [c.resized(size_hw[1], size_hw[0]).intrinsics for c in scene.cameras])


@with_mmdet3d
@pytest.mark.skipif(not REAL.is_dir(), reason="the real sample is not here")
def test_real_images_through_fcos3d_become_a_submission_that_the_devkit_reads(tmp_path):
    from evaluators.mmdet3d import Mmdet3dDetector

    torch.manual_seed(0)
    detector, out = Mmdet3dDetector(shipped_config(), options=SMALL), tmp_path / "s.json"
    said = detect_logs(REAL, VERSION, ["scene-0103"], detector, out, scale=0.2, skip_missing=True)
    assert said.endswith("key frames, 36 of them without images")
    boxes, meta = load_prediction(str(out), 500, DetectionBox)
    scene = read_scene(REAL, VERSION, "scene-0103")
    assert meta["use_camera"] and set(boxes.sample_tokens) == set(scene.sample_tokens)
    assert all(boxes[token] for token in scene.sample_tokens[:4]) and not any(boxes[token] for token in scene.sample_tokens[4:])
    report = evaluate_detection(REAL, VERSION, "sample", out, tmp_path / "scores")
    assert report.samples == 40 and 0 <= report.mean_ap < 0.05  # it was never trained


def test_a_missing_image_is_told_or_its_key_frame_listed_without_boxes(pg_dataroot, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(pg_dataroot, root)
    scene = read_scene(root, VERSION, "scene-0001")
    gone = next(f for f in scene.frames["CAM_BACK"] if f.is_key_frame).path
    gone.unlink()
    some = boxes_from(np.array([0]), np.ones((1, 3)), np.ones((1, 3)), np.zeros(1), scores=np.ones(1))
    with pytest.raises(InputError, match=f"{gone}: no such image; .*--skip-missing"):
        detect_logs(root, VERSION, ["scene-0001"], Knows([]), tmp_path / "s.json")
    assert not (tmp_path / "s.json").exists()
    frames = len(scene.sample_tokens)
    said = detect_logs(root, VERSION, ["scene-0001"], Knows([some] * (frames - 1)), tmp_path / "s.json", skip_missing=True)
    assert said.endswith(f"{frames - 1} boxes in {frames} key frames, 1 of them without images")
    assert json.loads((tmp_path / "s.json").read_text())["results"][scene.sample_tokens[0]] == []


def test_fields_of_a_config_are_set_by_name():
    settings = ["model.test_cfg.score_thr=0.1", "model.backbone.dcn=null", "a=[1, 2]"]
    assert options_of(settings) == {"model.test_cfg.score_thr": 0.1, "model.backbone.dcn": None, "a": [1, 2]}
    for wrong, problem in (("depth", "not NAME=VALUE"), ("=3", "not NAME=VALUE"), ("a=[1", "its value is no YAML")):
        with pytest.raises(InputError, match=problem):
            options_of([wrong])
    assert options_of([]) == {}
