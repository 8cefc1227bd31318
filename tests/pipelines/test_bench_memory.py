"""Memory bench: the splat's filling, PSNR where it knows, and what an oracle scores in a real world."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dwm.conditioning.build import ScenarioConditioner, images_to_tensor, tensor_to_images
from dwm.errors import InputError
from dwm.models.dit import IMAGE_HW
from dwm.scenario.types import Scenario
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.proving_ground.counterfactual import open_counterfactual
from pipelines.bench import memory
from pipelines.bench.memory import bench_memory, known_psnr_db, splat_alone
from pipelines.bench.rollouts import Made, Moment, true_frames
from tests.pipelines.tiny_models import VERSION, write_models


def test_what_the_splat_leaves_open_takes_each_cameras_mean_colour() -> None:
    first = torch.stack([torch.full((3, 4, 8), -1.0), torch.full((3, 4, 8), 0.2)])
    first[1, 0] = torch.linspace(-1, 1, 32).reshape(4, 8)
    share = torch.zeros(2, 1, 2, 4)
    share[:, :, 1] = 0.5
    splat = splat_alone(lambda frame: (torch.full((2, 3, 4, 8), frame / 10), share), first, (5, 10))
    np.testing.assert_array_equal(
        splat.known, np.repeat([False, False, True, True], 8).reshape(1, 1, 4, 8).repeat(2, 0).repeat(2, 1)
    )
    assert (splat.images[0, :, 2:] == tensor_to_images(torch.full((3, 1, 1), 0.5))[0, 0, 0]).all()
    assert (splat.images[1, :, 2:] == 255).all()
    assert (splat.images[:, 0, :2] == 0).all()
    np.testing.assert_array_equal(splat.images[0, 1, 0, 0], [128, 153, 153])
    assert splat.seconds_per_frame >= 0


def test_psnr_where_something_is_known_leaves_the_rest_out() -> None:
    truth = np.full((3, 2, 4, 4, 3), 100, np.uint8)
    images, known = truth.copy(), np.zeros(truth.shape[:-1], bool)
    images[:, :, 0] = 110
    images[:, :, 1:] = 255
    known[0, :, 0] = True
    known[1, 0, 0] = True
    expected = 10 * np.log10(255**2 / 100)
    assert known_psnr_db(images, truth, known) == pytest.approx(expected)
    assert known_psnr_db(truth, truth, known) == 100.0
    assert np.isnan(known_psnr_db(images, truth, np.zeros_like(known)))


def test_clips_too_short_to_score_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 s; give 3 or more"):
        bench_memory(tmp_path, VERSION, tmp_path, tmp_path, tmp_path, tmp_path, 1, 2.0, 1)


@pytest.fixture(scope="module")
def table(pg_dataroot: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bench over two short worlds: memory of the past is an oracle, no memory is off by 16 grey levels, the log's
    splat knows the truth of the lower half."""
    moments = []
    for name in ("scene-0001", "scene-0002"):
        scene = read_scene(pg_dataroot, VERSION, name)
        truth = open_counterfactual(scene)
        assert truth is not None
        moments.append(Moment(scene=scene, start_s=0.0, truth=truth))

    rendered: dict[tuple[str, int], np.ndarray] = {}

    def film(moment: Moment, scenario: Scenario, frames, image_hw=IMAGE_HW) -> np.ndarray:
        for f in frames:
            if (scenario.scene.name, f) not in rendered:
                rendered[scenario.scene.name, f] = true_frames(moment, scenario, [f], image_hw)[0]
        return np.stack([rendered[scenario.scene.name, f] for f in frames])

    def true(conditioner: ScenarioConditioner, frames) -> np.ndarray:
        return film(next(m for m in moments if m.scene is conditioner.scenario.scene), conditioner.scenario, frames)

    def generate(world, conditioner, config, frames) -> Made:
        images = true(conditioner, frames)
        if config.memory == "none":
            images = np.where(images < 128, images + 16, images - 16).astype(np.uint8)
        return Made(images=images, seconds=3.0 * max(frames), frames=max(frames))

    def logged(self: ScenarioConditioner, frame: int):
        share = torch.zeros(6, 1, 64, 112)
        share[:, :, 32:] = 1
        return images_to_tensor(true(self, [frame])[0]), share

    models = write_models(tmp_path_factory.mktemp("memory"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "STRETCHES_S", ((0.25, 0.9), (5.0, 6.0)))
        patch.setattr(memory, "OFFSETS_M", (0.3, 1e-9))
        patch.setattr(memory, "starting_moments", lambda *_: moments)
        patch.setattr(memory, "generate", generate)
        patch.setattr(memory, "true_frames", film)
        patch.setattr(ScenarioConditioner, "logged", logged)
        yield bench_memory(
            pg_dataroot, VERSION, models / "codec.safetensors", models / "world.safetensors", None,  # pyright: ignore[reportArgumentType]
            models / "detector.safetensors", 2, 1.0, 1,
        )  # type: ignore[arg-type]  # fmt: skip


def test_an_oracle_is_at_no_distance_and_every_mode_is_told_apart(table: str) -> None:
    rows = {cells[3].strip(): [c.strip() for c in cells] for line in table.splitlines() if len(cells := line.split("|")) > 8}
    assert set(rows) == {"picture", "---", "memory none", "memory past", "memory log", "splat alone", "true halves, by clip"}
    assert rows["memory past"][1:3] == ["0.25-0.9 s", "2"]
    assert rows["memory past"][4] == "100.00" and rows["memory past"][7].startswith("0.0000 (0.0000 to 0.0000")
    off = 10 * np.log10(255**2 / 16**2)
    assert float(rows["memory none"][4]) == pytest.approx(off, abs=0.006)
    assert rows["memory past"][5].startswith(f"{100 - off:+.2f}")
    assert float(rows["memory none"][7].split()[0]) > 0 and float(rows["memory none"][8].split()[0]) > 0
    # The splat knows the lower half: all of its error lies in the upper one.
    assert rows["splat alone"][6] == "100.00" and float(rows["splat alone"][4]) < 40
    assert float(rows["true halves, by clip"][7]) > 0


def test_costs_cards_shares_and_rejections_stand_below(table: str) -> None:
    assert "- memory past, a generated frame: 3.00 s (n = 2)" in table
    assert "- pixels that the splat knows: 50% of the scored frames" in table
    assert "FID-pg: 2 clips of 9 frames at 12 Hz" in table and "FVD-pg: 2 clips of 9 frames at 12 Hz" in table
    assert "108 generated against 108 true samples of 16 features" in table and "12 generated against 12" in table
    assert table.endswith("Rejected: 4 x 1e-09 m aside for 0.9 s: no_effect.")
