from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from dwm.config import load_config
from dwm.errors import InputError
from dwm.scenario.perturbations import sample_perturbation
from dwm.scenario.tags import MISSED, TaggedWindow
from pipelines.config import FamilyConfig, MixConfig, PerturbationConfig, RunConfig, ScenarioConfig, check_config, config_sha256
from pipelines.long_tail.corpus import Corpus
from pipelines.long_tail.families import parameters_of, tags_cleared, tags_set
from pipelines.long_tail.mix import clip_tags, draw_mix, shares_of
from pipelines.plan import SceneRef, make_plan, mixed_shard

WEIGHTS = {"codec": "0" * 64, "world_model": "1" * 64}
BRAKE = FamilyConfig(name="hard_brake", severity=[0.4, 0.6], ranges={"decel_mps2": [3.0, 5.0]})


def window(number: int, *tags: str) -> TaggedWindow:
    return TaggedWindow(
        scene_name=f"scene-{number:04d}", scene_token=f"{number:032d}", start_s=0.0, end_s=5.0, tags=frozenset(tags),
        unknown=frozenset(MISSED),
    )  # fmt: skip


def corpus(windows: list[TaggedWindow], startable: list[bool] | None = None) -> Corpus:
    return Corpus(windows=tuple(windows), scenes=tuple(windows), startable=tuple(startable or [True] * len(windows)))


def town(count: int = 40) -> Corpus:
    """One stretch in ten at night, one in four with a bicycle, all else by day."""
    bicycle = lambda i: ("class.bicycle",) if i % 4 == 0 else ()  # noqa: E731
    return corpus([window(i, "night" if i % 10 == 3 else "day", "clear", "class.car", *bicycle(i)) for i in range(count)])


def planned(mix, tag: str) -> float:
    return shares_of([clip.tags for clip in mix.clips], [tag])[tag]


def test_a_mix_reaches_its_shares_and_its_families_their_weights():
    families = [FamilyConfig(name="baseline", weight=1), FamilyConfig(name="hard_brake", weight=3)]
    asked = MixConfig(clips=20, families=families, shares={"night": 0.3, "class.bicycle": 0.5})
    mix = draw_mix(asked, town(), seed=0)
    assert (planned(mix, "night"), planned(mix, "class.bicycle")) == (0.3, 0.5)
    assert Counter(clip.family.name for clip in mix.clips) == {"hard_brake": 15, "baseline": 5}
    assert max(Counter(clip.window.scene_name for clip in mix.clips).values()) <= 2
    assert mix.notes == ()
    assert mix.reach["night"].high == pytest.approx(8 / 20) and mix.reach["night"].windows == 4


def test_rarer_stretches_are_drawn_more_often_and_evenly_at_temperature_nought():
    count = lambda temperature: sum(  # noqa: E731
        planned(draw_mix(MixConfig(clips=10, temperature=temperature), town(), seed), "night") for seed in range(60)
    ) / 60  # fmt: skip
    assert count(0.0) == pytest.approx(0.1, abs=0.03)
    assert count(4.0) > 0.3


def test_the_same_seed_draws_the_same_clips_and_another_seed_others():
    asked = MixConfig(clips=15, families=[BRAKE, FamilyConfig()], shares={"night": 0.2})
    assert draw_mix(asked, town(), 7) == draw_mix(asked, town(), 7)
    assert draw_mix(asked, town(), 7).clips != draw_mix(asked, town(), 8).clips


def test_an_unreachable_share_is_told_with_its_reason_and_comes_as_near_as_it_can():
    asked = MixConfig(clips=20, shares={"night": 0.8, "class.bicycle": 0.5}, max_repeats=2)
    mix = draw_mix(asked, town(), seed=0)
    assert (planned(mix, "night"), planned(mix, "class.bicycle")) == (0.4, 0.5)
    assert mix.notes == (
        "night: asked for in 80% of the clips, planned in 40%; 4 of 40 stretches have it, each used at most 2 times: "
        "these and the families allow at most 40%",
    )
    contrary = draw_mix(MixConfig(clips=20, shares={"day": 0.9, "night": 0.3}), town(), seed=0)
    assert len(contrary.notes) == 2 and all("the other shares stand against it" in note for note in contrary.notes)


