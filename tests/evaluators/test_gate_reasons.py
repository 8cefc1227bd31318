"""Every planted fault is rejected for its own reason."""

from __future__ import annotations

import math

import pytest

from dwm.config import load_config
from evaluators.gate import GateConfig, judge

GOOD = {
    "codec.reconstruction_psnr_db": 30.0,
    "image.min_spread": 25.0,
    "motion.frozen_fraction": 0.0,
    "flicker.mean": 0.96,
    "sharpness.ratio_min": 0.9,
    "sharpness.ratio_last": 1.0,
    "detection.materialised": 0.5,
    "detection.reference_materialised": 0.7,
    "detection.boxes_in_range": 40.0,
}
FAULTS = {
    "codec.reconstruction_psnr_db": (15.25, "the model does not know this kind of image: reconstruction 15.2 dB < 22.0 dB"),
    "image.min_spread": (0.1, "all but constant"),
    "motion.frozen_fraction": (0.9, "stands still while the ego moves"),
    "flicker.mean": (0.5, "adjacent frames differ too much"),
    "sharpness.ratio_min": (0.2, "the video blurs"),
    "sharpness.ratio_last": (5.0, "turns to noise"),
    "detection.materialised": (0.14, "finds 14% of the boxes within 30 m, 70% on true video; ratio 0.20 < 0.50"),
}


def test_a_good_clip_is_kept_without_reasons() -> None:
    verdict = judge(GOOD, GateConfig())
    assert verdict.keep
    assert verdict.reasons == ()


@pytest.mark.parametrize("metric", FAULTS)
def test_a_planted_fault_is_the_only_reason(metric: str) -> None:
    value, sentence = FAULTS[metric]
    verdict = judge({**GOOD, metric: value}, GateConfig())
    assert not verdict.keep
    assert [r.metric for r in verdict.reasons] == [metric]
    assert sentence in verdict.reasons[0].sentence


@pytest.mark.parametrize("metric", [*FAULTS, "detection.reference_materialised"])
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_not_measured_does_not_pass(metric: str, value: float | None) -> None:
    metrics = {k: v for k, v in GOOD.items() if k != metric} | ({} if value is None else {metric: value})
    verdict = judge(metrics, GateConfig())
    assert [r.metric for r in verdict.reasons] == [metric]
    assert verdict.reasons[0].sentence.startswith(f"not measured: {metric}")
    assert math.isnan(verdict.reasons[0].value)


def test_all_faults_at_once_give_all_reasons() -> None:
    verdict = judge({**GOOD, **{metric: value for metric, (value, _) in FAULTS.items()}}, GateConfig())
    assert {r.metric for r in verdict.reasons} == set(FAULTS)


def test_limits_are_inclusive_and_null_switches_a_criterion_off() -> None:
    assert judge({**GOOD, "flicker.mean": 0.8}, GateConfig()).keep
    off = GateConfig(min_flicker=None, min_relative_recall=None)
    bare = {k: v for k, v in GOOD.items() if not k.startswith(("flicker", "detection"))}
    assert judge(bare, off).keep


def test_a_detector_that_sees_next_to_nothing_even_on_true_video_lets_no_clip_pass_on_its_silence() -> None:
    weak = {**GOOD, "detection.materialised": 0.05, "detection.reference_materialised": 0.05, "detection.boxes_in_range": 219.0}
    (reason,) = judge(weak, GateConfig()).reasons
    assert (reason.metric, reason.value, reason.limit) == ("detection.reference_materialised", 0.05, 0.1)
    assert "is too weak for this scene: it finds 5% of the 219 boxes within 30 m on true video < 10%" in reason.sentence
    assert judge({**weak, "detection.boxes_in_range": 9.0}, GateConfig()).keep  # a few can be missed by chance


def test_a_detector_that_finds_next_to_nothing_in_the_logs_own_images_leaves_the_labels_unconfirmed() -> None:
    foreign = {**GOOD, "detection.materialised": 0.0, "detection.reference_materialised": 0.05, "detection.logged_boxes": 20.0}
    (reason,) = judge(foreign, GateConfig()).reasons
    assert (reason.metric, reason.value, reason.limit) == ("detection.reference_materialised", 0.05, 0.1)
    assert (
        "does not know this kind of image: it finds 5% of the 20 boxes within 30 m in the log's own images" in reason.sentence
    )
    assert judge({**foreign, "detection.logged_boxes": 9.0}, GateConfig()).keep
    assert judge({**foreign, "detection.materialised": 0.5, "detection.reference_materialised": 0.5}, GateConfig()).keep


def test_a_scene_without_boxes_in_range_needs_no_recall() -> None:
    empty = {**GOOD, "detection.boxes_in_range": 0.0, "detection.materialised": math.nan}
    assert judge(empty, GateConfig()).keep


def test_the_counterfactual_limit_is_off_unless_asked_for() -> None:
    verdict = judge({**GOOD, "counterfactual.psnr_db": 12.0}, GateConfig(min_counterfactual_psnr_db=18.0))
    assert [r.metric for r in verdict.reasons] == ["counterfactual.psnr_db"]


def test_limits_are_readable_from_overrides() -> None:
    config = load_config(GateConfig, overrides=["min_relative_recall=0.3", "min_flicker=null"])
    assert config.min_relative_recall == 0.3
    assert config.min_flicker is None


STRICT = GateConfig(max_path_error_m=1.0, min_cross_view=0.5, max_unlabelled=0.3)
GOOD_PATH = {
    **GOOD, "ego_motion.agreed_ade_m": 0.4, "cross_view.worst_pair": 0.8, "detection.unlabelled": 0.9,
    "detection.reference_unlabelled": 0.7,
}  # fmt: skip
PATH_FAULTS = {
    "ego_motion.agreed_ade_m": (2.5, "does not go where it was told: 2.50 m from the commanded path > 1.00 m"),
    "cross_view.worst_pair": (0.1, "do not show one world: correlation 0.10 where both look < 0.50"),
    "detection.unlabelled": (1.7, "no label knows: 1.70 detections a frame, 1.00 more than on true video > 0.30"),
}


@pytest.mark.parametrize("metric", PATH_FAULTS)
def test_path_cameras_and_inventions_count_where_a_limit_is_set(metric: str) -> None:
    assert judge(GOOD_PATH, STRICT).keep
    value, sentence = PATH_FAULTS[metric]
    verdict = judge({**GOOD_PATH, metric: value}, STRICT)
    assert [r.metric for r in verdict.reasons] == [metric] and sentence in verdict.reasons[0].sentence
    assert judge({**GOOD_PATH, metric: value}, GateConfig()).keep, "off by default"
    logged = judge({**GOOD_PATH, metric: value, "detection.logged_boxes": 20.0}, STRICT)
    assert logged.reasons[0].sentence.count("on true video") == 0
    unmeasured = judge({k: v for k, v in GOOD_PATH.items() if k != metric}, STRICT)
    assert [r.sentence for r in unmeasured.reasons] == [f"not measured: {metric} (the metric is absent)"]
