"""What a user sees for bad input: one line with the file and the fix, an exit code, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dwm.errors import InputError
from evaluators.gate import GateConfig
from pipelines import cli
from pipelines.config import PerturbationConfig
from pipelines.dataset import Dataset
from pipelines.worker import _gate_config
from tests.pipelines.tiny_models import VERSION, tiny_run, write_models, write_yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A copy of the world and of the models to damage, and the run that reads them."""

    world: Path
    models: Path
    config: Path
    out: Path

    def generate(self, *overrides: str) -> int:
        return cli.main(["generate", str(self.config), *overrides])

    def edit(self, table: str, change: Callable[[list[dict]], object]) -> None:
        path = self.world / VERSION / f"{table}.json"
        rows = json.loads(path.read_text())
        change(rows)
        path.write_text(json.dumps(rows))

    def start_image(self) -> Path:
        """The CAM_BACK image the clip starts from."""
        scene = next(r for r in self._rows("scene") if r["name"] == "scene-0001")
        found = [r for r in self._rows("sample_data") if r["sample_token"] == scene["first_sample_token"] and r["is_key_frame"]]
        return next(self.world / r["filename"] for r in found if "/CAM_BACK/" in r["filename"])

    def _rows(self, table: str) -> list[dict]:
        return json.loads((self.world / VERSION / f"{table}.json").read_text())

    def nothing_made(self) -> bool:
        """No commit, no version, no file of an attempt."""
        made = [p for name in ("commits", "versions", "data") for p in (self.out / name).rglob("*")]
        return made == [] and not list(self.out.rglob("*.tmp")) and not list(self.out.rglob("*.part"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def case(pg_dataroot: Path, models: Path, tmp_path: Path) -> Case:
    world, own = tmp_path / "world", tmp_path / "models"
    shutil.copytree(pg_dataroot, world, ignore=shutil.ignore_patterns("LIDAR_TOP"))
    shutil.copytree(models, own)
    config = tiny_run(world, own, tmp_path / "run", duration_s=0.25, perturbations=[PerturbationConfig()], scored=False)
    return Case(world=world, models=own, config=write_yaml(config, tmp_path / "run.yaml"), out=tmp_path / "run")


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    captured = capsys.readouterr()
    assert captured.err.startswith("roadreel: error: ")
    assert captured.err.count("\n") == 1, captured.err
    return captured.err.strip()


@pytest.mark.parametrize(
    ("override", "where", "problem", "fix"),
    [
        ("scenes.dataroot=nowhere", "nowhere", "no such dataroot", "set scenes.dataroot"),
        ("scenes.version=v1.0-test", "v1.0-test/scene.json", "the table is missing", "versions found: v1.0-mini"),
        ("scenes.names=[scene-0099]", "scene.json", "no scene named scene-0099", "use one of its scenes: scene-0001"),
        ("scenario.lenght_s=3", "run.yaml", "'lenght_s'", "see the fields of RunConfig"),
        ("scenario.duration_s=long", "run.yaml", "'long'", "see the fields of RunConfig"),
        ("scenario.duration_s=0", "configuration", "scenario.duration_s is 0.0", "give a length in seconds"),
        ("scenario.duration_s=0.03", "configuration", "shorter than a frame", "at least one frame: 0.083 s at 12 fps"),
        ("scenario.duration_s=inf", "configuration", "scenario.duration_s is inf", "give a finite number"),
        ("rollout.steps=0", "configuration", "rollout.steps is 0", "use at least 1"),
        ("rollout.window_frames=1", "configuration", "1 of a window of 1", "keep at least one frame given"),
        ("rollout.logged_frames=0", "configuration", "rollout.logged_frames is 0", "use at least 1"),
        ("rollout.logged_frames=3", "configuration", "is 3 of a video of 3 frames", "leave at least one to generate"),
        ("rollout.gaps_at_once=0", "configuration", "rollout.gaps_at_once is 0", "use at least 1"),
        ("rollout.anchor_fps=0", "configuration", "rollout.anchor_fps is 0.0", "give a positive rate"),
        ("rollout.anchor_error=0.6", "configuration", "rollout.anchor_error is 0.6", "keep 0 <= anchor_error < anchor_noise"),
        ("rollout.progressive_omega=2", "configuration", "rollout.progressive_omega is 2.0", "use 0 (off) to pi/2"),
        ("model.fine_model=nowhere.safetensors", "nowhere.safetensors", "no such weight file", "set model.fine_model"),
        ("evaluate.every_s=0", "configuration", "evaluate.every_s is 0.0", "give seconds"),
        ("video.preset=quick", "configuration", "video.preset is 'quick'", "use one of ultrafast"),
        ("model.codec=nowhere.safetensors", "nowhere.safetensors", "no such weight file", "set model.codec"),
    ],
)
def test_a_wrong_setting_is_one_line_and_leaves_no_run_folder(case: Case, capsys, override, where, problem, fix):
    assert case.generate(override) == 2
    line = _error(capsys)
    assert [part for part in (where, problem, fix) if part not in line] == []
    assert not case.out.exists()


def test_an_out_folder_that_cannot_be_made_is_one_line(case: Case, capsys):
    case.out.write_text("a file")
    assert case.generate(f"out={case.out}/below") == 2
    assert f"{case.out}" in _error(capsys)
    assert case.out.read_text() == "a file"


def test_a_missing_table_is_named_before_anything_is_written(case: Case, capsys):
    (case.world / VERSION / "sample_annotation.json").unlink()
    assert case.generate() == 2
    assert f"{case.world / VERSION}: table sample_annotation.json is missing; unpack" in _error(capsys)
    assert not case.out.exists()


def _damage_tensor(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> str:
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    key = max(tensors, key=lambda k: tensors[k].numel())
    save_file({**tensors, key: change(tensors[key].clone()).contiguous()}, path, metadata=metadata)
    return key


@pytest.mark.parametrize("part", ["codec", "world", "detector"])
def test_weights_that_are_not_finite_or_do_not_fit_are_named_with_their_tensor(case: Case, capsys, part: str):
    path, use = case.models / f"{part}.safetensors", f"evaluate.detector={case.models / 'detector.safetensors'}"
    key = _damage_tensor(path, lambda tensor: tensor.index_fill_(0, torch.tensor([0]), float("nan")))
    assert case.generate(use) == 2
    line = _error(capsys)
    assert f"{path}: tensor '{key}' holds NaN" in line
    assert case.nothing_made()
    _damage_tensor(path, lambda tensor: tensor[:-1].nan_to_num())
    assert case.generate(use) == 2
    line = _error(capsys)
    assert f"{path}: tensor '{key}' has" in line and "shape" in line
    assert case.nothing_made()


def test_weights_cut_short_are_no_weights(case: Case, capsys):
    path = case.models / "world.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert case.generate() == 2
    assert f"{path}: not a readable safetensors file" in _error(capsys)
    assert case.nothing_made()


def _truncated_jpeg(case: Case) -> str:
    path = case.start_image()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return f"{path}: cannot decode the image"


def _missing_jpeg(case: Case) -> str:
    path = case.start_image()
    path.unlink()
    return f"{path}: the image to start from is missing"


def _escaping_filename(case: Case) -> str:
    case.edit(
        "sample_data", lambda rows: [row.update(filename="../secret.jpg") for row in rows if "CAM_BACK/" in row["filename"]]
    )
    return "filename '../secret.jpg' does not lie inside the dataroot; correct the table"


def _table_of_another_kind(case: Case) -> str:
    (case.world / VERSION / "ego_pose.json").write_text('{"not": "rows"}')
    return "ego_pose.json: not a list of records with a token each; restore the file"


def _late_start(case: Case) -> str:
    text = case.config.read_text()
    case.config.write_text(text.replace("start_s: 0.0", "start_s: 7.5"))
    return "start_s: 7.5 s is not within the log of 1.0 s; start between 0 and 1.0 s"


def _set(table: str, **fields) -> Callable[[Case], str]:
    def damage(case: Case) -> str:
        case.edit(table, lambda rows: [row.update(fields) for row in rows])
        (name,) = fields
        return f"{case.world / VERSION}: scene scene-0001: broken tables (ValueError: {name} of "

    return damage


_BROKEN_ROWS = [
    _set("ego_pose", translation=[float("nan")] * 3), _set("calibrated_sensor", rotation=[0, 0, 0, 0]),
    _set("calibrated_sensor", camera_intrinsic=[]), _set("sample_annotation", translation=[1.0]),
    _set("sample_annotation", size=[-1.0, 2.0, 3.0]),
]  # fmt: skip


@pytest.mark.parametrize(
    "damage", [_truncated_jpeg, _missing_jpeg, _escaping_filename, _table_of_another_kind, _late_start, *_BROKEN_ROWS]
)
def test_bad_input_found_inside_a_worker_is_told_once_for_each_shard(case: Case, capsys, damage: Callable[[Case], str]):
    message = damage(case)
    assert case.generate() == 3
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("roadreel: error: shard ") and message in first
    assert "Traceback" not in first
    assert last.startswith("roadreel: 1 shards are quarantined; mend the cause") and str(case.out / "quarantine") in last
    assert case.nothing_made()
    attempts = [json.loads(line)["name"] for line in (case.out / "events.jsonl").read_text().splitlines()]
    assert attempts.count("attempt_started") == 1  # the same input fails the same way


def test_a_mended_shard_runs_once_its_quarantine_is_lifted(case: Case, capsys):
    path = case.start_image()
    whole = path.read_bytes()
    _truncated_jpeg(case)
    assert case.generate() == 3
    path.write_bytes(whole)
    assert case.generate() == 3  # a quarantine holds until a person lifts it
    assert "cannot decode the image" in capsys.readouterr().err
    next((case.out / "quarantine").iterdir()).unlink()
    assert case.generate() == 0
    assert Dataset.open(case.out).clips().num_rows == 1


@pytest.mark.parametrize("where", ["data", "commits", "versions", "report.html"])
def test_a_full_disk_stops_the_run_and_the_same_command_finishes_it(case: Case, capsys, monkeypatch, where: str):
    """Every file of a run is flushed: the disk is full for those below one folder, or of one name."""
    original = os.fsync

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if f"/{where}/" in path or f"/.{where}." in path:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert case.generate() == 2
    line = _error(capsys)
    assert str(case.out) in line and "no space left; free space or choose another out folder" in line
    assert case.nothing_made() or where in ("versions", "report.html")
    assert not list(case.out.rglob("*.tmp")) and not list(case.out.rglob("report.html"))
    assert case.generate() == 0
    assert Dataset.open(case.out).clips().num_rows == 1
    assert [p.name for p in case.out.rglob("report.html")] == ["report.html"]


def test_limits_of_the_gate_are_known_and_null_only_where_that_means_none() -> None:
    assert _gate_config({"min_flicker": None, "max_unlabelled": 0.5}) == GateConfig(min_flicker=None, max_unlabelled=0.5)
    with pytest.raises(InputError, match="unknown threshold 'min_flickr'"):
        _gate_config({"min_flickr": 0.5})
    with pytest.raises(InputError, match="min_reference_boxes is null"):
        _gate_config({"min_reference_boxes": None})
