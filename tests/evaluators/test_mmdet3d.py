"""mmdet3d's boxes in our frame; the whole way with a small FCOS3D where mmdet3d is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from dwm.errors import InputError
from dwm.scenes.proving_ground.rig import make_rig
from evaluators.boxes import Boxes, boxes_from
from evaluators.submission import write_submission

installed = importlib.util.find_spec("mmdet3d") is not None and importlib.util.find_spec("mmcv") is not None
with_mmdet3d = pytest.mark.skipif(not installed, reason="mmdet3d is not installed: make mmdet3d")
# Small enough for two cores: no deformable convolution, a shallower backbone, few boxes.
SMALL = {
    "model.backbone.depth": 50, "model.backbone.dcn": None, "model.backbone.stage_with_dcn": (False,) * 4,
    "model.bbox_head.dcn_on_last_conv": False, "model.test_cfg.score_thr": 0.0, "model.test_cfg.nms_pre": 40,
    "model.test_cfg.max_per_img": 20,
}  # fmt: skip


def shipped_config() -> Path:
    import mmdet3d

    folder = Path(mmdet3d.__file__).parent / ".mim" / "configs" / "fcos3d"
    return folder / "fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d.py"


def test_without_mmdet3d_the_message_names_what_to_install(monkeypatch):
    from evaluators.mmdet3d import Mmdet3dDetector

    monkeypatch.setitem(sys.modules, "mmdet3d", None)
    with pytest.raises(InputError, match=r"mmdet3d: cannot be imported .*make mmdet3d"):
        Mmdet3dDetector(Path("config.py"))


def test_an_mmcv_without_its_operators_is_told_with_how_to_build_them(monkeypatch):
    from evaluators.mmdet3d import Mmdet3dDetector

    for package in ("mmdet3d", "mmdet", "mmcv", "mmengine"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    monkeypatch.setitem(sys.modules, "mmcv.ops", None)
    with pytest.raises(InputError, match=r"mmcv\.ops: cannot be imported .*pip uninstall mmcv; .*make mmdet3d"):
        Mmdet3dDetector(Path("config.py"))


@pytest.fixture(scope="module")
def detector():
    from evaluators.mmdet3d import Mmdet3dDetector

    torch.manual_seed(0)
    return Mmdet3dDetector(shipped_config(), options=SMALL)


@with_mmdet3d
def test_camera_boxes_stand_where_the_camera_saw_them(detector):
    from mmdet3d.structures import CameraInstance3DBoxes
    from mmengine.structures import InstanceData

    front = make_rig()[0].camera_to_ego
    # 12 m ahead and 2 m to the right of the front camera, 1 m below it; long side along the view; 5 m/s away from it.
    code = torch.tensor([[2.0, 1.0 + 0.8, 12.0, 4.5, 1.6, 1.9, -np.pi / 2, 0.0, 5.0]])
    found = InstanceData(
        bboxes_3d=CameraInstance3DBoxes(code, box_dim=9), scores_3d=torch.tensor([0.7]), labels_3d=torch.tensor([0]),
        attr_labels=torch.tensor([5]),
    )  # fmt: skip
    boxes = detector._boxes(found, front)
    np.testing.assert_allclose(boxes.centers_m[0], front[:3, 3] + [12.0, -2.0, -1.0], atol=0.05)
    np.testing.assert_allclose(boxes.sizes_wlh_m[0], [1.9, 4.5, 1.6], rtol=1e-6)
    assert boxes.yaws_rad[0] == pytest.approx(0.0, abs=0.02)
    np.testing.assert_allclose(boxes.velocities_mps[0], [5.0, 0.0], atol=0.1)
    assert (boxes.labels[0], boxes.scores[0]) == (0, pytest.approx(0.7))


@with_mmdet3d
def test_the_same_object_in_two_cameras_is_one_box():
    from evaluators.mmdet3d import _thinned

    centers = np.array([(10.0, 0.0, 1.0), (10.3, 0.1, 1.0), (20.0, 0.0, 1.0), (10.2, 0.0, 1.0)])
    sizes = np.tile([1.9, 4.5, 1.6], (4, 1))
    both = boxes_from(np.array([0, 0, 0, 5]), centers, sizes, np.zeros(4), scores=np.array([0.6, 0.8, 0.5, 0.4]))
    kept = _thinned(both)
    assert sorted(zip(kept.labels.tolist(), kept.scores.round(1).tolist(), strict=True)) == [(0, 0.5), (0, 0.8), (5, 0.4)]
    assert len(_thinned(Boxes.empty())) == 0


@with_mmdet3d
def test_six_images_become_a_submission(detector, tmp_path):
    cameras = [c.resized(224, 128) for c in make_rig()]
    images = [np.random.default_rng(v).integers(0, 256, (128, 224, 3), np.uint8) for v in range(6)]
    boxes = detector.detect(images, np.stack([c.intrinsics for c in cameras]), np.stack([c.camera_to_ego for c in cameras]))
    assert len(boxes) > 0 and np.isfinite(boxes.centers_m).all()
    rows = json.loads(write_submission(tmp_path / "s.json", {"a": boxes}, {"a": np.eye(4)}).read_text())["results"]["a"]
    assert len(rows) == len(boxes) and set(rows[0]) >= {"translation", "rotation", "detection_name", "attribute_name"}


@with_mmdet3d
def test_wrong_files_are_told(tmp_path):
    from evaluators.mmdet3d import Mmdet3dDetector

    with pytest.raises(InputError, match="no such mmdet3d config"):
        Mmdet3dDetector(tmp_path / "none.py")
    broken = tmp_path / "weights.pth"
    with pytest.raises(InputError, match="no such checkpoint"):
        Mmdet3dDetector(shipped_config(), broken, options=SMALL)
    broken.write_bytes(b"<html>")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        Mmdet3dDetector(shipped_config(), broken, options=SMALL)
    torch.save({"state_dict": {"a": torch.zeros(1)}}, broken)
    with pytest.raises(InputError, match="tensor 'a' is not part of the model"):
        Mmdet3dDetector(shipped_config(), broken, options=SMALL)


@with_mmdet3d
def test_a_checkpoint_of_another_size_is_told(detector, tmp_path):
    from evaluators.mmdet3d import Mmdet3dDetector

    state = detector.model.state_dict()
    name = next(key for key in state if key.endswith("conv1.weight"))
    torch.save({"state_dict": {**state, name: state[name][:1].clone()}}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=f"tensor '{name}' has another shape"):
        Mmdet3dDetector(shipped_config(), tmp_path / "weights.pth", options=SMALL)
