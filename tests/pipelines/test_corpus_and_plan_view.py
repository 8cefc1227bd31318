from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from dwm.errors import InputError
from dwm.scenario.rarity import Support
from dwm.scenes.tracks import tracks_of
from pipelines import cli
from pipelines.atomic import sha256_file
from pipelines.config import (
    EvaluateConfig,
    ExecutionConfig,
    FamilyConfig,
    MixConfig,
    PerturbationConfig,
    RunConfig,
    VideoConfig,
)
from pipelines.estimates import estimate
from pipelines.generate import generate, plan_run
from pipelines.layout import RunLayout
from pipelines.long_tail.corpus import read_corpus, tag_corpus
from pipelines.long_tail.misses import ScoredLabels, missed_below, read_misses
from pipelines.plan import read_plan
from pipelines.plan_view import PlanView
from pipelines.scene_list import list_scene_refs
from pipelines.schema import SCHEMA_VERSION, write_table
from tests.factories import START_US, make_scene
from tests.pipelines.pipeline_factories import ClipWorker
from tests.pipelines.tiny_models import VERSION, tiny_run, write_models, write_yaml


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def mixed(pg_dataroot: Path, models: Path, tmp_path: Path, **fields) -> RunConfig:
    """Six clips of half a second from both scenes of the tiny world."""
    config = tiny_run(pg_dataroot, models, tmp_path / "run", duration_s=0.5, perturbations=[], scored=False)
    families = [FamilyConfig(name="lateral_offset", weight=2), FamilyConfig()]
    mix = MixConfig(**{"clips": 6, "families": families, "stride_s": 0.5, "max_repeats": 3} | fields)
    scenario = dataclasses.replace(config.scenario, perturbations=None, mix=mix)
    return dataclasses.replace(config, scenario=scenario, scenes=dataclasses.replace(config.scenes, names=[]))


