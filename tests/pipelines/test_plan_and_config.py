from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from dwm.config import load_config
from dwm.errors import InputError
from dwm.scenario.types import Perturbation
from pipelines.config import ExecutionConfig, PerturbationConfig, RunConfig, ScenarioConfig, check_config, config_sha256
from pipelines.layout import RunLayout
from pipelines.ledger import Ledger
from pipelines.plan import SceneRef, make_plan, open_run, read_plan, shard_seed, weights_sha256
from pipelines.scene_list import list_scene_refs
from tests.pipelines.pipeline_factories import sample_shift, tiny_config

WEIGHTS = {"codec": "0" * 64, "world_model": "1" * 64}
SCENE = SceneRef(name="scene-0001", token="a" * 32)


def _one_shard(config: RunConfig, weights: dict[str, str] = WEIGHTS):
    return make_plan(config, [SCENE], weights, sample_shift)[0]


def test_the_shard_id_of_a_known_configuration_never_changes():
    # A golden: if it moves, every existing run folder would be generated again. Raise GENERATOR_VERSION on purpose only.
    shard = _one_shard(RunConfig(scenario=ScenarioConfig(duration_s=2.0)))
    assert shard.shard_id == "55831e1ea98c984e19ebcc87617f3631"
    assert shard.n_frames == 24


def test_everything_that_changes_pixels_changes_the_id_and_nothing_else_does():
    base = RunConfig()
    changed = [
        dataclasses.replace(base, seed=1),
        dataclasses.replace(base, rollout=dataclasses.replace(base.rollout, steps=4)),
        dataclasses.replace(base, video=dataclasses.replace(base.video, crf=20.0)),
        dataclasses.replace(base, scenario=dataclasses.replace(base.scenario, start_s=1.0)),
        dataclasses.replace(base, scenario=dataclasses.replace(base.scenario, fps=10.0)),
    ]
    ids = {_one_shard(config).shard_id for config in (base, *changed)}
    ids.add(_one_shard(base, {**WEIGHTS, "codec": "2" * 64}).shard_id)
    assert len(ids) == 7
    same = dataclasses.replace(base, out="elsewhere", execution=ExecutionConfig(executor="ray", workers=7))
    assert _one_shard(same).shard_id == _one_shard(base).shard_id
    assert config_sha256(same) == config_sha256(base)


def test_a_perturbation_takes_given_parameters_and_draws_the_rest_from_its_seed():
    entry = PerturbationConfig(name="shift", severity=0.4, params={"offset_m": 1.5})
    config = RunConfig(scenario=ScenarioConfig(perturbations=[entry], seeds=[0, 1]))
    plan = make_plan(config, [SCENE], WEIGHTS, sample_shift)
    assert [s.perturbation for s in plan] == [
        Perturbation(name="shift", params={"offset_m": 1.5, "onset_s": 1.0}, severity=0.4)
    ] * 2
    drawn = dataclasses.replace(config, scenario=ScenarioConfig(perturbations=[PerturbationConfig(name="shift")], seeds=[0, 1]))
    first, second = (s.perturbation.params["offset_m"] for s in make_plan(drawn, [SCENE], WEIGHTS, sample_shift))
    assert first != second
    assert first == make_plan(drawn, [SCENE], WEIGHTS, sample_shift)[0].perturbation.params["offset_m"]


def test_a_parameter_the_perturbation_does_not_have_is_named():
    entry = PerturbationConfig(name="shift", params={"ofset_m": 1.0})
    with pytest.raises(InputError, match=r"shift has no parameter \['ofset_m'\]; it has: offset_m, onset_s"):
        make_plan(RunConfig(scenario=ScenarioConfig(perturbations=[entry])), [SCENE], WEIGHTS, sample_shift)


