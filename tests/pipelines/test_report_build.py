import base64
import re
from pathlib import Path

import pytest

from dwm.errors import InputError
from dwm.scenes.types import CAMERAS
from pipelines import schema
from pipelines.report.build import GRID, write_report
from tests.pipelines.report_dataset import clip, metric, write_dataset, write_table


def report_of(tmp_path: Path, *clips: dict, **options) -> str:
    clips = clips or (clip("c1", 24),)
    return write_report(write_dataset(tmp_path, list(clips), **options)).read_text()


def facts_of(html: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html))


def test_the_six_videos_are_embedded_byte_for_byte_in_viewing_order(tmp_path):
    html = report_of(tmp_path)
    found = re.findall(r'data-channel="(\w+)" data-source="data:video/mp4;base64,([^"]+)"', html)
    assert tuple(channel for channel, _ in found) == GRID
    for channel, encoded in found:
        (file,) = tmp_path.glob(f"data/*/c1/{channel}.rgb.mp4")
        assert base64.b64decode(encoded) == file.read_bytes()


def test_videos_over_the_limit_are_linked_and_the_report_says_so(tmp_path):
    version_dir = write_dataset(tmp_path, [clip("c1", 24)])
    html = write_report(version_dir, embed_limit_bytes=10).read_text()
    assert "base64" not in html
    assert "too large to embed" in html
    links = re.findall(r'data-source="([^"]+)"', html)
    assert len(links) == len(CAMERAS)
    assert all((version_dir / link).is_file() for link in links)


def test_text_from_the_dataset_is_escaped(tmp_path):
    hostile = '<script>alert("x")</script>'
    html = report_of(
        tmp_path,
        clip("c1", 24, description=hostile, prompt=hostile, verdict_keep=False, verdict_reasons_json=f'["{hostile[:8]}"]'),
        metrics=[metric("c1", hostile, 1.0, bucket_start_s=0.0, bucket_end_s=2.0), metric("c1", hostile, 1.0, hostile)],
    )
    assert html.count("<script>") == 1  # the player's own
    assert "&lt;script&gt;alert(" in html


def test_the_page_loads_nothing_from_a_network(tmp_path):
    html = report_of(tmp_path)
    assert not re.findall(r"https?://", html)
    assert "default-src 'none'" in html


def test_a_rejected_clip_is_shown_with_its_reasons_after_the_kept_ones(tmp_path):
    reasons = '[{"metric": "recall", "value": 0.2, "limit": 0.5, "sentence": "recall 0.20 is below 0.50"}]'
    html = report_of(tmp_path, clip("a-bad", 12, verdict_keep=False, verdict_reasons_json=reasons), clip("b-good", 12))
    assert "1 of 2" in html
    assert html.index("<code>b-good</code>") < html.index("<code>a-bad</code>")
    assert "<li>recall 0.20 is below 0.50</li>" in html


def test_label_shares_count_labels_and_leave_detections_out(tmp_path):
    html = report_of(tmp_path)
    shares = re.findall(r"</i>(\w+) ([\d.]+) % <span class=\"muted\">\((\d+)\)", html)
    assert shares == [("log", "20.0", "2"), ("interpolated", "30.0", "3"), ("simulated", "50.0", "5")]


def test_run_facts_name_weights_seed_commit_and_schema(tmp_path):
    facts = facts_of(report_of(tmp_path))
    assert facts["model weights sha256"] == "world_model " + "ab" * 32
    assert facts["git commit"] == "c0ffee (with uncommitted changes)"
    assert facts["schema version"] == schema.SCHEMA_VERSION
    assert facts["clip seeds"] == "7"
    assert facts["started"] == "2023-11-14 22:13:20 UTC"
    assert facts["seed policy"] == "not recorded"


def test_the_timeline_marks_where_the_log_ends(tmp_path):
    html = report_of(tmp_path, clip("c1", 48, log_end_index=12))
    assert "--cut:25.000%" in html
    assert "log ends at 1.0 s" in html
    assert 'data-log-end="12"' in html


def test_a_clip_inside_the_log_has_no_simulated_mark(tmp_path):
    html = report_of(tmp_path, clip("c1", 24, log_end_index=24))
    assert "log ends at" not in html
    assert "commanded, simulated" not in html


def test_a_shard_that_made_no_clip_is_listed_with_its_reason(tmp_path):
    html = report_of(tmp_path)
    assert "lateral acceleration 9.1 m/s2 exceeds 6.0 m/s2" in html
    assert "scene-0001" not in html  # this one has a clip


def test_the_true_video_can_be_compared_where_there_is_one(tmp_path):
    assert 'class="compare"' in report_of(tmp_path / "with", streams=("rgb", "truth"))
    assert 'class="compare"' not in report_of(tmp_path / "without")


def test_a_missing_video_file_is_named_instead_of_failing(tmp_path):
    version_dir = write_dataset(tmp_path, [clip("c1", 24)])
    next(tmp_path.glob("data/*/c1/CAM_BACK.rgb.mp4")).unlink()
    html = write_report(version_dir).read_text()
    assert html.count("no video file") == 1
    assert html.count("base64,") == len(CAMERAS) - 1


def test_a_video_path_that_leaves_the_dataset_is_refused(tmp_path):
    version_dir = write_dataset(tmp_path, [clip("c1", 12)])
    write_table(version_dir, "videos", [{"clip_id": "c1", "channel": "CAM_FRONT", "stream": "rgb", "uri": "../secret.mp4"}])
    with pytest.raises(InputError, match="leaves the dataset"):
        write_report(version_dir)


def test_a_folder_without_tables_is_refused_with_advice(tmp_path):
    with pytest.raises(InputError, match="give a version folder"):
        write_report(tmp_path)


def test_writing_twice_gives_the_same_bytes_and_leaves_no_partial_file(tmp_path):
    version_dir = write_dataset(tmp_path, [clip("c1", 12)])
    first = write_report(version_dir).read_bytes()
    assert write_report(version_dir).read_bytes() == first
    assert [p.name for p in version_dir.glob("report*")] == ["report.html"]
