import math

import pytest

from pipelines.report import view
from tests.pipelines.report_dataset import clip, metric, poses, write_dataset


def test_a_metric_on_the_true_video_stands_beside_the_generated_one():
    rows = view.metric_rows([metric("c", "recall", 0.5), metric("c", "recall", 0.75, source="truth")])
    assert [(r.name, r.value, r.truth) for r in rows] == [("recall", "0.500", "0.750")]


def test_values_of_a_time_bucket_do_not_enter_the_whole_clip_table():
    assert view.metric_rows([metric("c", "recall", 0.5, bucket_start_s=0.0, bucket_end_s=10.0)]) == []


def test_detection_scores_come_in_the_order_of_the_devkit_with_summaries_first():
    names = [("ap", "pedestrian"), ("nds", None), ("ap", "car"), ("map", None), ("sharpness", None)]
    rows = view.metric_rows([metric("c", name, 0.1, detection_class=kind) for name, kind in names])
    detection, other = view.split_detection(rows)
    assert [(r.name, r.detection_class) for r in detection] == [("map", ""), ("nds", ""), ("ap", "car"), ("ap", "pedestrian")]
    assert [r.name for r in other] == ["sharpness"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (24.456, "24.46"), (123456.0, "1.235e+05"), (math.nan, "not measured"), (None, "not measured")],
)
def test_numbers_are_shown_with_the_digits_that_matter(value, text):
    assert view.format_value(value) == text


@pytest.mark.parametrize(
    ("stored", "reasons"),
    [
        ('["too dark"]', ["too dark"]),
        ('[{"sentence": "frozen"}]', ["frozen"]),
        (None, []),
        ("", []),
        ("not json", ["not json"]),
    ],
)
def test_reasons_are_read_as_sentences(stored, reasons):
    assert view.reasons_of(clip("c", 1, verdict_reasons_json=stored)) == reasons


def test_each_path_of_a_clip_is_read_on_its_own_and_in_time_order(tmp_path):
    version_dir = write_dataset(tmp_path, [clip("c1", 12), clip("c2", 6)])
    table = view.of_clip(view.read_table(version_dir, "ego_poses"), "c1")
    commanded, baseline = view.track_of(table, "commanded"), view.track_of(table, "baseline")
    assert commanded is not None
    assert baseline is not None
    expected = poses("c1", "commanded", 12, 1.5)
    assert commanded.xy_m.tolist() == [[p["x"], p["y"]] for p in expected]
    assert (baseline.xy_m[:, 0] == 100.0).all()
    assert commanded.yaw_rad == pytest.approx(math.pi / 2)
    assert view.track_of(table, "measured") is None


def test_drivable_polygons_are_read_as_points(tmp_path):
    version_dir = write_dataset(tmp_path, [clip("c1", 6)])
    (polygon,) = view.drivable_polygons(view.read_table(version_dir, "map_elements"), "c1")
    assert polygon.tolist() == [[90.0, 40.0], [110.0, 40.0], [110.0, 400.0], [90.0, 400.0]]


def test_curves_people_know_come_first_under_their_plain_names():
    buckets = [
        metric("c", name, 1.0, bucket_start_s=0.0, bucket_end_s=10.0) for name in ("zebra", "detector_recall", "cf_psnr")
    ]
    titles = [
        next(t for t in ("zebra", "detector recall", "PSNR") if t in svg) for svg in view.bucket_curves(buckets, 10.0, 10.0)
    ]
    assert titles == ["PSNR", "detector recall", "zebra"]
