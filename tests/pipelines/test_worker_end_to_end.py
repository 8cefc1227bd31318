"""One second of video with the real worker: tiny models, every other part as in production."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from dwm.scenes.clips import read_video_frames
from dwm.scenes.types import CAMERAS
from pipelines.config import PerturbationConfig, RunConfig
from pipelines.dataset import Dataset
from pipelines.generate import GenerateResult, generate
from pipelines.validate import validate
from tests.pipelines.tiny_models import tiny_run, write_models

FRAMES = 12
# Reaches its full offset within the second; small enough to be feasible.
SHIFT = PerturbationConfig(name="lateral_offset", params={"offset_m": 0.3, "onset_s": 0.0, "ramp_s": 1.0})


@pytest.fixture(scope="module")
def run(pg_dataroot: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, GenerateResult]:
    folder = tmp_path_factory.mktemp("end_to_end")
    models = write_models(folder / "models")
    config = tiny_run(
        pg_dataroot, models, folder / "run", duration_s=1.0, perturbations=[PerturbationConfig(), SHIFT], scored=True
    )
    return config, generate(config)


def _by_perturbation(dataset: Dataset) -> dict[str, dict]:
    return {row["perturbation"]: row for row in dataset.clips().to_pylist()}


def test_both_clips_are_committed_and_every_byte_checks_out(run: tuple[RunConfig, GenerateResult]):
    config, result = run
    assert (result.exit_code, result.planned, result.quarantined) == (0, 2, {})
    assert (result.summary.committed, result.summary.rejected) == (2, 0)
    assert validate(Path(config.out), level=2) == []
    assert result.report is not None and result.report.stat().st_size > 10_000


def test_a_clip_is_six_videos_of_as_many_frames_with_a_row_for_every_image(run: tuple[RunConfig, GenerateResult]):
    config, _ = run
    dataset = Dataset.open(config.out)
    for clip in dataset.clips().to_pylist():
        clip_id = clip["clip_id"]
        assert clip["n_frames"] == FRAMES
        videos = {v["channel"]: v for v in dataset.rows("videos", clip_id, stream="rgb")}
        assert set(videos) == set(CAMERAS)
        for video in videos.values():
            images = read_video_frames(Path(config.out) / video["uri"], range(FRAMES))
            assert images.shape == (FRAMES, 128, 224, 3)
        rows = [r for r in dataset.table("camera_frames").to_pylist() if r["clip_id"] == clip_id]
        assert Counter(r["channel"] for r in rows) == dict.fromkeys(CAMERAS, FRAMES)


def test_labels_say_where_they_come_from_and_a_moved_ego_leaves_the_others_where_they_were(
    run: tuple[RunConfig, GenerateResult],
):
    dataset = Dataset.open(run[0].out)
    boxes = dataset.table("boxes").to_pylist()
    clips = _by_perturbation(dataset)
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    places: dict[str, dict] = defaultdict(dict)
    for box in boxes:
        name = next(n for n, clip in clips.items() if clip["clip_id"] == box["clip_id"])
        if box["label_source"] != "detected":
            found[name][box["frame_index"]].add(box["label_source"])
            places[name][box["frame_index"], box["instance_token"]] = (box["center_x"], box["center_y"], box["yaw"])
    assert found["baseline"] == {0: {"log"}, 6: {"log"}}
    assert found["lateral_offset"] == {0: {"log"}, 6: {"transformed"}}
    shared = places["baseline"].keys() & places["lateral_offset"].keys()
    assert len(shared) > 10
    assert all(places["baseline"][key] == pytest.approx(places["lateral_offset"][key], abs=1e-4) for key in shared)


def test_untrained_models_are_rejected_in_words_and_the_notes_say_what_the_log_lacks(run: tuple[RunConfig, GenerateResult]):
    for clip in _by_perturbation(Dataset.open(run[0].out)).values():
        reasons = json.loads(clip["verdict_reasons_json"])
        assert not clip["verdict_keep"]
        assert "codec.reconstruction_psnr_db" in {r["metric"] for r in reasons}
        assert all(len(r["sentence"].split()) > 5 for r in reasons)
        assert "speed limits are assumed: a map expansion has none" in json.loads(clip["notes_json"])


def test_the_same_command_makes_nothing_new(run: tuple[RunConfig, GenerateResult]):
    config, first = run
    before = sorted(p for p in Path(config.out).rglob("*") if p.name not in ("events.jsonl", "progress.json"))
    again = generate(config, make_worker=pytest.fail)
    assert (again.exit_code, again.summary.committed, again.version) == (0, 0, first.version)
    assert sorted(p for p in Path(config.out).rglob("*") if p.name not in ("events.jsonl", "progress.json")) == before
