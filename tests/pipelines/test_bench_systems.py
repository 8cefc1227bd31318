"""The systems bench: what a run keeps, how its time is counted, and rows whose values are known."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dwm.config import load_config
from dwm.errors import InputError
from dwm.rollout.strategies import STRATEGIES
from evaluators.boxes import Boxes
from pipelines.bench import systems_run
from pipelines.bench.systems import SystemsConfig, Variant, bench_systems, rollout_of
from pipelines.bench.systems_figure import draw_fronts
from pipelines.bench.systems_run import Cost, Run, Scored, Stopwatch, load_run, save_run
from pipelines.bench.systems_table import systems_table
from tests.pipelines.tiny_models import VERSION, write_models


def boxes(count: int, aside_m: float = 0.0) -> Boxes:
    return Boxes(
        labels=np.zeros(count, np.int64), centers_m=np.stack([np.arange(5.0, 5 + count), np.full(count, aside_m), np.zeros(count)], -1),
        sizes_wlh_m=np.full((count, 3), 2.0), yaws_rad=np.zeros(count), velocities_mps=np.zeros((count, 2)),
        attributes=np.full(count, 5), scores=np.linspace(0.9, 0.5, count), num_pts=np.full(count, 9),
    )  # fmt: skip


def run(seed: int, *, shift: float = 0.0, found: int = 4, buckets: int = 2, seconds: float = 6.0, beside: float = 6.0) -> Run:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(buckets):
        image, video = rng.normal(size=(40, 3)), rng.normal(size=(30, 4))
        made.append(
            Scored(
                psnr_db=np.array([20.0, 22.0]), image_features=image + shift, video_features=video + shift,
                detections=(boxes(found), boxes(found)), labels=(boxes(4), boxes(4)), front_HW3=np.full((8, 14, 3), 50 * seed, np.uint8),
            )
        )  # fmt: skip
    return Run(buckets=tuple(made), cost=Cost(seconds=seconds, seconds_side_by_side=beside, passes=5, frames=120))


def cells(lines: list[str], name: str, time: str) -> list[str]:
    return next([c.strip() for c in line.split("|")[1:-1]] for line in lines if line.startswith(f"| {name} | {time} "))


def test_a_run_comes_back_as_it_was_kept(tmp_path: Path):
    kept = run(3, found=2)
    save_run(kept, tmp_path / "a" / "run.npz")
    back = load_run(tmp_path / "a" / "run.npz")
    assert back.cost == kept.cost
    assert len(back.buckets) == 2
    for mine, theirs in zip(kept.buckets, back.buckets, strict=True):
        assert np.array_equal(mine.video_features, theirs.video_features)
        assert np.array_equal(mine.front_HW3, theirs.front_HW3)
        assert [len(b) for b in theirs.detections] == [2, 2]
        for field in fields(Boxes):
            assert np.array_equal(getattr(mine.labels[1], field.name), getattr(theirs.labels[1], field.name))


def test_a_run_that_another_version_kept_is_told_by_file(tmp_path: Path):
    save_run(run(3), tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz") as arrays:
        np.savez(tmp_path / "run.npz", **{name: array for name, array in arrays.items() if name != "1.front_HW3"})
    with pytest.raises(InputError, match=r"run\.npz: kept by another version, without '1\.front_HW3'; give another --out"):
        load_run(tmp_path / "run.npz")


def test_the_figure_shows_each_variants_first_moment_where_it_stands(tmp_path: Path):
    runs = {"truth": [run(1), run(4)], "dark": [run(2), run(4)], "short": [run(3, buckets=1)]}
    draw_fronts(runs, tmp_path / "a" / "fronts.png")
    with Image.open(tmp_path / "a" / "fronts.png") as opened:
        drawn = np.asarray(opened.convert("RGB"))
    columns = {v: ((drawn == v).all(-1).sum(0) > 20).astype(int) for v in (50, 100, 150)}
    images = {v: int((np.diff(found) == 1).sum()) for v, found in columns.items()}  # side by side
    assert images == {50: 2, 100: 2, 150: 1}


def test_time_side_by_side_is_that_of_what_others_wait_for_and_of_the_longest_of_the_rest(monkeypatch):
    now = iter([0.0, 5.0, 6.0, 8.0, 12.0, 13.0])
    monkeypatch.setattr(systems_run.time, "perf_counter", lambda: next(now))
    watch = Stopwatch()
    for waited_for in (True, False, False, True, False):  # key frames, two gaps, key frames, a gap
        watch.chunk(waited_for=waited_for)
    assert (watch.seconds, watch.seconds_side_by_side) == (13.0, 5.0 + 4.0 + 2.0)


def test_the_truth_itself_is_at_no_distance_and_finds_what_truth_finds():
    truth = [run(seed) for seed in range(4)]
    lines = systems_table({"truth": truth, "same": truth}, [])
    for time in ("0-10 s", "10-20 s"):
        row = cells(lines, "same", time)
        assert row[2] == "4"
        assert [float(value.split()[0]) for value in row[3:5]] == [0.0, 0.0]
        assert (row[5], row[6]) == ("21.00", "1.00")
    assert cells(lines, "same", "0-10 s")[7:] == ["", "", ""]
    assert cells(lines, "same", "10-20 s")[7:] == ["0.05", "0.05", "5"]
    assert not any(line.startswith("| truth") for line in lines)
    assert sum("true halves" in line for line in lines) == 2


def test_a_shift_of_all_features_is_its_squared_length_and_half_the_boxes_half_the_map():
    truth, moved = [run(seed) for seed in range(4)], [run(seed, shift=0.5, found=2) for seed in range(4)]
    row = cells(systems_table({"truth": truth, "moved": moved}, []), "moved", "10-20 s")
    assert float(row[3].split()[0]) == pytest.approx(4 * 0.25, abs=1e-4)
    assert float(row[4].split()[0]) == pytest.approx(3 * 0.25, abs=1e-4)
    assert 0.4 < float(row[6]) < 0.55  # two of four boxes, by the devkit's integral


def test_video_that_only_changes_more_is_at_a_distance_in_change_alone():
    truth = [run(seed) for seed in range(4)]
    restless = [
        replace(r, buckets=tuple(replace(b, video_features=b.video_features + np.array([0, 0, 0.5, 0.5])) for b in r.buckets))
        for r in truth
    ]
    lines = systems_table({"truth": truth, "restless": restless}, [])
    change = np.concatenate([r.buckets[1].video_features[:, 2:] for r in truth]).mean()
    assert f"| restless | 10-20 s | 0.000 | 0.500 | x {(change + 0.5) / change:.2f} |" in lines
    assert not any(line.startswith("| restless | 0-10 s | 0.000 | 0.5") for line in lines)


def test_one_clip_has_figures_without_intervals():
    row = cells(systems_table({"truth": [run(1)], "moved": [run(1, found=2)]}, []), "moved", "10-20 s")
    assert (row[2], row[5]) == ("1", "21.00")
    assert 0.4 < float(row[6]) < 0.55


def test_a_comparison_divides_distances_and_times():
    truth = [run(seed) for seed in range(4)]
    near, far = ([run(s, shift=d, seconds=t, beside=b) for s in range(4)] for d, t, b in ((0.3, 6.0, 1.5), (0.6, 12.0, 12.0)))
    lines = systems_table({"truth": truth, "near": near, "far": far}, [("near", "far")])
    assert lines[-3] == (
        "| variant | against | FVD-pg, 0-10 s | FVD-pg, 10-20 s | time a frame | its independent windows side by side |"
    )
    assert lines[-1] == "| near | far | x 0.25 (0.25 to 0.25) | x 0.25 (0.25 to 0.25) | x 0.50 | x 0.12 |"


def test_a_comparison_ends_where_the_shorter_variant_does():
    truth, long = [run(seed) for seed in range(2)], [run(seed, shift=0.6) for seed in range(2)]
    short = [replace(made, buckets=made.buckets[:1]) for made in long]
    row = systems_table({"truth": truth, "long": long, "short": short}, [("short", "long")])[-1]
    assert [cell.strip() for cell in row.split("|")[3:5]] == ["x 1.00", ""]


def test_a_variant_of_fewer_clips_is_held_against_the_first_true_ones():
    truth, all_far = ([run(seed, shift=shift) for seed in range(4)] for shift in (0.0, 1.0))
    runs = {"truth": truth, "all": all_far, "few": [run(s, shift=0.5) for s in range(2)]}
    lines = systems_table(runs, [("few", "all")])
    row = cells(lines, "few", "10-20 s")
    assert (row[2], float(row[3].split()[0])) == ("2", pytest.approx(4 * 0.25, abs=1e-4))
    assert lines[-1].startswith("| few | all | x 0.25 (0.25 to 0.25) |")


def test_a_variants_settings_lie_over_the_files():
    config = SystemsConfig(rollout={"window_frames": 12, "steps": 2}, variants=[])
    rollout = rollout_of(config, Variant(name="a", rollout={"steps": 5}), Path("x.yaml"))
    assert (rollout.window_frames, rollout.steps, rollout.strategy) == (12, 5, "recurrent")
    with pytest.raises(InputError, match=r"x\.yaml: variant 'a': Key 'stepps' not in 'RolloutConfig'.*; see the fields"):
        rollout_of(config, Variant(name="a", rollout={"stepps": 5}), Path("x.yaml"))


@pytest.mark.parametrize(
    ("text", "duration_s", "message"),
    [
        ("variants: [{name: a}, {name: a}]", 10.0, "give each a name of its own"),
        ("variants: [{name: truth}]", 10.0, "other than 'truth'"),
        ("variants: [{name: a}]\ncomparisons: [[a, b]]", 10.0, r"comparison \['a', 'b'\]; name two of a"),
        ("variants: [{name: a, fine_model: gone.safetensors}]", 10.0, r"gone\.safetensors: no such weights file"),
        ("variants: [{name: a}]", 8.0, "give 10 or more"),
        ("variants: [{name: a}]\nscored_s: 0.3", 10.0, r"scored_s 0\.3; give 0\.67 to 10"),
    ],
)
def test_files_that_compare_nothing_are_refused_before_anything_is_loaded(tmp_path, text, duration_s, message):
    path = tmp_path / "systems.yaml"
    path.write_text(text)
    nothing = tmp_path / "nowhere"
    with pytest.raises(InputError, match=message):
        bench_systems(nothing, "v1.0-mini", nothing, nothing, nothing, nothing, 1, duration_s, path, None)


@pytest.mark.parametrize("path", sorted(Path("conf/bench").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_files_that_ship_say_what_exists(path: Path):
    config = load_config(SystemsConfig, path)
    for variant in config.variants:
        assert rollout_of(config, variant, path).strategy in STRATEGIES
        assert all(not name or Path(name).is_file() for name in (variant.world_model, variant.fine_model))
    names = {variant.name for variant in config.variants}
    assert len(names) == len(config.variants) and {name for pair in config.comparisons for name in pair} <= names


def test_all_strategies_are_compared():
    path = Path("conf/bench/systems.yaml")
    config = load_config(SystemsConfig, path)
    assert {rollout_of(config, variant, path).strategy for variant in config.variants} == set(STRATEGIES)


def test_processes_share_the_clips_and_the_table_is_that_of_one(pg_dataroot: Path, tmp_path: Path):
    models = write_models(tmp_path / "models")
    (tmp_path / "systems.yaml").write_text(
        "scored_s: 1.0\nrollout: {window_frames: 24, memory: none, appearance: false}\nvariants:\n"
        "  - {name: recurrent}\n  - {name: once, cases: 1}\n  - {name: hierarchical, rollout: {strategy: hierarchical, anchor_fps: 1.0}}\n"
        "comparisons: [[hierarchical, recurrent]]\n"
    )
    files = [models / f"{name}.safetensors" for name in ("codec", "world")]

    def table(cases: int, processes: int) -> list[str]:
        things = Path("weights/proving_ground_things.safetensors")
        order = (pg_dataroot, VERSION, *files, things, models / "detector.safetensors", cases, 10.0)
        return bench_systems(*order, tmp_path / "systems.yaml", tmp_path / "out", processes).splitlines()

    two = table(2, 2)
    made = sorted((tmp_path / "out").rglob("*.npz"))
    assert [path.parent.name for path in made] == ["hierarchical"] * 2 + ["once"] + ["recurrent"] * 2 + ["truth"] * 2
    assert table(2, 1)[1:] == two[1:]  # nothing is made again
    assert sorted((tmp_path / "out").rglob("*.npz")) == made
    assert cells(two, "recurrent", "0-10 s")[2] == "2"
    assert int(cells(two, "hierarchical", "0-10 s")[-1]) == 1 + 10  # key frames, then ten gaps
    assert int(cells(two, "recurrent", "0-10 s")[-1]) == 6  # of 120 frames, 23 new ones at a time
