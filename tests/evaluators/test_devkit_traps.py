"""What the devkit's detection evaluation counts, forgives and refuses, through our entrances."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from nuscenes.utils.splits import create_splits_scenes

from dwm.errors import InputError
from dwm.scenes.dataroot import open_dataroot
from dwm.scenes.proving_ground.build import scene_names, splits
from evaluators.boxes import ATTRIBUTES, Boxes, boxes_from
from evaluators.detection import DetectionReport, evaluate_boxes_in_memory, evaluate_detection
from evaluators.submission import write_submission
from evaluators.vad_detection import evaluate_vad_detection
from tests.evaluators import nuscenes_fake as fake
from tests.evaluators.nuscenes_fake import edit

CAR, BARRIER = 0, 9
MOVING = ATTRIBUTES.index("vehicle.moving")


def car(x: float, velocity: tuple[float, float] = (4.0, 0.0), score: float = 1.0, label: int = CAR, yaw: float = 0.0) -> Boxes:
    return boxes_from(
        np.array([label]), np.array([[x, 0.0, 0.8]]), np.array([[2.0, 4.0, 1.6]]), np.array([yaw]), np.array([velocity]),
        np.array([MOVING if label == CAR else -1]), np.array([score]), np.array([9]),
    )  # fmt: skip


def both(*parts: Boxes) -> Boxes:
    return Boxes(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in Boxes.__dataclass_fields__})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One car that drives 4 m/s with the ego, two samples."""
    fake.write_dataroot(tmp_path / "root", [car(10.0)] * 2, 0.0)
    return tmp_path / "root"


def submitted(path: Path, **boxes: Boxes) -> Path:
    poses = {token: np.eye(4) for token in boxes}
    poses |= {f"s{k}": np.array([[1, 0, 0, 600.0 + 2 * k], [0, 1, 0, 300], [0, 0, 1, 0], [0, 0, 0, 1]]) for k in (0, 1)}
    return write_submission(path, boxes, poses)


def official(root: Path, submission: Path, split: str = fake.SPLIT) -> DetectionReport:
    return evaluate_detection(root, fake.VERSION, split, submission, root.parent / "out")


def vad(root: Path, submission: Path, split: str = fake.SPLIT) -> DetectionReport:
    return evaluate_vad_detection(root, fake.VERSION, split, submission).scores


BOTH = pytest.mark.parametrize("evaluate", [official, vad])


def test_one_class_found_without_fault_is_a_tenth_of_the_official_means(root: Path, tmp_path: Path):
    report = official(root, submitted(tmp_path / "s.json", s0=car(10.0), s1=car(10.0)))
    assert report.mean_ap == pytest.approx(0.1) and report.nds == pytest.approx(0.106111, abs=1e-6)
    assert report.nds_with_truth == pytest.approx(1.0)
    assert report.tp_errors["trans_err"] == pytest.approx(0.9) and report.tp_errors["vel_err"] == pytest.approx(0.875)


@BOTH
@pytest.mark.parametrize("foreign_first", [True, False])
def test_boxes_of_other_samples_alone_are_no_boxes(root: Path, tmp_path: Path, evaluate, foreign_first):
    own = {"s0": Boxes.empty(), "s1": Boxes.empty()}
    path = submitted(tmp_path / "s.json", **({"other": Boxes.empty(), **own} if foreign_first else {**own, "other": car(10.0)}))
    report = evaluate(root, path)
    assert report.mean_ap == report.nds == 0.0 and not any(report.prediction_counts.values())


@BOTH
def test_boxes_of_other_samples_change_nothing(root: Path, tmp_path: Path, evaluate):
    report = evaluate(root, submitted(tmp_path / "s.json", other=car(12.0), s0=car(10.0), s1=car(10.0)))
    assert report.mean_ap_with_truth == pytest.approx(1.0) and report.prediction_counts["car"] == 2


@BOTH
def test_a_split_without_annotations_is_told(tmp_path: Path, evaluate):
    fake.write_dataroot(tmp_path / "root", [Boxes.empty()] * 2)
    with pytest.raises(InputError, match="split 'tiny_val' has no annotation"):
        evaluate(tmp_path / "root", submitted(tmp_path / "s.json", s0=car(10.0), s1=car(10.0)))


@BOTH
def test_an_annotation_with_two_attributes_is_told_by_name(root: Path, tmp_path: Path, evaluate):
    edit(root, "sample_annotation", lambda rows: rows[0].update(attribute_tokens=["vehicle.moving", "vehicle.parked"]))
    with pytest.raises(InputError, match="annotation a0-0 has more than one attribute"):
        evaluate(root, submitted(tmp_path / "s.json", s0=car(10.0), s1=car(10.0)))


