"""Frames that lead a clip: which pictures of the log they are, where there are none, and a clip that starts from four."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dwm.conditioning.build import ScenarioConditioner
from dwm.conditioning.relight import given_frames
from dwm.errors import InputError
from dwm.geometry import transform_from_xy_yaw
from dwm.models.dit import IMAGE_HW
from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Perturbation, Rejection, Scenario
from dwm.scenes.clips import read_images, read_video_frames
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.types import CAMERAS, CameraFrame
from evaluators.counterfactual import psnr_db
from evaluators.flicker import adjacent_change, sharpness
from pipelines.config import PerturbationConfig
from pipelines.dataset import Dataset
from pipelines.generate import generate
from pipelines.logged_frames import leading_images, leading_indices, led_by_log
from tests.factories import START_US, make_scene
from tests.pipelines.tiny_models import VERSION, tiny_run, write_models

LOGGED, FRAMES = 4, 12
# Turns off the logged path in its first frames.
SHIFT = PerturbationConfig(name="lateral_offset", params={"offset_m": 0.3, "onset_s": 0.0, "ramp_s": 1.0})
FOG = PerturbationConfig(name="fog", params={"visibility_m": 200.0})


def filmed(
    folder: Path, times_ms: Sequence[float], missing: Sequence[int] = (), *, frames: int = 12, fps: float = 12.0
) -> Scenario:
    """A drive as logged whose cameras took small pictures at some times; of those ``missing`` the files are gone."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i}.png" for i in range(len(times_ms))]
    for i, path in enumerate(paths):
        if i not in missing:
            Image.fromarray(np.full((4, 6, 3), 10 * i, np.uint8)).save(path)
    taken = tuple(
        CameraFrame(
            channel="", path=path, timestamp_us=START_US + round(1000 * time), ego_to_global=np.eye(4), sample_data_token=f"data-{i}",
            sample_token="", is_key_frame=i == 0,
        )
        for i, (path, time) in enumerate(zip(paths, times_ms, strict=True))
    )  # fmt: skip
    scene = dataclasses.replace(make_scene(), frames=dict.fromkeys(CAMERAS, taken))
    scenario = build_scenario(scene, BASELINE, 0, duration_s=frames / fps, fps=fps)
    assert isinstance(scenario, Scenario)
    return scenario


def test_frames_are_sought_at_the_videos_pace_from_a_cameras_own_first_picture_on(tmp_path: Path):
    # nuScenes' cameras fire 50 or 100 ms apart, and up to half a frame before a key frame.
    scenario = filmed(tmp_path, [-143, -43, 57, 107, 207, 257, 357])
    assert leading_indices(scenario, "CAM_BACK", 4) == [1, 2, 3, 4]
    images = leading_images(scenario, 4, (4, 6))
    assert images.shape == (4, 6, 4, 6, 3)
    np.testing.assert_array_equal(images[:, :, 0, 0, 0], np.repeat([[10], [20], [30], [40]], 6, axis=1))
    np.testing.assert_array_equal(leading_images(scenario, 1, (4, 6)), images[:1])
    # At twice the pace no picture would be left for every other frame.
    with pytest.raises(InputError, match=r"frame 1 of a clip of scene-0001 has no CAM_FRONT image"):
        leading_images(filmed(tmp_path, [0, 83, 167, 250], fps=24.0), 4, (4, 6))


def test_a_log_of_key_frames_alone_leads_with_one_frame_or_at_its_own_pace(tmp_path: Path):
    times = [0.0, 500.0, 1000.0, 1500.0]
    with pytest.raises(InputError) as error:
        leading_images(filmed(tmp_path, times), 4, (4, 6))
    assert str(error.value) == (
        f"{tmp_path}/0.png: frame 1 of a clip of scene-0001 has no CAM_FRONT image on disk: the nearest is 83 ms away, "
        "and half a frame is 42 ms; unpack the sweeps, or set rollout.logged_frames=1"
    )
    assert leading_images(filmed(tmp_path, times), 1, (4, 6)).shape == (1, 6, 4, 6, 3)
    assert leading_indices(filmed(tmp_path, times, fps=2.0), "CAM_FRONT", 4) == [0, 1, 2, 3]


