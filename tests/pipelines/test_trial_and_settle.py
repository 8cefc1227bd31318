"""What is planned is tried: other draws, and other stretches of a mix, for what makes no scenario."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from dwm.rollout.config import RolloutConfig
from dwm.scenario.types import Perturbation
from pipelines import cli, trial
from pipelines.config import FamilyConfig, MixConfig, PerturbationConfig, RunConfig, ScenarioConfig
from pipelines.generate import plan_run
from pipelines.layout import RunLayout
from pipelines.long_tail.mix import draw_mix
from pipelines.long_tail.settle import settled
from pipelines.plan import SceneRef, make_plan, mixed_shard, open_run
from pipelines.trial import Trial, as_planned
from tests.factories import make_scene
from tests.pipelines.test_mix import WEIGHTS, corpus, planned, town, window
from tests.pipelines.tiny_models import tiny_run, write_models, write_yaml

SCENE = SceneRef(name="scene-0001", token="a" * 32)


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch):
    """A trial of a straight drive at 10 m/s for 10 s, and how often its scene was read."""
    read: list[str] = []

    def scene(root, version, name):
        read.append(name)
        return make_scene(agents=(), name=name)

    monkeypatch.setattr(trial, "read_scene", scene)
    return lambda draws, rollout=RolloutConfig(): (  # noqa: B008 - frozen
        Trial(RunConfig(scenario=ScenarioConfig(duration_s=10.0, draws=draws), rollout=rollout)), read
    )  # fmt: skip


def stop(*reach_s: float):
    """Draws of a car that stands in the way from so many seconds on."""
    return lambda number: Perturbation(
        name="stopped_vehicle", params={"reach_s": reach_s[min(number, len(reach_s) - 1)], "hold_s": 100.0}, severity=0.5
    )


def test_the_first_feasible_draw_is_planned(tries):
    chosen, why = tries(4)[0].settle(SCENE, 0.0, 0, stop(9.9, 9.8, 6.0, 5.0))
    assert (chosen.params["reach_s"], why) == (6.0, "")


def test_without_a_feasible_draw_the_first_one_is_planned_with_its_reason(tries):
    chosen, why = tries(2)[0].settle(SCENE, 0.0, 0, stop(9.9, 9.8, 6.0))
    assert chosen.params["reach_s"] == 9.9 and why.startswith("after_log: the event is over at 10.9 s")


def test_what_leaves_nothing_open_is_tried_once_and_a_scene_is_read_once(tries, monkeypatch):
    made = []
    build = trial.ScenarioBuilder.build
    monkeypatch.setattr(trial.ScenarioBuilder, "build", lambda self, p: (made.append(p), build(self, p))[1])
    one, read = tries(8)
    one.settle(SCENE, 0.0, 0, stop(9.9))
    one.settle(SCENE, 2.0, 1, stop(9.9))
    assert len(made) == 2 and read == ["scene-0001"]


def test_a_draw_that_leaves_the_logs_path_before_its_leading_frames_are_over_is_drawn_again(tries):
    def aside(number: int) -> Perturbation:
        params = {"offset_m": 1.0, "onset_s": float(number), "ramp_s": 1.5}
        return Perturbation(name="lateral_offset", params=params, severity=0.5)

    for rollout, onset_s in ((RolloutConfig(), 0.0), (RolloutConfig(logged_frames=4), 1.0)):
        chosen, why = tries(4, rollout)[0].settle(SCENE, 0.0, 0, aside)
        assert (chosen.params["onset_s"], why) == (onset_s, "")


def test_a_scene_that_cannot_be_used_is_told_and_does_not_stop_the_plan(tries):
    chosen, why = tries(3)[0].settle(SCENE, 50.0, 0, stop(6.0))
    assert chosen.params["reach_s"] == 6.0 and "50.0 s is not within the log" in why


def test_draws_differ_by_their_number_and_the_first_is_that_of_an_untried_plan():
    config = RunConfig(scenario=ScenarioConfig(perturbations=[PerturbationConfig(name="hard_brake")]))
    third = make_plan(config, [SCENE], WEIGHTS, settle=lambda scene, start, seed, draw: (draw(2), ""))
    again = make_plan(config, [SCENE], WEIGHTS, settle=lambda scene, start, seed, draw: (draw(0), ""))
    (plain,), (other,) = make_plan(config, [SCENE], WEIGHTS), third
    assert again == [plain] and other.shard_id != plain.shard_id
    assert other.perturbation.params["decel_mps2"] == plain.perturbation.params["decel_mps2"]  # the severity's
    assert other.perturbation.params["onset_s"] != plain.perturbation.params["onset_s"]


EVENTS = [FamilyConfig(name="debris"), FamilyConfig(name="baseline")]


def settle_in(mix: MixConfig, where, feasible):
    """The mix once every clip of ``debris`` was tried; ``feasible`` says in which stretches it works."""
    config = RunConfig(scenario=ScenarioConfig(duration_s=5.0, mix=mix))

    def make(clip):
        fails = clip.family.name == "debris" and not feasible(clip.window)
        scene = SceneRef(name=clip.window.scene_name, token=clip.window.scene_token)
        why = "too_near: 3.0 m ahead" if fails else ""
        return mixed_shard(config, scene, clip, WEIGHTS, settle=lambda scene, start, seed, draw: (draw(0), why))

    return settled(mix, where, draw_mix(mix, where, 0), 0, make)


def test_what_is_infeasible_moves_to_a_stretch_that_serves_the_shares_as_well():
    mix = MixConfig(clips=20, families=EVENTS, shares={"night": 0.2, "class.bicycle": 0.5}, max_repeats=2)
    works = lambda stretch: int(stretch.scene_token) % 8 in (0, 3)  # noqa: E731
    found, shards = settle_in(mix, town(), works)
    assert not any(shard.infeasible for shard in shards) and found.notes == ()
    assert all(works(clip.window) for clip in found.clips if clip.family.name == "debris")
    assert (planned(found, "night"), planned(found, "class.bicycle")) == (0.2, 0.5)
    assert Counter(clip.family.name for clip in found.clips) == {"debris": 10, "baseline": 10}
    assert max(Counter(clip.window.scene_token for clip in found.clips).values()) <= 2
    assert len({shard.shard_id for shard in shards}) == 20
    assert settle_in(mix, town(), works) == (found, shards)


def test_a_stored_plan_is_made_again_without_trying():
    mix = MixConfig(clips=20, families=EVENTS, shares={"night": 0.2}, max_repeats=2)
    found, shards = settle_in(mix, town(), lambda stretch: int(stretch.scene_token) in (3, 11))
    assert any(shard.infeasible for shard in shards) and found.clips != draw_mix(mix, town(), 0).clips
    config = RunConfig(scenario=ScenarioConfig(duration_s=5.0, mix=mix))

    def make(clip, fingerprint=""):
        scene = SceneRef(name=clip.window.scene_name, token=clip.window.scene_token, fingerprint=fingerprint)
        return mixed_shard(config, scene, clip, WEIGHTS, settle=as_planned(shards, 1))

    assert settled(mix, town(), draw_mix(mix, town(), 0), 0, make) == (found, shards)
    _, changed = settled(mix, town(), draw_mix(mix, town(), 0), 0, lambda clip: make(clip, "another row"))
    assert not {shard.shard_id for shard in changed} & {shard.shard_id for shard in shards}


def test_what_is_feasible_stays_where_it_was_drawn():
    mix = MixConfig(clips=20, families=EVENTS, shares={"night": 0.2})
    assert settle_in(mix, town(), lambda stretch: True)[0] == draw_mix(mix, town(), 0)


def test_what_is_feasible_nowhere_is_kept_and_told():
    mix = MixConfig(clips=8, families=EVENTS)
    found, shards = settle_in(mix, town(), lambda stretch: stretch.scene_token == f"{7:032d}")
    assert found.notes == ("debris: 2 of 4 clips are feasible in no stretch that was tried (too_near 2)",)
    assert sum(bool(shard.infeasible) for shard in shards) == 2
    moved = [clip for clip in found.clips if clip.family.name == "debris" and clip.window.scene_token == f"{7:032d}"]
    assert sorted(clip.repeat for clip in moved) == [0, 1]


def test_clips_that_move_to_the_same_stretch_differ_by_their_seed_even_when_others_left_it():
    mix = MixConfig(clips=6, families=[FamilyConfig(name="debris")], max_repeats=6)
    two = corpus([window(0, "day", "clear"), window(1, "day", "clear")])
    found, shards = settle_in(mix, two, lambda stretch: stretch.scene_token == f"{1:032d}")
    assert len({shard.shard_id for shard in shards}) == 6
    assert {clip.window.scene_token for clip in found.clips} == {f"{1:032d}"}


def test_a_run_that_resumes_does_not_try_again(pg_dataroot: Path, tmp_path: Path, monkeypatch):
    config = tiny_run(pg_dataroot, write_models(tmp_path), tmp_path / "run", duration_s=0.5, perturbations=[], scored=False)
    listed = [PerturbationConfig(name="lateral_offset", params={"offset_m": offset}) for offset in (0.5, 1.0)]
    config = dataclasses.replace(config, scenario=dataclasses.replace(config.scenario, perturbations=listed, draws=2))
    plan = plan_run(config)
    assert sorted(bool(shard.infeasible) for shard in plan.shards) == [True, True]
    open_run(RunLayout(tmp_path / "run"), config, plan.shards, plan.weights)
    monkeypatch.setattr(trial, "ScenarioBuilder", None)  # building would fail
    assert plan_run(config).shards == plan.shards
    with pytest.raises(TypeError):
        plan_run(dataclasses.replace(config, seed=1))  # another run: it has no plan yet


def test_plan_tells_what_is_infeasible_before_anything_runs(pg_dataroot: Path, tmp_path: Path, capsys):
    config = tiny_run(pg_dataroot, write_models(tmp_path), tmp_path / "run", duration_s=0.5, perturbations=[], scored=False)
    families = [FamilyConfig(name="debris"), FamilyConfig()]
    mix = MixConfig(clips=4, families=families, stride_s=0.5, max_repeats=3)
    scenario = dataclasses.replace(config.scenario, perturbations=None, mix=mix, draws=2)
    path = write_yaml(dataclasses.replace(config, scenario=scenario), tmp_path / "run.yaml")
    assert cli.main(["plan", str(path)]) == 0
    text = capsys.readouterr().out
    assert text.count("  infeasible: after_log: the event is over at") == 2
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("debris ", "baseline "))}
    assert rows == {"debris": ["2", "50%", "0"], "baseline": ["2", "50%", "2"]}
    assert "note: debris: 2 of 2 clips are feasible in no stretch that was tried (after_log 2)" in text
    assert cli.main(["plan", str(path), "--json"]) == 0
    assert sum(bool(shard["infeasible"]) for shard in json.loads(capsys.readouterr().out)["shards"]) == 2