@BOTH
def test_a_sample_without_its_lidar_row_is_told(root: Path, tmp_path: Path, evaluate):
    edit(root, "sample_data", lambda rows: rows.remove(next(r for r in rows if r["token"] == "LIDAR_TOP1")))
    with pytest.raises(InputError, match="sample s1 has no LIDAR_TOP row"):
        evaluate(root, submitted(tmp_path / "s.json", s0=car(10.0), s1=car(10.0)))


@BOTH
def test_splits_that_are_not_there_or_not_the_devkits_are_told(root: Path, tmp_path: Path, evaluate):
    path = submitted(tmp_path / "s.json", s0=car(10.0), s1=car(10.0))
    with pytest.raises(InputError, match="no split 'nope'"):
        evaluate(root, path, "nope")
    with pytest.raises(InputError, match="no scene of split 'val' is present"):
        evaluate(root, path, "val")
    (root / fake.VERSION / "splits.json").write_text(json.dumps({"val": ["scene-0001"]}))
    with pytest.raises(InputError, match="its 'val' is not the devkit's"):
        evaluate(root, path, "val")


def test_the_proving_grounds_splits_have_names_of_their_own():
    assert not set(splits(scene_names(10))) & set(create_splits_scenes())


def test_map_tables_that_the_devkit_cannot_load_are_told(root: Path):
    (root / "maps" / "map.png").rename(root / "map.png")
    with pytest.raises(InputError, match="the map mask is missing"):
        open_dataroot(root, fake.VERSION)
    (root / "map.png").rename(root / "maps" / "map.png")
    edit(root, "map", lambda rows: rows[0].update(log_tokens=[]))
    with pytest.raises(InputError, match="do not fit together"):
        open_dataroot(root, fake.VERSION)
    edit(root, "map", lambda rows: rows.clear())
    with pytest.raises(InputError, match="do not fit together"):
        open_dataroot(root, fake.VERSION)


def test_an_unknown_velocity_is_no_standing_still(tmp_path: Path):
    """The devkit derives none from one key frame: NaN, which its mean leaves out."""
    truth = both(car(10.0, (3.0, 0.0)), car(20.0, (np.nan, np.nan)))
    found = both(car(10.0, (2.0, 0.0), 0.9), car(20.0, (7.0, 0.0), 0.8))
    assert evaluate_boxes_in_memory({"s0": truth}, {"s0": found}).class_tp_errors["car"]["vel_err"] == pytest.approx(1.0)
    alone = car(10.0, (np.nan, np.nan))
    fake.write_dataroot(tmp_path / "root", [alone], 0.0)
    files = official(tmp_path / "root", submitted(tmp_path / "s.json", s0=car(10.0, (3.0, 3.0))))
    memory = evaluate_boxes_in_memory({"s0": alone}, {"s0": car(10.0, (3.0, 3.0))})
    assert files.class_tp_errors["car"]["vel_err"] == memory.class_tp_errors["car"]["vel_err"] == pytest.approx(1.0)
    assert files.nds == pytest.approx(memory.nds)


@pytest.mark.parametrize(("label", "error_rad"), [(BARRIER, 0.0), (CAR, np.pi)])
def test_a_barrier_has_no_front(label: int, error_rad: float):
    truth, turned = car(10.0, label=label), car(10.0, label=label, yaw=np.pi)
    report = evaluate_boxes_in_memory({"s0": truth}, {"s0": turned})
    assert report.class_tp_errors["barrier" if label == BARRIER else "car"]["orient_err"] == pytest.approx(error_rad, abs=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [("sizes_wlh_m", 0.0), ("sizes_wlh_m", -1.0), ("yaws_rad", np.nan), ("scores", np.nan), ("centers_m", np.inf)],
)
def test_values_that_the_devkit_refuses_are_not_written(tmp_path: Path, field: str, value: float):
    good = car(10.0)
    bad = getattr(good, field).copy()
    bad.flat[0] = value
    with pytest.raises(InputError, match="sample s0 hold NaN, infinite or non-positive"):
        submitted(tmp_path / "s.json", s0=dataclasses.replace(good, **{field: bad}))


@BOTH
def test_submissions_with_too_many_boxes_or_no_meta_are_refused(root: Path, tmp_path: Path, evaluate):
    path = submitted(tmp_path / "s.json", s0=car(10.0), s1=car(10.0))
    content = json.loads(path.read_text())
    (row,) = content["results"]["s0"]
    path.write_text(json.dumps({**content, "results": {**content["results"], "s0": [row] * 501}}))
    with pytest.raises(InputError, match="500"):
        evaluate(root, path)
    path.write_text(json.dumps({"results": content["results"]}))
    with pytest.raises(InputError, match="meta"):
        evaluate(root, path)