def test_a_missing_file_is_named_and_another_picture_takes_its_place_where_it_is_near_enough(tmp_path: Path):
    times = [0.0, 83.0, 167.0, 250.0, 333.0]
    with pytest.raises(InputError, match=r"2\.png: frame 2 of .* the nearest is 83 ms away"):
        leading_images(filmed(tmp_path / "a", times, missing=[2]), 4, (4, 6))
    with pytest.raises(InputError, match=r"0\.png: the image to start from is missing \(4 of 5 CAM_FRONT images exist\)"):
        leading_images(filmed(tmp_path / "b", times, missing=[0]), 4, (4, 6))
    times.insert(3, 170.0)
    assert leading_indices(filmed(tmp_path / "c", times, missing=[2]), "CAM_FRONT", 4) == [0, 1, 3, 4]


@pytest.mark.parametrize("count", [0, 12, 13])
def test_a_video_has_frames_of_both_kinds(tmp_path: Path, count: int):
    with pytest.raises(InputError, match=f"rollout.logged_frames: {count} of a video of 12 frames"):
        leading_images(filmed(tmp_path, [0.0]), count, (4, 6))


@pytest.mark.parametrize(
    ("moved", "detail"),
    [
        (transform_from_xy_yaw(0.0, 0.049, np.radians(0.29)), ""),
        (transform_from_xy_yaw(0.0, 0.06, 0.0), "at frame 2 of 4 that are the log's pictures the ego is 0.06 m and 0.0 degrees off"),
        (transform_from_xy_yaw(0.0, 0.0, -np.radians(0.4)), "the ego is 0.00 m and 0.4 degrees off the logged path, more than 0.05 m or"),
    ],
)  # fmt: skip
def test_a_path_that_leaves_the_logs_in_a_leading_frame_is_a_rejection(moved, detail: str):
    scenario = build_scenario(make_scene(), BASELINE, 3, duration_s=2.0)
    assert isinstance(scenario, Scenario)
    ego = scenario.ego_to_global.copy()
    ego[2:] = ego[2:] @ moved
    asked = dataclasses.replace(scenario, ego_to_global=ego)
    assert led_by_log(asked, 1) is asked and led_by_log(asked, 2) is asked
    found = led_by_log(asked, 4)
    if not detail:
        assert found is asked
        return
    assert isinstance(found, Rejection)
    assert (found.scene, found.seed, found.reason) == ("scene-0001", 3, "leading_frames")
    assert detail in found.detail
    assert led_by_log(found, 4) is found


def test_beyond_the_log_nothing_leads():
    scenario = build_scenario(make_scene(key_frames=5), BASELINE, 0, duration_s=3.0, start_s=1.8)
    assert isinstance(scenario, Scenario) and scenario.log_end_index == 1
    found = led_by_log(scenario, 2)
    assert isinstance(found, Rejection)
    assert found.detail == "the log ends at frame 1 of the clip, and 2 frames are to be its pictures"
    assert led_by_log(scenario, 1) is scenario


@pytest.fixture(scope="module")
def run(pg_dataroot: Path, tmp_path_factory: pytest.TempPathFactory):
    """Clips of a second that start from four logged frames: as driven, aside (which cannot), and in fog."""
    folder = tmp_path_factory.mktemp("four_logged_frames")
    models = write_models(folder / "models")
    config = tiny_run(
        pg_dataroot, models, folder / "run", duration_s=1.0, perturbations=[PerturbationConfig(), SHIFT, FOG], scored=True
    )
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, logged_frames=LOGGED, condition_frames=2))
    return config, generate(config)


def video_of(dataset: Dataset, clip_id: str) -> NDArray[np.uint8]:
    """Decoded frames [T, V, H, W, 3]."""
    files = {v["channel"]: dataset.root / v["uri"] for v in dataset.rows("videos", clip_id, stream="rgb")}
    return np.stack([read_video_frames(files[channel], range(FRAMES)) for channel in CAMERAS], axis=1)


@pytest.fixture(scope="module")
def made(run, pg_dataroot: Path):
    """Of the clip as driven: the dataset, its row, its video, and the log's pictures of its frames with their tokens."""
    dataset = Dataset.open(run[0].out)
    clip = next(c for c in dataset.clips().to_pylist() if c["perturbation"] == "baseline")
    video = video_of(dataset, clip["clip_id"])
    scene = read_scene(pg_dataroot, VERSION, "scene-0001")
    scenario = build_scenario(scene, BASELINE, 0, duration_s=1.0)
    assert isinstance(scenario, Scenario)
    indices = [leading_indices(scenario, channel, FRAMES - 1) for channel in CAMERAS]
    tokens = [[scene.frames[c][i].sample_data_token for i in view[:LOGGED]] for c, view in zip(CAMERAS, indices, strict=True)]
    logged = np.stack([read_images(scene, c, i, IMAGE_HW) for c, i in zip(CAMERAS, indices, strict=True)], axis=1)
    return dataset, clip, video, logged, tokens


