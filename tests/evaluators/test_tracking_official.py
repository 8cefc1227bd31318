"""The devkit's TrackingEval on submissions whose score is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.tracking.utils import category_to_tracking_name

from dwm.scenes.dataroot import open_dataroot
from evaluators.tracking import TrackingReport, evaluate_tracking

VERSION = "v1.0-mini"


def score(root: Path, tmp_path: Path, *, forgetful: bool = False, shift_m: float = 0.0) -> TrackingReport:
    """Of the annotations as tracks; ``forgetful`` gives every box an identity of its own."""
    nusc, results, rng = open_dataroot(root, VERSION), {}, np.random.default_rng(0)
    for sample in nusc.sample:
        rows = []
        for token in sample["anns"]:
            truth = nusc.get("sample_annotation", token)
            name = category_to_tracking_name(truth["category_name"])
            if name is not None:
                rows.append({
                    "sample_token": sample["token"], "translation": [truth["translation"][0] + shift_m, *truth["translation"][1:]],
                    "size": truth["size"], "rotation": truth["rotation"], "velocity": [0.0, 0.0],
                    "tracking_id": token if forgetful else truth["instance_token"], "tracking_name": name,
                    "tracking_score": float(rng.random()),
                })  # fmt: skip
        results[sample["token"]] = rows
    meta = dict.fromkeys(("use_lidar", "use_radar", "use_map", "use_external"), False) | {"use_camera": True}
    path = tmp_path / "tracks.json"
    path.write_text(json.dumps({"meta": meta, "results": results}))
    return evaluate_tracking(root, VERSION, "pg_all", path, tmp_path / "out")


def test_the_annotations_themselves_are_perfect_tracks(pg_dataroot, tmp_path):
    report = score(pg_dataroot, tmp_path)
    assert (report.amota, report.mota, report.id_switches) == (pytest.approx(1.0), pytest.approx(1.0), 0)
    assert report.amotp_m == pytest.approx(0.0, abs=1e-4)


def test_boxes_aside_cost_position_and_boxes_that_forget_who_they_are_cost_identity(pg_dataroot, tmp_path):
    aside = score(pg_dataroot, tmp_path, shift_m=0.5)
    assert aside.mota == pytest.approx(1.0, abs=0.05) and aside.motp_m == pytest.approx(0.5, abs=0.05)
    forgetful = score(pg_dataroot, tmp_path, forgetful=True)
    assert forgetful.id_switches > 0 and forgetful.amota < 0.9
