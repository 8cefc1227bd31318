"""3D detection scores by the official nuScenes code: from a dataroot, or directly from boxes in memory."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp
from nuscenes.eval.detection.constants import TP_METRICS
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionConfig, DetectionMetricDataList, DetectionMetrics
from nuscenes.eval.detection.evaluate import DetectionEval

from dwm.errors import InputError
from dwm.geometry import quaternion_from_yaw
from dwm.scenes.dataroot import open_dataroot
from dwm.scenes.types import DETECTION_CLASSES
from evaluators.boxes import ATTRIBUTES, Boxes
from evaluators.splits import samples_of_split

OFFICIAL_CONFIG = "detection_cvpr_2019"
# TP errors the official evaluation leaves undefined.
_UNDEFINED = {("traffic_cone", "attr_err"), ("traffic_cone", "vel_err"), ("traffic_cone", "orient_err"),
              ("barrier", "attr_err"), ("barrier", "vel_err")}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionReport:
    """Official detection scores, and the same averaged only over classes that have ground truth.

    A class without ground truth counts in the official mean with AP 0 and errors 1, which says nothing about the detector.
    """

    mean_ap: float  # official, over all ten classes
    nds: float  # official
    mean_ap_with_truth: float  # over classes with ground truth; NaN without any
    nds_with_truth: float
    class_ap: dict[str, float]  # mean over the distance thresholds
    class_distance_ap: dict[str, dict[str, float]]  # by distance threshold in metres
    tp_errors: dict[str, float]  # official means: trans [m], scale, orient [rad], vel [m/s], attr
    class_tp_errors: dict[str, dict[str, float]]
    truth_counts: dict[str, int]  # boxes that take part after filtering
    prediction_counts: dict[str, int]
    samples: int
    config: str = OFFICIAL_CONFIG

    def metrics(self, prefix: str = "detection.") -> dict[str, float]:
        """The scores as a flat table."""
        flat = {"mean_ap": self.mean_ap, "nds": self.nds, "mean_ap_with_truth": self.mean_ap_with_truth}
        flat |= {"nds_with_truth": self.nds_with_truth, **self.tp_errors}
        flat |= {f"ap.{name}": ap for name, ap in self.class_ap.items() if self.truth_counts[name]}
        return {prefix + name: float(value) for name, value in flat.items()}


def evaluate_detection(dataroot: Path, version: str, split: str, submission_path: Path, out_dir: Path) -> DetectionReport:
    """Runs the devkit's DetectionEval on a split and writes metrics_summary.json, metrics_details.json and report.json.

    Raises:
        InputError: missing submission, samples of the split missing in it, or content that the devkit refuses.
    """
    if not submission_path.is_file():
        raise InputError(submission_path, "no such submission", "write one with write_submission")
    tokens, nusc, config = samples_of_split(dataroot, version, split), open_dataroot(dataroot, version), official_config()
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = _never_empty(submission_path, tokens, Path(scratch))
        try:
            evaluation = DetectionEval(nusc, config, str(path), split, str(out_dir), verbose=False)
        except (AssertionError, KeyError) as error:
            problem = f"the devkit refuses it for split '{split}' ({type(error).__name__}: {error})"
            raise InputError(
                submission_path, problem, "list every sample of the split, at most 500 boxes each, in float types"
            ) from error
    metrics, details = evaluation.evaluate()
    (out_dir / "metrics_summary.json").write_text(json.dumps({**metrics.serialize(), "meta": evaluation.meta}, indent=2))
    (out_dir / "metrics_details.json").write_text(json.dumps(details.serialize()))
    report = _report(metrics, evaluation.gt_boxes, evaluation.pred_boxes)
    (out_dir / "report.json").write_text(json.dumps(asdict(report), indent=2))
    return report


def evaluate_boxes_in_memory(truth: Mapping[str, Boxes], predictions: Mapping[str, Boxes]) -> DetectionReport:
    """The official scores of ego-frame boxes by frame, without a dataroot: same filters, same matching, same averages.

    ``truth`` decides which frames count; a frame without predictions may be absent. Bicycle racks are not filtered.
    """
    config = official_config()
    seen = {token: boxes.select(_in_range(boxes, config) & (boxes.num_pts != 0)) for token, boxes in truth.items()}
    found = {
        token: boxes.select(_in_range(boxes, config)) for token in truth for boxes in [predictions.get(token, Boxes.empty())]
    }
    return score_eval_boxes(as_eval_boxes(seen, is_truth=True), as_eval_boxes(found, is_truth=False), config)


def score_eval_boxes(truth: EvalBoxes, predictions: EvalBoxes, config: DetectionConfig) -> DetectionReport:
    """The devkit's scores of boxes that are already filtered; ``config`` gives thresholds and averages, not ranges."""
    return _report(_metrics(truth, predictions, config), truth, predictions)


