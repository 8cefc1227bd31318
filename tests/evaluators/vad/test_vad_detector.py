"""VAD as a detector of single key frames: the same network, frame and boxes as in a stretch, within its reach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dwm.errors import InputError
from dwm.geometry import transform_from_xy_yaw
from dwm.models.weights import save_model
from dwm.scenes.proving_ground.rig import LIDAR_TO_EGO, make_rig
from evaluators.box_finder import load_box_finder
from evaluators.boxes import boxes_from
from evaluators.clip_detection import ClipMatchConfig, score_clip_detections, unlabelled_detections
from evaluators.detector.inference import Detector
from evaluators.vad.coders import decode_objects
from evaluators.vad.detector import VadDetector
from evaluators.vad.inputs import frame_of
from evaluators.vad.model import VAD
from evaluators.vad.runner import run_stretch
from tests.evaluators.vad.vad_factories import TINY

MODEL = replace(TINY, can_motion=False)
SHIPPED = Path("weights")


@pytest.fixture(scope="module")
def network() -> VAD:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VAD(MODEL).eval()


def test_each_frame_is_read_as_the_first_of_a_stretch(network: VAD):
    rig, (h, w) = make_rig((64, 112)), (64, 112)
    images = np.random.default_rng(0).integers(0, 255, (3, 6, h, w, 3), dtype=np.uint8)
    poses = np.stack([transform_from_xy_yaw(10.0 + 3 * t, 5.0, 0.4 + 0.1 * t) for t in range(3)])
    cameras = (np.stack([c.intrinsics for c in rig]), np.stack([c.camera_to_ego for c in rig]))
    found = VadDetector(network).detect_clip(images, *cameras, poses)
    for image, pose, boxes in zip(images, poses, found, strict=True):
        frame = frame_of(image, rig, np.repeat(pose[None], 6, axis=0), LIDAR_TO_EGO, pose, MODEL)
        alone = decode_objects(next(run_stretch(network, [frame])))[0].boxes.moved(LIDAR_TO_EGO)
        np.testing.assert_allclose(boxes.centers_m, alone.centers_m, atol=1e-5)
        np.testing.assert_allclose(boxes.scores, alone.scores, atol=1e-6)
        np.testing.assert_allclose(boxes.yaws_rad, alone.yaws_rad, atol=1e-5)


def test_boxes_out_of_reach_are_neither_missing_nor_invented(network: VAD):
    reach = VadDetector(network).reach_m
    assert reach == (pytest.approx(30.0 - 0.94), 15.0)
    places = [(10.0, 0.0), (10.0, 14.0), (10.0, 16.0), (29.5, 0.0), (-29.5, 0.0)]
    labels = boxes_from(
        np.zeros(5, int), np.column_stack([np.array(places), np.ones(5)]), np.tile([2.0, 4.0, 1.6], (5, 1)), np.zeros(5)
    )
    config = ClipMatchConfig(reach_m=reach)
    assert config.reaches(labels).tolist() == config.counts(labels).tolist() == [True, True, False, False, False]
    score = score_clip_detections([labels], [labels.select(np.array([0]))], config)
    assert (score.total.boxes, score.materialised) == (2, 0.5)
    assert unlabelled_detections([labels], [labels.select(np.array([0]))], config).tolist() == [1.0]
    assert unlabelled_detections([labels], [labels.select(np.array([0]))], ClipMatchConfig()).tolist() == [4.0]


def test_weights_say_what_they_are_and_from_which_score_on_to_believe_them(network: VAD, tmp_path: Path):
    path = save_model(network, tmp_path / "vad.safetensors", {"operating_score": "0.31"})
    found = load_box_finder(path)
    assert isinstance(found, VadDetector) and found.operating_score == 0.31 and found.image_hw == MODEL.image_hw
    assert VadDetector.load(save_model(network, tmp_path / "bare.safetensors", {})).operating_score is None
    assert isinstance(load_box_finder(SHIPPED / "proving_ground_detector.safetensors"), Detector)
    with pytest.raises(InputError, match="holds 'autoencoder' weights"):
        load_box_finder(SHIPPED / "proving_ground_codec.safetensors")
    with pytest.raises(InputError, match="reads the car's motion"):
        load_box_finder(save_model(VAD(TINY), tmp_path / "moving.safetensors", {}))
