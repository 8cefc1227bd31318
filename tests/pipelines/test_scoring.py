"""A version read back for VAD: path, agents and map as the scenario had them, true video beside the generated, one table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dwm.errors import InputError
from dwm.models.weights import save_model
from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.proving_ground.counterfactual import open_counterfactual
from evaluators.boxes import Boxes, boxes_of_agents
from evaluators.counterfactual import psnr_db
from evaluators.drive import Drive
from evaluators.frechet import frechet_distance, moments
from evaluators.map_truth import map_lines, open_map
from evaluators.mapping import evaluate_map_lines
from evaluators.vad.model import VAD
from pipelines.cli import main
from pipelines.clip_drive import read_clip_drive, tracks_of
from pipelines.config import PerturbationConfig
from pipelines.dataset import Dataset
from pipelines.detection_scoring import score_detections
from pipelines.generate import generate
from pipelines.scoring import clip_stretches, clips_with_video, score_version
from pipelines.validate import validate
from tests.evaluators.tiny_networks import TinyInception, saved
from tests.evaluators.vad.vad_factories import TINY
from tests.pipelines.test_detecting import Knows
from tests.pipelines.tiny_models import VERSION, tiny_run, write_models

SECONDS, KEY_FRAMES = 2.0, (0, 6, 12, 18)


@pytest.fixture(scope="module")
def folder(pg_dataroot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scoring")
    models = write_models(folder / "models")
    moves = [
        PerturbationConfig(),
        PerturbationConfig(name="lateral_offset", params={"offset_m": 0.3, "onset_s": 0.0, "ramp_s": 1.0}),
    ]
    config = tiny_run(pg_dataroot, models, folder / "run", duration_s=SECONDS, perturbations=moves, scored=True)
    generate(replace(config, gate={"min_reconstruction_db": 99.0}))  # nothing passes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(VAD(replace(TINY, steps=6)), folder / "vad.safetensors", {})
    return folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return Dataset.open(folder / "run")


@pytest.fixture(scope="module")
def scenario(pg_dataroot: Path) -> Scenario:
    made = build_scenario(read_scene(pg_dataroot, VERSION, "scene-0001"), BASELINE, 0, duration_s=SECONDS)
    assert isinstance(made, Scenario)
    return made


def baseline(dataset: Dataset) -> str:
    return next(row["clip_id"] for row in dataset.clips().to_pylist() if row["is_source"])


def test_a_clip_is_read_back_as_the_scenario_had_it(dataset: Dataset, scenario: Scenario):
    clip, true = read_clip_drive(dataset, baseline(dataset)), Drive.of(scenario)
    assert clip.frames == KEY_FRAMES and len(clip.drive) == len(KEY_FRAMES)
    np.testing.assert_allclose(clip.drive.ego_to_global, true.ego_to_global[list(KEY_FRAMES)], atol=1e-9)
    np.testing.assert_allclose(clip.drive.lidar_to_ego, true.lidar_to_ego, atol=1e-12)
    for own, camera in zip(clip.drive.cameras, true.cameras, strict=True):
        resized = camera.resized(own.width_px, own.height_px)
        np.testing.assert_allclose(own.intrinsics, resized.intrinsics)
        np.testing.assert_allclose(own.camera_to_ego, camera.camera_to_ego)
    known = {token: a for a, token in enumerate(true.agents.instance_tokens)}
    assert len(clip.drive.agents.instance_tokens) > 5 and clip.seen.shape == (4, len(clip.drive.agents.instance_tokens))
    for k, frame in enumerate(KEY_FRAMES):
        rows = [known[token] for token in clip.drive.agents.instance_tokens]
        own = boxes_of_agents(clip.drive.agents, k, clip.drive.ego_to_global[k])
        at = np.array([a for a, there in zip(rows, clip.drive.agents.present[:, k], strict=True) if there])
        np.testing.assert_allclose(
            own.moved(clip.drive.ego_to_global[k]).centers_m, true.agents.centers_m[at, frame], atol=1e-9
        )
        np.testing.assert_allclose(own.sizes_wlh_m, true.agents.sizes_wlh_m[at])
        np.testing.assert_allclose(own.moved(clip.drive.ego_to_global[k]).yaws_rad, true.agents.yaws_rad[at, frame], atol=1e-9)


def test_its_map_is_that_of_the_map_expansion(dataset: Dataset, scenario: Scenario, pg_dataroot: Path):
    clip, nusc_map = read_clip_drive(dataset, baseline(dataset)), open_map(pg_dataroot, scenario.scene.location)
    poses = scenario.ego_to_global[list(KEY_FRAMES)] @ scenario.scene.lidar_to_ego
    true = {str(k): map_lines(nusc_map, pose) for k, pose in enumerate(poses)}
    report = evaluate_map_lines(true, {str(k): clip.lines_at(k) for k in range(len(KEY_FRAMES))})
    assert sum(map(len, true.values())) > 10
    for k, lines in enumerate(clip_stretches(dataset, baseline(dataset), pg_dataroot)["rgb"].lines):
        assert [line.class_name for line in lines] == [line.class_name for line in true[str(k)]]
        for line, own in zip(lines, true[str(k)], strict=True):
            np.testing.assert_allclose(line.points_m, own.points_m, atol=1e-6)
    assert report.mean_recall_with_truth > 0.99 and all(score.ap > 0.99 for score in report.scores if score.truths)


def test_true_video_is_stored_at_the_scored_frames(dataset: Dataset, scenario: Scenario, folder: Path):
    rows = dataset.rows("videos", baseline(dataset), stream="truth")
    assert len(rows) == 6 and {(r["first_frame"], r["frame_step"], r["n_frames"], r["fps"]) for r in rows} == {(0, 6, 4, 2.0)}
    assert validate(folder / "run", level=2) == []
    world = open_counterfactual(scenario.scene)
    assert world is not None
    stretches = clip_stretches(dataset, baseline(dataset))
    assert set(stretches) == {"truth", "rgb"} and stretches["rgb"].given == stretches["truth"].given == 1
    rendered = np.stack([world.views(scenario, frame, (128, 224)).image for frame in KEY_FRAMES])
    assert psnr_db(stretches["truth"].images, rendered).min() > 28
    assert psnr_db(stretches["rgb"].images[1:], rendered[1:]).max() < 28  # an untrained model's


def test_true_video_that_leaves_key_frames_out_is_left_out(dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch):
    stored = Dataset.rows

    def sparse(self, table, *args, **filters):
        rows = stored(self, table, *args, **filters)
        return [{**row, "frame_step": 12, "n_frames": 2} if row.get("stream") == "truth" else row for row in rows]

    monkeypatch.setattr(Dataset, "rows", sparse)
    stretches = clip_stretches(dataset, baseline(dataset))
    assert stretches.keys() == {"rgb"} and len(stretches["rgb"]) == len(KEY_FRAMES)
    assert "no true video at every key frame" in score_version(folder / "run", folder / "vad.safetensors", "", rejected=True)


def test_score_prints_both_tables_for_every_kind_of_video(folder: Path, pg_dataroot: Path, capsys: pytest.CaptureFixture[str]):
    weights = str(folder / "vad.safetensors")
    assert main(["score", str(folder / "run"), "--vad", weights, "--rejected", "--dataroot", str(pg_dataroot)]) == 0
    out = capsys.readouterr().out
    assert "2 clips, key frames of 2 Hz, six cameras" in out
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    assert table[0] == ["video", "clips", "key frames", "mAP_OD", "NDS", "mAP_Line", "Recall_Line"]
    assert [row[:2] for row in table[1:4]] == [["the log's images", "1"], ["true video", "2"], ["generated", "2"]]
    assert [row[2] for row in table[2:4]] == ["6", "6"]
    assert all(0 <= float(cell.split("(")[0]) <= 1 for row in table[1:4] for cell in row[3:])
    assert len(table) == (1 + 3) + (1 + 3 * 3) + (1 + 3 * 2) + (1 + 3 * 2)
    assert "Ego box: ST-P3/UniAD/VAD: 1.85 x 4.084 m, 0.5 m ahead; obstacles: vehicles and humans that VAD's labels hold" in out


def test_quality_prints_frechet_distances_between_generated_and_true_video(
    folder: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
):
    inception = saved(TinyInception(), folder / "inception.pt").path
    options = ["--rejected", "--resamples", "20", "--detector", str(folder / "models" / "detector.safetensors")]
    assert main(["quality", str(folder / "run"), "--inception", inception, *options]) == 0
    out = capsys.readouterr().out
    assert "2 clips, generated against true video at the frames that both show\n" in out
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| F")]
    assert [row[:4] for row in table] == [
        [metric, time, "2", "36, 36"] for metric in ("FID-pg", "FID") for time in ("at any time", "at 0-10 s")
    ]
    assert "- no FVD-pg: a sample takes 8 successive frames, 3 of a clip count" in out
    assert "- FID: 2 clips of 3 frames at 2 Hz; 6 cameras, 128x224 px" in out
    # Mean colours of images, after the given frame.
    clips = [clip_stretches(dataset, clip) for clip in clips_with_video(dataset, rejected=True)[0]]
    true, made = (
        moments(np.concatenate([c[stream].images[1:].mean((2, 3)).reshape(-1, 3) for c in clips]))
        for stream in ("truth", "rgb")
    )
    assert float(table[2][4].split(" ")[0]) == pytest.approx(frechet_distance(true, made), rel=1e-3)


def test_a_detector_that_knows_the_truth_scores_full_marks_on_both_kinds_of_video_and_one_that_is_blind_none(
    folder: Path, dataset: Dataset, pg_dataroot: Path
):
    clips, scenes = clips_with_video(dataset, rejected=True)
    assert scenes == [(VERSION, "scene-0001")]
    stretches = [stretch for clip in clips for stretch in clip_stretches(dataset, clip).values()]
    truth = [s.drive.seen_boxes(s.frames[k], s.seen[k])[0] for s in stretches for k in range(s.given, len(s))]
    assert min(map(len, truth)) > 0
    rows = {
        c[1].strip(): c[2:-1]
        for line in score_detections(folder / "run", Knows(truth), rejected=True).splitlines()
        if len(c := line.split("|")) > 2
    }
    for video in ("true video", "generated"):
        assert [cell.strip() for cell in rows[video][:2]] == ["2", "6"]
        assert rows[video][-1].strip() == "1.000"
    blind = Knows([Boxes.empty()] * 100)
    table = score_detections(folder / "run", blind, rejected=True, dataroot=pg_dataroot).splitlines()
    assert table[4].startswith("| the log's images | 1 | 3 | 0.000 | ") and " | 0.000 | " in table[5]
    assert blind.shown[0][0][0].shape == (32, 56, 3) and blind.shown[-1][0][0].shape == (128, 224, 3)


def test_versions_without_video_or_without_a_lidar_are_refused(
    folder: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch
):
    assert main(["score", str(folder / "run"), "--vad", str(folder / "vad.safetensors")]) == 2
    assert "no clip passed the gate" in capsys.readouterr().err
    with pytest.raises(InputError, match="there is no clip 'nobody'"):
        read_clip_drive(dataset, "nobody")
    older = dataset.clips().drop_columns(["lidar_to_ego"])
    monkeypatch.setattr(dataset, "table", lambda *_: older)
    with pytest.raises(InputError, match="does not say where the LiDAR is"):
        read_clip_drive(dataset, baseline(dataset))


def test_an_agent_that_no_camera_shows_is_not_seen(dataset: Dataset):
    rows = dataset.rows("boxes", baseline(dataset))
    label = next(row for row in rows if row["label_source"] == "log")
    hidden = [label | {"instance_token": name} | fact for name, fact in (
        ("plain", {"truncation": 0.0, "occlusion": 0.4}), ("outside", {"truncation": 1.0, "occlusion": None}),
        ("behind", {"truncation": 0.0, "occlusion": 1.0}),
    )]  # fmt: skip
    agents, seen = tracks_of(hidden, KEY_FRAMES)
    assert agents.instance_tokens == ("behind", "outside", "plain")
    assert seen.tolist() == [[False, False, True], *[[False] * 3] * 3]
