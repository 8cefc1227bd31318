"""Tracking scores by the official nuScenes code (AMOTA and AMOTP over 40 recall steps, seven classes, matches within 2 m)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nuscenes.eval.common.config import config_factory
from nuscenes.eval.tracking.data_classes import TrackingConfig

from dwm.errors import InputError
from dwm.extras import optional_package
from dwm.scenes.dataroot import open_dataroot

OFFICIAL_CONFIG = "tracking_nips_2019"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingReport:
    """Official means over the classes that have truth, sums where counts are asked for; NaN without any."""

    amota: float
    amotp_m: float
    recall: float
    mota: float
    motp_m: float
    id_switches: float
    fragmentations: float
    class_metrics: dict[str, dict[str, float]]  # by class, then the devkit's metric name
    config: str = OFFICIAL_CONFIG


def evaluate_tracking(dataroot: Path, version: str, split: str, submission_path: Path, out_dir: Path) -> TrackingReport:
    """Runs the devkit's TrackingEval on a tracking submission; writes nothing but the folder it asks for.

    Raises:
        InputError: pandas or motmetrics are not installed, missing submission, or content that the devkit refuses.
    """
    # Without them the devkit raises unittest's SkipTest, which a caller would take for anything but a missing package.
    for package in ("pandas", "motmetrics"):
        optional_package(package, "tracking")
    if not submission_path.is_file():
        raise InputError(submission_path, "no such submission", "write a nuScenes tracking submission")
    open_dataroot(dataroot, version)  # tells what is wrong with a dataroot before the devkit trips over it
    from nuscenes.eval.tracking.evaluate import TrackingEval

    config = config_factory(OFFICIAL_CONFIG)
    assert isinstance(config, TrackingConfig)
    try:
        evaluation = TrackingEval(config, str(submission_path), split, str(out_dir), version, str(dataroot), verbose=False)
    except Exception as error:  # the devkit raises bare Exceptions too, of a submission without any box for one
        problem = f"the devkit refuses it for split '{split}' ({type(error).__name__}: {error})"
        fix = "list every sample of the split, at most 500 boxes each, with tracking_id, tracking_name and tracking_score"
        raise InputError(submission_path, problem, fix) from error
    return tracking_report(evaluation.evaluate()[0].serialize())


def tracking_report(summary: dict[str, Any]) -> TrackingReport:
    """A report of what the devkit's TrackingMetrics serialise to."""
    by_metric = summary["label_metrics"]
    classes = next(iter(by_metric.values()))
    return TrackingReport(
        amota=summary["amota"], amotp_m=summary["amotp"], recall=summary["recall"], mota=summary["mota"],
        motp_m=summary["motp"], id_switches=summary["ids"], fragmentations=summary["frag"],
        class_metrics={name: {metric: float(values[name]) for metric, values in by_metric.items()} for name in classes},
    )  # fmt: skip