def as_eval_boxes(frames: Mapping[str, Boxes], *, is_truth: bool) -> EvalBoxes:
    """The devkit's container of ego-frame boxes by frame."""
    out = EvalBoxes()
    for token, boxes in frames.items():
        out.add_boxes(token, _eval_boxes(boxes, token, is_truth=is_truth))
    return out


def official_config() -> DetectionConfig:
    """The devkit's detection_cvpr_2019 configuration."""
    config = config_factory(OFFICIAL_CONFIG)
    assert isinstance(config, DetectionConfig)
    return config


def _in_range(boxes: Boxes, config: DetectionConfig) -> NDArray[np.bool_]:
    ranges = np.array([config.class_range[name] for name in DETECTION_CLASSES])
    return boxes.distances_m < ranges[boxes.labels]


def _eval_boxes(boxes: Boxes, token: str, *, is_truth: bool) -> list[DetectionBox]:
    quaternions = quaternion_from_yaw(boxes.yaws_rad)
    rows = []
    for i, label in enumerate(boxes.labels):
        velocity = boxes.velocities_mps[i] if is_truth else np.nan_to_num(boxes.velocities_mps[i])
        rows.append(
            DetectionBox(
                sample_token=token,
                translation=tuple(boxes.centers_m[i]),
                size=tuple(boxes.sizes_wlh_m[i]),
                rotation=tuple(quaternions[i]),
                velocity=tuple(velocity),
                ego_translation=tuple(boxes.centers_m[i]),
                num_pts=int(boxes.num_pts[i]) if is_truth else -1,
                detection_name=DETECTION_CLASSES[label],
                detection_score=-1.0 if is_truth else float(boxes.scores[i]),
                attribute_name=ATTRIBUTES[boxes.attributes[i]] if boxes.attributes[i] >= 0 else "",
            )
        )
    return rows


def _metrics(truth: EvalBoxes, predictions: EvalBoxes, config: DetectionConfig) -> DetectionMetrics:
    """What DetectionEval.evaluate does after loading."""
    details, metrics = DetectionMetricDataList(), DetectionMetrics(config)
    for name in config.class_names:
        for threshold in config.dist_ths:
            data = accumulate(truth, predictions, name, config.dist_fcn_callable, threshold)
            details.set(name, threshold, data)
            metrics.add_label_ap(name, threshold, calc_ap(data, config.min_recall, config.min_precision))
        for metric in TP_METRICS:
            data = details[(name, config.dist_th_tp)]
            metrics.add_label_tp(
                name, metric, np.nan if (name, metric) in _UNDEFINED else calc_tp(data, config.min_recall, metric)
            )
    return metrics


def _report(metrics: DetectionMetrics, truth: EvalBoxes, predictions: EvalBoxes) -> DetectionReport:
    summary: dict[str, Any] = metrics.serialize()
    counts = Counter(box.detection_name for box in truth.all)
    present = [name for name in DETECTION_CLASSES if counts[name]]
    class_ap = {name: float(summary["mean_dist_aps"][name]) for name in DETECTION_CLASSES}
    mean_ap_with_truth = float(np.mean([class_ap[name] for name in present])) if present else float("nan")
    errors = summary["label_tp_errors"]
    scores = [max(0.0, 1 - e) for m in TP_METRICS if np.isfinite(e := _mean([errors[name][m] for name in present]))]
    weight = metrics.cfg.mean_ap_weight
    return DetectionReport(
        mean_ap=float(summary["mean_ap"]), nds=float(summary["nd_score"]), mean_ap_with_truth=mean_ap_with_truth,
        nds_with_truth=(weight * mean_ap_with_truth + sum(scores)) / (weight + len(scores)),
        class_ap=class_ap,
        class_distance_ap={n: {str(d): float(ap) for d, ap in summary["label_aps"][n].items()} for n in DETECTION_CLASSES},
        tp_errors={k: float(v) for k, v in summary["tp_errors"].items()},
        class_tp_errors={n: {m: float(e) for m, e in errors[n].items()} for n in DETECTION_CLASSES},
        truth_counts={n: counts[n] for n in DETECTION_CLASSES},
        prediction_counts={n: sum(b.detection_name == n for b in predictions.all) for n in DETECTION_CLASSES},
        samples=len(truth.sample_tokens),
    )  # fmt: skip


def _mean(values: list[float]) -> float:
    known = [v for v in values if np.isfinite(v)]
    return float(np.mean(known)) if known else float("nan")


def _never_empty(submission: Path, tokens: Sequence[str], scratch: Path) -> Path:
    """The devkit fails where no sample of the split has a box; one box beyond every class range is filtered out again."""
    content = json.loads(submission.read_text())
    results, token = content.get("results", {}), tokens[0]
    if token not in results or any(results.get(token) for token in tokens):
        return submission
    results[token] = [{
        "sample_token": token, "translation": [1e7, 1e7, 0.0], "size": [1.0, 1.0, 1.0], "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0], "detection_name": "car", "detection_score": 0.0, "attribute_name": "",
    }]  # fmt: skip
    path = scratch / "submission.json"
    path.write_text(json.dumps(content))
    return path
