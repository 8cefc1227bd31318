from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dwm.config import to_yaml
from dwm.errors import InputError
from pipelines import cli
from pipelines import generate as generating
from pipelines.config import PerturbationConfig, ScenarioConfig
from pipelines.dataset import Dataset
from pipelines.generate import INTERRUPTED, QUARANTINED, generate
from pipelines.plan import make_plan
from tests.pipelines.pipeline_factories import ClipWorker, sample_shift, tiny_config


@pytest.fixture(autouse=True)
def own_perturbations(monkeypatch):
    """Plans that do not depend on the catalogue of perturbations."""
    monkeypatch.setattr(
        generating,
        "make_plan",
        lambda config, scenes, weights, **more: make_plan(config, scenes, weights, sample_shift, **more),
    )


def _report(version: Path) -> Path:
    (version / "report.html").write_text("report")
    return version / "report.html"


def _generate(config, worker=ClipWorker):
    return generate(config, make_worker=lambda config_yaml: worker(), write_report=_report)


def test_one_command_plans_runs_publishes_and_reports_and_again_finds_nothing_to_do(tmp_path: Path):
    config = tiny_config(tmp_path, n_seeds=1)
    first = _generate(config)
    assert (first.exit_code, first.planned, first.summary.committed) == (0, 2, 2)
    assert first.report == first.version / "report.html"
    baseline, shifted = sorted(Dataset.open(config.out).clips().to_pylist(), key=lambda row: row["perturbation"])
    assert shifted["baseline_clip_id"] == baseline["clip_id"]
    again = _generate(config, pytest.fail)
    assert (again.exit_code, again.summary.committed, again.version) == (0, 0, first.version)
    events = [json.loads(line)["name"] for line in (Path(config.out) / "events.jsonl").read_text().splitlines()]
    assert events[:3] == ["run_started", "worker_started", "attempt_started"]
    assert events.count("committed") == 2
    progress = json.loads((Path(config.out) / "progress.json").read_text())
    assert (progress["shards_total"], progress["shards_done"], progress["running"]) == (2, 2, [])


def test_quarantined_shards_show_in_the_exit_code_and_the_rest_is_published(tmp_path: Path):
    class Failing(ClipWorker):
        def run(self, shard, attempt_dir):
            if shard.perturbation.name == "shift":
                raise InputError("x.jpg", "truncated", "copy it again")
            return super().run(shard, attempt_dir)

    result = _generate(tiny_config(tmp_path, n_seeds=1), Failing)
    assert (result.exit_code, result.summary.quarantined) == (QUARANTINED, 1)
    assert Dataset.open(result.version).clips().num_rows == 1
    assert Dataset.open(result.version).info["shards"]["quarantined"] == 1


def test_an_interrupted_run_asks_to_be_run_again_and_publishes_nothing_yet(tmp_path: Path):
    class Terminated(ClipWorker):
        def run(self, shard, attempt_dir):
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
            return super().run(shard, attempt_dir)

    config = tiny_config(tmp_path, n_seeds=1)
    result = _generate(config, Terminated)
    assert (result.exit_code, result.summary.remaining, result.version) == (INTERRUPTED, 1, None)
    assert _generate(config).summary.committed == 1


def test_a_worker_that_cannot_be_built_stops_the_run_with_its_message(tmp_path: Path):
    def broken():
        raise InputError("codec.safetensors", "NaN in decoder.weight", "train it again")

    with pytest.raises(InputError, match=r"NaN in decoder\.weight"):
        _generate(tiny_config(tmp_path), broken)


def test_plan_prints_every_shard_and_writes_nothing(tmp_path: Path, capsys):
    config = dataclasses.replace(
        tiny_config(tmp_path), scenario=ScenarioConfig(duration_s=60, perturbations=[PerturbationConfig()], seeds=[0, 1])
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["plan", str(tmp_path / "run.yaml"), "execution.seconds_per_frame=0.5", "execution.workers=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:5] for line in lines[:2]] == [["6.0", "min", "720", "frames"]] * 2
    assert lines[2] == "2 shards, 0.20 worker hours, 0.10 hours on 2 workers"
    assert sorted(tmp_path.rglob("*")) == before


def test_validate_exits_with_one_when_it_finds_something(tmp_path: Path, capsys):
    config = tiny_config(tmp_path, n_seeds=1)
    _generate(config)
    assert cli.main(["validate", config.out, "--level", "2"]) == 0
    assert capsys.readouterr().out == "0 findings at level 2\n"
    next(Path(config.out, "data").rglob("CAM_BACK.mp4")).unlink()
    assert cli.main(["validate", config.out]) == 1
    assert "L0 missing: data/" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "nowhere.yaml"], "nowhere.yaml: no such configuration file; give the path of a YAML file"),
        (["validate", "nowhere"], "nowhere: no such folder; give a dataset made by `roadreel generate`"),
        (["export", "x", "--format", "lerobot"], "roadreel export: not part of this version"),
        (["world", "build", "--out", "x", "--scenes", "0"], "--scenes: 0 scenes; give 1 or more"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_two(capsys, arguments: list[str], message: str):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"roadreel: error: {message}")
    assert captured.err.count("\n") == 1


def test_help_and_configuration_errors_import_neither_torch_nor_ray_nor_arrow():
    code = (
        "import sys; from pipelines import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'numpy', 'av'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout


def test_a_reader_that_has_seen_enough_gets_no_traceback():
    command = [sys.executable, "-m", "pipelines.cli", "plan", "conf/train/mila/stage1.yaml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 141)