def test_the_plan_is_the_product_of_scenes_perturbations_and_seeds_with_predicted_minutes():
    entries = [PerturbationConfig(), PerturbationConfig(name="shift")]
    config = RunConfig(
        scenario=ScenarioConfig(duration_s=10, fps=12, perturbations=entries, seeds=[0, 5]),
        execution=ExecutionConfig(seconds_per_frame=0.5),
        seed=100,
    )
    scenes = [SCENE, SceneRef(name="scene-0002", token="b" * 32)]
    plan = make_plan(config, scenes, WEIGHTS, sample_shift)
    assert [(s.scene_name, s.perturbation.name, s.seed) for s in plan] == [
        (scene.name, name, seed) for scene in scenes for name in ("baseline", "shift") for seed in (100, 105)
    ]
    assert all(s.predicted_minutes == pytest.approx(120 * 0.5 / 60) for s in plan)
    assert len({shard_seed(s.shard_id) for s in plan}) == 8


def test_an_unknown_configuration_key_is_refused_by_name():
    with pytest.raises(InputError, match="seedz"):
        load_config(RunConfig, None, ["scenario.seedz=[1]"])


def test_yaml_lists_of_perturbations_become_records(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "scenario:\n  perturbations:\n  - {name: shift, severity: 0.2, params: {offset_m: 1}}\ngate: {psnr_db: 20, min_flicker: null}\n"
    )
    config = load_config(RunConfig, path, ["seed=3"])
    assert config.scenario.perturbations == [PerturbationConfig(name="shift", severity=0.2, params={"offset_m": 1.0})]
    assert (config.gate, config.seed) == ({"psnr_db": 20.0, "min_flicker": None}, 3)


@pytest.mark.parametrize(
    "override",
    ["execution.executor=slurm", "scenario.duration_s=0", "scenario.seeds=[]", "execution.workers=0", "scenario.seeds=[-1]",
     "scenario.perturbations=[{name: shift, severity: 2}]", "video.crf=99"],
)  # fmt: skip
def test_values_no_run_can_use_are_input_errors(override: str):
    with pytest.raises(InputError):
        check_config(load_config(RunConfig, None, [override]))


def test_a_folder_of_another_run_is_refused_and_the_same_run_resumes(tmp_path: Path):
    config = tiny_config(tmp_path)
    weights = weights_sha256(config)
    layout = RunLayout(Path(config.out))
    shards = make_plan(config, list_scene_refs(config.scenes), weights, sample_shift)
    first = open_run(layout, config, shards, weights)
    more_workers = dataclasses.replace(config, execution=ExecutionConfig(workers=4))
    assert open_run(layout, more_workers, shards, weights)["run_id"] == first["run_id"]
    assert read_plan(layout) == shards
    ledger = Ledger(layout)
    assert ledger.commit(ledger.begin(shards[0].shard_id), {})
    with pytest.raises(InputError, match=r"holds another run \(another configuration\); choose another out folder"):
        open_run(layout, dataclasses.replace(config, seed=9), shards, weights)
    with pytest.raises(InputError, match="other weights"):
        open_run(layout, config, shards, {**weights, "codec": "f" * 64})
    with pytest.raises(InputError, match="other shards"):
        open_run(layout, config, shards[:-1], weights)


def test_a_configuration_corrected_before_anything_was_made_starts_over_in_the_same_folder(tmp_path: Path):
    config = tiny_config(tmp_path)
    layout, weights = RunLayout(Path(config.out)), weights_sha256(config)
    scenes = list_scene_refs(config.scenes)
    open_run(layout, config, make_plan(config, scenes, weights, sample_shift), weights)
    corrected = dataclasses.replace(config, seed=9)
    shards = make_plan(corrected, scenes, weights, sample_shift)
    assert open_run(layout, corrected, shards, weights)["config_sha256"] == config_sha256(corrected)
    assert read_plan(layout) == shards