def test_a_family_that_makes_night_counts_as_night_and_not_as_day():
    families = [FamilyConfig(name="baseline", weight=1), FamilyConfig(name="hard_brake+night+rain", weight=1)]
    mix = draw_mix(MixConfig(clips=20, families=families, shares={"night": 0.6, "rain": 0.5}), town(), seed=0)
    assert (planned(mix, "night"), planned(mix, "rain"), planned(mix, "clear"), planned(mix, "day")) == (0.6, 0.5, 0.5, 0.4)
    assert clip_tags(window(0, "day", "clear", "class.car"), "hard_brake+night+rain") == {"night", "rain", "class.car"}
    assert (tags_set("hard_brake+rain"), tags_cleared("hard_brake+rain")) == ({"rain"}, {"clear", "fog", "snow"})
    below = draw_mix(MixConfig(clips=20, families=families, shares={"night": 0.2}), town(), seed=0)
    assert "allow at least 50%" in below.notes[0]


def test_severities_spread_evenly_over_their_range():
    mix = draw_mix(MixConfig(clips=40, families=[BRAKE]), town(), seed=0)
    severities = np.sort([clip.severity for clip in mix.clips])
    assert severities[0] >= 0.4 and severities[-1] <= 0.6
    assert np.diff(severities).max() < 2.7 * 0.2 / 40  # golden-ratio gaps are at most 1 + phi of the mean


def test_clips_of_one_stretch_get_different_families_where_there_are_several():
    mix = draw_mix(MixConfig(clips=80, families=[BRAKE, FamilyConfig()]), town(), seed=0)
    assert {clip.repeat for clip in mix.clips} == {0}


def test_stretches_without_images_to_start_from_are_left_out():
    windows = list(town().windows)
    mix = draw_mix(MixConfig(clips=10), corpus(windows, [i < 5 for i in range(40)]), seed=0)
    assert {clip.window.scene_name for clip in mix.clips} == {f"scene-{i:04d}" for i in range(5)}
    with pytest.raises(InputError, match=r"11 clips from 5 stretches \(35 more lack images to start from\), each at most 2"):
        draw_mix(MixConfig(clips=11), corpus(windows, [i < 5 for i in range(40)]), seed=0)
    with pytest.raises(InputError, match="none of the 40 stretches has images"):
        draw_mix(MixConfig(clips=1), corpus(windows, [False] * 40), seed=0)


def _config(**mix) -> RunConfig:
    return RunConfig(scenario=ScenarioConfig(duration_s=5.0, mix=MixConfig(**mix)), seed=3)


def test_shards_of_a_mix_start_where_their_stretch_does_and_draw_within_their_ranges():
    config = _config(clips=30, families=[BRAKE, FamilyConfig()])
    late = corpus([dataclasses.replace(w, start_s=2.5, end_s=7.5) for w in town().windows])
    clips = draw_mix(config.scenario.mix, late, config.seed).clips
    shards = [mixed_shard(config, SceneRef(name=c.window.scene_name, token=c.window.scene_token), c, WEIGHTS) for c in clips]
    assert len(shards) == len({shard.shard_id for shard in shards}) == 30
    assert {shard.start_s for shard in shards} == {2.5} and {shard.duration_s for shard in shards} == {5.0}
    brakes = [s.perturbation for s in shards if s.perturbation.name == "hard_brake"]
    assert len(brakes) == 15 and len({p.params["decel_mps2"] for p in brakes}) == 15
    assert all(3.0 <= p.params["decel_mps2"] <= 5.0 and 0.4 <= p.severity <= 0.6 for p in brakes)
    assert {s.seed for s in shards if s.perturbation.name == "hard_brake"} == {3}


def test_two_clips_of_one_stretch_and_family_differ_by_their_seed():
    config = _config(clips=4, max_repeats=4)
    one = corpus([window(0, "day", "clear")])
    scene = SceneRef(name="scene-0000", token=one.windows[0].scene_token)
    shards = [mixed_shard(config, scene, clip, WEIGHTS) for clip in draw_mix(config.scenario.mix, one, 3).clips]
    assert sorted(shard.seed for shard in shards) == [3, 4, 5, 6]
    assert len({shard.shard_id for shard in shards}) == 4