def test_the_video_starts_with_the_logs_pictures_and_goes_on_with_others(made):
    _, _, video, logged, _ = made
    alike = psnr_db(video[: FRAMES - 1], logged).min(1)
    assert alike[:LOGGED].min() > 30 > 25 > alike[LOGGED:].max()


def test_under_a_condition_it_starts_with_all_of_them_relit(run, pg_dataroot: Path):
    dataset = Dataset.open(run[0].out)
    clip = next(c for c in dataset.clips().to_pylist() if c["perturbation"] == "fog")
    asked = Perturbation(name="fog", params=FOG.params, severity=FOG.severity)
    scenario = build_scenario(read_scene(pg_dataroot, VERSION, "scene-0001"), asked, 0, duration_s=1.0)
    assert isinstance(scenario, Scenario)
    logged = leading_images(scenario, LOGGED, IMAGE_HW)
    relit, shown = given_frames(scenario, ScenarioConditioner(scenario), logged), video_of(dataset, clip["clip_id"])[:LOGGED]
    assert psnr_db(shown, relit).min() > 30
    assert psnr_db(shown, logged).mean(1).max() < 25


def test_the_rows_of_images_name_the_logs_picture_on_leading_frames_alone(made):
    dataset, clip, _, _, tokens = made
    rows = [r for r in dataset.table("camera_frames").to_pylist() if r["clip_id"] == clip["clip_id"]]
    for channel, expected in zip(CAMERAS, tokens, strict=True):
        own = sorted((r for r in rows if r["channel"] == channel), key=lambda r: r["frame_index"])
        assert [r["source_sample_data_token"] for r in own] == [*expected, *[None] * (FRAMES - LOGGED)]
        assert len(set(expected)) == LOGGED


def test_given_frames_do_not_count_as_made(made):
    dataset, clip, video, _, _ = made
    rows = [r for r in dataset.table("metrics").to_pylist() if r["clip_id"] == clip["clip_id"] and not r["detection_class"]]
    value = {r["metric"]: r["value"] for r in rows if r["source"] == "generated" and r["channel"] is None}
    # From the last given frame on, as from frame 0 of a clip that has one.
    assert value["flicker.mean"] == pytest.approx(1 - adjacent_change(video[LOGGED - 1 :]).mean() / 255)
    assert value["sharpness.mean"] == pytest.approx(sharpness(video[LOGGED - 1 :]).mean())
    assert value["flicker"] == pytest.approx(value["flicker.mean"])
    # Of the frames 0 and 6 that are scored twice a second, the first is given.
    truth = next(
        r for r in rows if r["metric"] == "counterfactual.psnr_db" and r["channel"] is None and r["bucket_start_s"] is None
    )
    assert json.loads(truth["protocol_json"])["samples"] == 6
    assert {json.loads(r["protocol_json"])["samples"] for r in rows if r["metric"] == "detection.map"} == {1}
    boxes = [b for b in dataset.table("boxes").to_pylist() if b["clip_id"] == clip["clip_id"]]
    labels = [b for b in boxes if b["label_source"] != "detected"]
    assert {b["frame_index"] for b in labels} == {0, 6}
    assert {b["frame_index"] for b in labels if b["support"] is not None} == {6}
    assert {b["frame_index"] for b in boxes if b["label_source"] == "detected"} <= {6}


def test_a_path_that_is_another_by_then_is_a_row_with_its_reason(run):
    config, result = run
    assert (result.exit_code, result.summary.committed, result.summary.rejected, result.quarantined) == (0, 3, 1, {})
    (row,) = [c for c in Dataset.open(config.out).clips().to_pylist() if not c["n_frames"]]
    assert row["perturbation"] == "lateral_offset"
    (reason,) = json.loads(row["verdict_reasons_json"])
    assert reason["metric"] == "scenario.leading_frames"
    assert reason["sentence"].startswith("at frame 1 of 4 that are the log's pictures the ego is")