def test_a_folder_with_other_files_is_not_taken_over(tmp_path: Path):
    config = dataclasses.replace(tiny_config(tmp_path), out=str(tmp_path / "photos"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="not empty and holds no run"):
        open_run(RunLayout(Path(config.out)), config, [], {})


def test_scene_lists_come_from_names_splits_or_the_whole_table(tmp_path: Path):
    config = tiny_config(tmp_path).scenes
    tables = Path(config.dataroot) / config.version
    rows = [{"name": f"scene-000{i}", "token": str(i) * 32} for i in (1, 2, 3)]
    (tables / "scene.json").write_text(json.dumps(rows))
    (tables / "splits.json").write_text(json.dumps({"pg_val": ["scene-0003"]}))
    names = lambda **fields: [s.name for s in list_scene_refs(dataclasses.replace(config, **fields))]  # noqa: E731
    assert names(names=["scene-0002"]) == ["scene-0002"]
    assert names(names=[], split="pg_val") == ["scene-0003"]
    assert names(names=[]) == ["scene-0001", "scene-0002", "scene-0003"]
    for fields, message in [
        ({"names": ["scene-0009"]}, "no scene named scene-0009"), ({"names": [], "split": "pg"}, "no split named 'pg'"),
        ({"version": "v1.0-test"}, "versions found: v1.0-mini"), ({"dataroot": "nowhere"}, "no such dataroot"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            names(**fields)


def test_missing_weights_are_named(tmp_path: Path):
    config = tiny_config(tmp_path)
    Path(config.model.codec).unlink()
    with pytest.raises(InputError, match=r"codec.safetensors: no such weight file; set model.codec"):
        weights_sha256(config)


def test_perturbation_draws_do_not_depend_on_the_order_of_the_plan():
    entries = [PerturbationConfig(name="shift"), PerturbationConfig(name="shift", severity=0.9)]
    draw = lambda listed: {  # noqa: E731
        s.shard_id for s in make_plan(RunConfig(scenario=ScenarioConfig(perturbations=listed)), [SCENE], WEIGHTS, sample_shift)
    }
    assert draw(entries) == draw(entries[::-1])
    assert np.size(list(draw(entries))) == 2


@pytest.mark.parametrize(("fps", "rate", "works"), [
    (12, 2, True), (12, 12, True), (12, 4, True), (10, 2, True), (12, 5, False), (12, 24, False), (12, 1, False), (12, 0, False),
    (12, float("nan"), False),
])  # fmt: skip
def test_boxes_come_at_key_frames_or_at_a_rate_that_divides_the_frame_rate(fps: float, rate: float, works: bool):
    config = RunConfig(scenario=ScenarioConfig(fps=fps, labels_hz=rate))
    if works:
        check_config(config)
    else:
        with pytest.raises(InputError, match="labels_hz"):
            check_config(config)


def test_a_condition_that_no_air_can_be_in_is_refused_before_any_work():
    entry = PerturbationConfig(name="fog", params={"visibility_m": -5.0})
    config = RunConfig(scenario=ScenarioConfig(perturbations=[entry]))
    with pytest.raises(InputError, match=r"condition 'fog'.*visibility_m is -5"):
        make_plan(config, [SCENE], WEIGHTS)


def test_a_run_from_before_a_setting_was_added_keeps_its_identity_until_the_setting_says_something():
    # A golden, of a version that had no text encoders, fine models, gaps, uncorrected anchors, several logged frames or half precision, and read no ego motion.
    base = RunConfig()
    assert config_sha256(base) == "d1d76b660222bbf7e7a59499e68d7f2b2d47fc977d8b9f82a67c441b2224d1b3"
    for section, setting in (
        ("model", {"fine_model": "a"}),
        ("model", {"text_encoder": "a"}),
        ("evaluate", {"ego_motion": "a"}),
        ("rollout", {"gaps_at_once": 2}),
        ("rollout", {"correct_anchors": False}),
        ("rollout", {"logged_frames": 4}),
        ("rollout", {"precision": "bfloat16"}),
    ):
        changed = dataclasses.replace(base, **{section: dataclasses.replace(getattr(base, section), **setting)})
        assert config_sha256(changed) != config_sha256(base)
        if section == "rollout":
            assert _one_shard(changed).shard_id != _one_shard(base).shard_id
