"""A run whose world model makes images of another size, from latents and text features of others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from dwm.conditioning.build import ScenarioConditioner
from dwm.conditioning.layout import LAYOUT_CHANNELS
from dwm.errors import InputError
from dwm.models.dit import IMAGE_HW, DiTConfig, MultiViewDiT
from dwm.models.outside import outside_sha256
from dwm.models.weights import load_config_of, save_model
from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from dwm.scenes.clips import named_resize, read_video_frames
from dwm.scenes.nuscenes import read_scene
from pipelines.clip_labels import visible_labels
from pipelines.config import PerturbationConfig, RunConfig, VideoConfig, config_sha256
from pipelines.dataset import Dataset
from pipelines.estimates import estimate
from pipelines.generate import generate, plan_run
from pipelines.gpu_costs import rollout_costs
from pipelines.plan import weights_sha256
from tests.conftest import VERSION
from tests.dwm.outside_models import save_image_codec, save_text_encoder
from tests.pipelines.tiny_models import tiny_run, write_models

SIZE, FRAMES = (72, 112), 6
WIRED = DiTConfig(
    d_model=48, depth=1, heads=2, latent_channels=4, local_widths=(), stem_patch=2, preconditioned=False, text_every=1,
    layout_channels=len(LAYOUT_CHANNELS), text_features=12, spatial_positions=True, rotary_time=True, open_sora=True, image_hw=SIZE,
)  # fmt: skip


@pytest.fixture(scope="module")
def config(pg_dataroot: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("another_size")
    models = write_models(folder / "models")
    torch.manual_seed(0)
    save_model(MultiViewDiT(WIRED), models / "world.safetensors", {})
    run = tiny_run(
        pg_dataroot, models, folder / "run", duration_s=FRAMES / 12, perturbations=[PerturbationConfig()], scored=True
    )
    codec = f"diffusers:{save_image_codec(folder / 'vae', levels=4)}"
    model = dataclasses.replace(run.model, codec=codec, text_encoder=str(save_text_encoder(folder / "t5")))
    return dataclasses.replace(run, model=model)


def test_videos_geometry_and_protocol_cards_have_the_models_size_and_the_detector_its_own(config: RunConfig, pg_dataroot: Path):
    result = generate(config)
    assert (result.exit_code, result.summary.committed, result.quarantined) == (0, 1, {})
    dataset, scene = Dataset.open(config.out), read_scene(pg_dataroot, VERSION, "scene-0001")
    for video in dataset.table("videos", pc.field("stream") == "rgb").to_pylist():
        assert (video["height"], video["width"]) == SIZE
        assert read_video_frames(Path(config.out) / video["uri"], range(FRAMES)).shape == (FRAMES, *SIZE, 3)
    for camera in scene.cameras:
        row = next(r for r in dataset.table("camera_frames").to_pylist() if r["channel"] == camera.channel)
        np.testing.assert_allclose(row["intrinsics"], camera.resized(SIZE[1], SIZE[0]).intrinsics.ravel())
    cards = {row["metric"]: json.loads(row["protocol_json"]) for row in dataset.table("metrics").to_pylist()}
    detected, plain = cards["detection.map"], cards["codec.reconstruction_psnr_db"]
    assert (detected["image_hw"], detected["resize"]) == ([128, 224], "bilinear 72x112 to 128x224")
    assert (plain["image_hw"], plain["resize"]) == ([72, 112], "none")
    run = json.loads((Path(config.out) / "run.json").read_text())
    assert run["weights_sha256"]["text_encoder"] == outside_sha256(str(config.model.text_encoder))


def test_outside_models_count_in_a_runs_identity_and_are_missed_when_gone(config: RunConfig, tmp_path: Path):
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, text_encoder=None))
    assert config_sha256(plain) != config_sha256(config)
    assert set(weights_sha256(config)) - set(weights_sha256(plain)) == {"text_encoder"}
    gone = dataclasses.replace(config, model=dataclasses.replace(config.model, codec=f"diffusers:{tmp_path}/gone"))
    with pytest.raises(InputError, match="gone: no such folder"):
        weights_sha256(gone)


def test_predictions_follow_the_models_size(config: RunConfig):
    shards, bytes_of = plan_run(config).shards, []
    for crf in (17.0, 23.0):  # six steps halve the videos; tables stay
        bytes_of.append(estimate(dataclasses.replace(config, video=VideoConfig(crf=crf)), shards).disk_bytes)
    assert bytes_of[0] - bytes_of[1] == pytest.approx(FRAMES * 6 * 72 * 112 * 0.55 / 8 / 2, abs=1)
    assert "72x112 px: " in rollout_costs(config, [FRAMES])
    assert load_config_of(Path(config.model.world_model), "multi_view_dit").image_hw == SIZE


def test_a_larger_image_asks_the_detector_for_the_same_boxes(pg_dataroot: Path):
    scenario = build_scenario(read_scene(pg_dataroot, VERSION, "scene-0001"), BASELINE, 0, duration_s=0.5)
    assert isinstance(scenario, Scenario)
    one, four = (ScenarioConditioner(scenario, image_hw=(k * 128, k * 224)) for k in (1, 4))
    assert four.cast_hw == (256, 448)
    asked = [set(visible_labels(scenario, conditioner, 0)[0].tolist()) for conditioner in (one, four)]
    rays = [conditioner.seen_rays(0) for conditioner in (one, four)]
    sure = {a for a in range(len(rays[0])) if rays[0][a] >= 4}
    assert sure and sure <= asked[1]
    assert all(rays[1][a] >= 32 for a in asked[1])  # two of 64 x 112, sixteen times as many
    np.testing.assert_allclose(rays[1][rays[0] > 40] / rays[0][rays[0] > 40], 16, rtol=0.2)


def test_a_resize_is_named_as_it_is_done():
    assert named_resize(IMAGE_HW, IMAGE_HW) == "none"
    assert named_resize((360, 640), (128, 224)) == "area 360x640 to 128x224"
    assert named_resize((64, 300), (128, 224)) == "bilinear 64x300 to 128x224"