def test_a_mix_stands_beside_listed_perturbations_and_alone_without_them():
    scene = [SceneRef(name="scene-0001", token="a" * 32)]
    alone = RunConfig(scenario=ScenarioConfig(mix=MixConfig(clips=1)))
    assert make_plan(alone, scene, WEIGHTS) == []
    both = dataclasses.replace(alone, scenario=dataclasses.replace(alone.scenario, perturbations=[PerturbationConfig()]))
    plain = RunConfig(scenario=ScenarioConfig(perturbations=[PerturbationConfig()]))
    assert [s.shard_id for s in make_plan(both, scene, WEIGHTS)] == [s.shard_id for s in make_plan(plain, scene, WEIGHTS)]
    assert make_plan(plain, scene, WEIGHTS) == make_plan(RunConfig(), scene, WEIGHTS)


def test_the_identity_of_a_run_tells_its_mix():
    assert config_sha256(RunConfig(scenario=ScenarioConfig(perturbations=[PerturbationConfig()]))) == config_sha256(RunConfig())
    mixes = [_config(clips=1), _config(clips=2), _config(clips=1, shares={"night": 0.1})]
    assert len({config_sha256(config) for config in mixes}) == 3


def test_ranges_name_parameters_with_their_family_where_several_are_joined():
    assert parameters_of("hard_brake+rain", "x") == {
        "hard_brake.decel_mps2", "hard_brake.onset_s", "hard_brake.hold_s",
        "rain.visibility_m", "rain.wetness", "rain.overcast",
    }  # fmt: skip
    assert parameters_of("rain", "x") == {"visibility_m", "wetness", "overcast"}
    drawn = sample_perturbation("hard_brake+night", 0.5, np.random.default_rng(0), {"hard_brake.decel_mps2": (3.0, 3.0)})
    assert drawn.name == "hard_brake+night" and drawn.params["hard_brake.decel_mps2"] == 3.0


def test_the_catalogue_of_this_version_draws_what_a_mix_asks_for():
    drawn = sample_perturbation("hard_brake", 1.0, np.random.default_rng(0), {})
    assert drawn.params["decel_mps2"] == 6.0
    assert sample_perturbation("baseline", 0.7, np.random.default_rng(0), {}).severity == 0.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clips=0", "scenario.mix.clips is 0; give at least 1"),
        ("max_repeats=0", "scenario.mix.max_repeats is 0"),
        ("temperature=-1", "scenario.mix.temperature is -1.0"),
        ("stride_s=0.2", "give 0.5 s or more"),
        ("missed_below=2", "scenario.mix.missed_below is 2.0"),
        ("shares={nite: 0.2}", "unknown tag 'nite'; did you mean night\\? known: day, dusk, night, clear"),
        ("shares={night: 1.2}", "scenario.mix.shares.night is 1.2; give a share from 0 to 1"),
        ("shares={missed.car: 0.2}", "needs to know what was missed; set scenario.mix.misses"),
        ("families=[]", "scenario.mix.families is empty"),
        ("families=[{weight: -1}]", "weight of baseline is -1.0"),
        ("families=[{weight: 0}]", "all weights of scenario.mix.families are 0"),
        ("families=[{name: hard_brakes}]", "no family 'hard_brakes' in 'hard_brakes'; use one of: baseline, "),
        ("families=[{name: hard_brake+hard_brake}]", "names a family twice"),
        ("families=[{name: baseline+hard_brake}]", "no family 'baseline' in"),
        ("families=[{name: hard_brake, severity: [0.5]}]", "severity of hard_brake is \\[0.5\\]; give two numbers"),
        ("families=[{name: hard_brake, severity: [0.5, 1.5]}]", "stay between 0 and 1"),
        ("families=[{name: hard_brake, ranges: {decel_mps2: [5, 3]}}]", "range of decel_mps2 of hard_brake is .*reversed"),
        ("families=[{name: hard_brake, ranges: {offset_m: [1, 2]}}]", "no parameter 'offset_m'; it has: decel_mps2, hold_s"),
        ("families=[{name: hard_brake, ranges: {decel_mps2: [1, .inf]}}]", "give finite numbers"),
    ],
)
def test_a_value_no_mix_can_use_is_named_with_what_to_write(override: str, message: str):
    with pytest.raises(InputError, match=message):
        check_config(load_config(RunConfig, None, ["scenario.mix.clips=10", f"scenario.mix.{override}"]))