def publish(root: Path, token: str, boxes: list[tuple]) -> Path:
    """A version of one clip with the ego at the origin and boxes (time, class, x, support, source)."""
    folder = root / "versions" / "v-1"
    tables = {
        "clips": [{"clip_id": "c", "source_scene_token": token, "lidar_to_ego": [0.0] * 16}],
        "ego_poses": [{"clip_id": "c", "frame_index": i, "path": "commanded", "x": 0.0, "y": 0.0} for i in range(len(boxes))]
        + [{"clip_id": "c", "frame_index": i, "path": "baseline", "x": 999.0, "y": 0.0} for i in range(len(boxes))],
        "boxes": [
            {"clip_id": "c", "frame_index": i, "timestamp_us": t, "detection_class": name, "center_x": x, "center_y": 0.0,
             "support": support, "label_source": source}
            for i, (t, name, x, support, source) in enumerate(boxes)
        ],
    }  # fmt: skip
    for name, rows in tables.items():
        write_table(name, rows, folder / "tables" / name / "part-00000.parquet")
    (folder / "dataset.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION}))
    (folder / "_SUCCESS.json").write_text(json.dumps({"dataset.json": sha256_file(folder / "dataset.json")}))
    (root / "LATEST").write_text("v-1")
    return root


def test_misses_are_the_labels_of_the_log_in_range_that_got_less_support(tmp_path: Path):
    root = publish(tmp_path, "a" * 32, [
        (5, "car", 10.0, 0.0, "log"), (6, "car", 10.0, 0.17, "interpolated"), (7, "car", 10.0, 0.18, "transformed"),
        (8, "bus", 29.9, 0.5, "log"),
        (5, "car", 30.1, 0.0, "log"),  # out of range
        (5, "car", 10.0, 0.0, "simulated"), (5, "car", 10.0, None, "log"), (5, None, 10.0, 0.0, "log"),  # not to be counted
    ])  # fmt: skip
    found = read_misses(root, 0.18)
    assert found.keys() == {"a" * 32}
    assert found["a" * 32].support(0, 100) == {"car": Support(labels=3, missed=2), "bus": Support(labels=1, missed=0)}
    assert found["a" * 32].support(7, 7.5) == {"car": Support(labels=1, missed=0)}
    with pytest.raises(InputError, match="no published version here"):
        read_misses(root / "versions", 0.18)


def test_what_counts_as_missed_is_given_or_the_detectors_own_score_or_that_of_the_gate():
    shipped = EvaluateConfig(detector="weights/proving_ground_detector.safetensors")
    assert missed_below(MixConfig(missed_below=0.4), shipped) == 0.4
    assert missed_below(MixConfig(), shipped) == pytest.approx(0.178, abs=1e-3)
    assert missed_below(MixConfig(), EvaluateConfig()) == 0.3


def test_planted_misses_are_found_in_their_stretch_and_make_it_the_rarest():
    scenes = [tracks_of(make_scene(key_frames=41, name=f"scene-000{i}")) for i in range(4)]
    labels = lambda missed, at_s: ScoredLabels(  # noqa: E731
        timestamps_us=np.full(10, START_US + round(at_s * 1e6)), classes=np.full(10, "car"), missed=np.arange(10) < missed
    )
    misses = {scene.token: labels(1, 2.0) for scene in scenes} | {scenes[2].token: labels(9, 2.0)}
    corpus = tag_corpus(scenes, 5.0, 5.0, misses)
    plain = tag_corpus(scenes, 5.0, 5.0, {})
    has = [(w.scene_name, w.start_s) for w in corpus.windows if "missed.car" in w.tags]
    assert has == [("scene-0002", 0.0)]
    gains = [a.total_bits - b.total_bits for a, b in zip(corpus.rarities(), plain.rarities(), strict=True)]
    assert gains == pytest.approx([np.log2(5 / 1.5) if (w.scene_name, w.start_s) == has[0] else 0.0 for w in plain.windows])
    assert corpus.counts()["missed.car"].known == 4
    assert int(np.argmax([r.total_bits for r in corpus.scene_rarities()])) == 2


def test_the_corpus_does_not_depend_on_the_order_of_its_scenes():
    scenes = [tracks_of(make_scene(key_frames=21, ego_speed_mps=3.0 * i, name=f"scene-000{i}")) for i in range(4)]
    assert tag_corpus(scenes, 5.0, 2.5, {}) == tag_corpus(scenes[::-1], 5.0, 2.5, {})


def test_a_stretch_can_start_where_its_six_images_are(pg_dataroot: Path, models: Path, tmp_path: Path):
    config = mixed(pg_dataroot, models, tmp_path)
    corpus = read_corpus(config, list_scene_refs(config.scenes))
    assert [w.start_s for w in corpus.windows] == [0.0, 0.5] * 2 and all(corpus.startable)
    lacking = tag_corpus([tracks_of(make_scene())], 5.0, 5.0, {})
    assert not any(lacking.startable)


def test_misses_of_other_scenes_are_refused(pg_dataroot: Path, models: Path, tmp_path: Path):
    other = publish(tmp_path / "other", "f" * 32, [(5, "car", 10.0, 0.0, "log")])
    config = mixed(pg_dataroot, models, tmp_path, misses=str(other))
    with pytest.raises(InputError, match="no label of the configured scenes was scored there"):
        plan_run(config)


def test_a_run_with_a_mix_plans_its_clips_the_same_every_time(pg_dataroot: Path, models: Path, tmp_path: Path):
    config = mixed(pg_dataroot, models, tmp_path)
    plan = plan_run(config)
    assert len(plan.shards) == 6 and plan_run(config).shards == plan.shards
    assert sorted(s.perturbation.name for s in plan.shards) == ["baseline"] * 2 + ["lateral_offset"] * 4
    assert {s.scene_name for s in plan.shards} == {"scene-0001", "scene-0002"}
    both = dataclasses.replace(config, scenario=dataclasses.replace(config.scenario, perturbations=[PerturbationConfig()]))
    assert {s.shard_id for s in plan.shards} < {s.shard_id for s in plan_run(both).shards}


def test_plan_shows_the_mix_its_reasons_and_its_cost_and_writes_nothing(
    pg_dataroot: Path, models: Path, tmp_path: Path, capsys
):
    config = mixed(pg_dataroot, models, tmp_path, shares={"fog": 0.5, "class.car": 1.0})
    path = write_yaml(config, tmp_path / "run.yaml")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["plan", str(path)]) == 0
    text = capsys.readouterr().out
    assert cli.main(["plan", str(path), "--json"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert sorted(tmp_path.rglob("*")) == before
    assert "6 shards, " in text and re.search(r"lateral_offset +4 +67%", text)
    rows = {row["tag"]: row for row in view["tags"]}
    windows = view["windows"]
    assert rows["fog"]["windows"] == sum("fog" in w["bits_by_tag"] for w in windows)
    assert rows["class.car"]["target"] == 1.0 and rows["day"]["target"] is None
    assert rows["class.car"]["corpus"] == sum(w["counts"]["car"] > 0 for w in windows) / len(windows)
    assert [w["bits"] for w in windows] == pytest.approx([sum(w["bits_by_tag"].values()) for w in windows])
    assert len(view["shards"]) == 6 and view["families"] == {"baseline": 2, "lateral_offset": 4}
    assert all(note.split(":")[0] in ("fog", "class.car") for note in view["notes"])
    for note in view["notes"]:
        assert f"note: {note}" in text


def test_the_view_counts_what_is_planned_by_what_the_clips_will_show(pg_dataroot: Path, models: Path, tmp_path: Path):
    plan = plan_run(mixed(pg_dataroot, models, tmp_path))
    rows = {row["tag"]: row for row in PlanView(mixed(pg_dataroot, models, tmp_path), plan).tag_rows()}
    assert plan.mix is not None
    for tag in ("day", "class.car", "manoeuvre.straight"):
        share = sum(tag in clip.tags for clip in plan.mix.clips) / 6
        assert rows.get(tag, {"planned": 0.0})["planned"] == pytest.approx(share)


def test_a_plan_without_a_mix_still_says_what_its_clips_show(pg_dataroot: Path, models: Path, tmp_path: Path, capsys):
    config = tiny_run(pg_dataroot, models, tmp_path / "run", duration_s=0.5, perturbations=[PerturbationConfig()], scored=False)
    path = write_yaml(config, tmp_path / "run.yaml")
    assert cli.main(["plan", str(path), "--json"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert {row["planned"] for row in view["tags"]} <= {0.0, 1.0} and any(row["planned"] for row in view["tags"])
    assert cli.main(["plan", str(path), "--json", "--no-tags"]) == 0
    assert "tags" not in json.loads(capsys.readouterr().out)


def test_predictions_follow_frames_workers_and_rate_factor(pg_dataroot: Path, models: Path, tmp_path: Path):
    config = mixed(pg_dataroot, models, tmp_path)
    shards = plan_run(config).shards
    one = estimate(config, shards)
    assert one.worker_hours == pytest.approx(6 * 6 * 0.5 / 3600) and one.gpu_hours == 0.0
    execution = ExecutionConfig(workers=2, gpus_per_worker=0.5)
    two = estimate(dataclasses.replace(config, execution=execution), shards)
    assert (two.wall_hours, two.gpu_hours) == pytest.approx((one.worker_hours / 2, one.worker_hours / 2))
    assert two.memory_bytes == 2 * one.worker_memory_bytes == 2 * two.worker_memory_bytes
    smaller = estimate(dataclasses.replace(config, video=VideoConfig(crf=23.0)), shards)
    videos = 36 * 6 * 128 * 224 * 0.55 / 8
    assert one.disk_bytes - smaller.disk_bytes == pytest.approx(videos / 2, abs=1)
    tables = sum(path.stat().st_size for path in (pg_dataroot / VERSION).glob("*.json") if path.stem != "splits")
    assert one.worker_memory_bytes == pytest.approx(1.5e9 + 3.5 * 6 * 6 * 128 * 224 * 3 + 3.5 * tables, rel=1e-6)


def test_a_mix_is_generated_from_its_stretches_and_the_same_command_finds_it_done(
    pg_dataroot: Path, models: Path, tmp_path: Path, caplog
):
    config = mixed(pg_dataroot, models, tmp_path, clips=4, families=[FamilyConfig()], max_repeats=1, shares={"snow": 0.5})
    report = lambda version: version / "report.html"  # noqa: E731
    result = generate(config, make_worker=lambda config_yaml: ClipWorker(), write_report=report)
    assert (result.exit_code, result.planned, result.summary.committed) == (0, 4, 4)
    assert "target not met: snow: asked for in 50% of the clips, planned in 0%" in caplog.text
    assert {(s.scene_name, s.start_s) for s in read_plan(RunLayout(Path(config.out)))} == {
        (name, start) for name in ("scene-0001", "scene-0002") for start in (0.0, 0.5)
    }
    again = generate(config, make_worker=pytest.fail, write_report=report)
    assert (again.exit_code, again.summary.committed, again.version) == (0, 0, result.version)
