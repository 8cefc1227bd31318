"""Ego-motion bench: AUC by hand, and what an oracle scores over a real world."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dwm.models.weights import save_model
from evaluators.ego_motion.network import EgoMotion, EgoMotionConfig
from evaluators.ego_motion.path import steps_of
from pipelines.bench import ego_motion
from pipelines.bench.ego_motion import area_under_roc, bench_ego_motion
from pipelines.bench.rollouts import Made
from tests.pipelines.tiny_models import VERSION, write_models


def test_auc_by_hand():
    assert area_under_roc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1.0
    assert area_under_roc(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == (1 + 0 + 1 + 0.5) / 4
    assert np.isnan(area_under_roc(np.zeros(0), np.ones(3)))


def test_an_oracle_is_sure_of_true_video_and_of_generated_video_that_ignores_its_path(
    pg_dataroot: Path, tmp_path: Path, monkeypatch
):
    models, seen = write_models(tmp_path), []
    save_model(EgoMotion(EgoMotionConfig()), tmp_path / "ego.safetensors", {})
    driven = []

    def video(scenario, frames, follow):
        """Images whose first pixel says which of ``seen`` they show."""
        seen.append(steps_of((scenario if follow else driven[0]).ego_to_global[list(frames)]))
        images = np.zeros((len(frames), 6, 128, 224, 3), np.uint8)
        images[:, 0, 0, 0, 0] = len(seen) - 1
        return images

    def film(moment, scenario, frames, image_hw):
        if scenario.perturbation.name == "baseline":
            driven[:] = [scenario]
        return video(scenario, frames, follow=True)

    def generate(world, conditioner, rollout, frames, **_):
        return Made(images=video(conditioner.scenario, [0, *frames], follow=False)[1:], seconds=1.0, frames=len(frames))

    def read(reader, images, intrinsics, camera_to_ego, config):
        steps = seen[int(images[1, 0, 0, 0, 0])]
        return steps, np.full_like(steps, np.nan)

    monkeypatch.setattr(ego_motion, "true_frames", film)
    monkeypatch.setattr(ego_motion, "generate", generate)
    monkeypatch.setattr(ego_motion, "read_steps", read)
    things = Path("weights/proving_ground_things.safetensors")
    files = [models / f"{name}.safetensors" for name in ("codec", "world")]
    table = bench_ego_motion(pg_dataroot, VERSION, *files, things, tmp_path / "ego.safetensors", 2, 2.0, 1)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")][1:]
    cells = {tuple(row[:3]): row[3:] for row in rows}
    assert "odometry answers 0% (true video), 0% (generated)" in table
    brake = cells["true video", "hard brake", "network"]
    assert brake[1].startswith("0.00") and float(brake[-1]) == 1.0 and float(brake[5]) > 0.5
    ignored = cells["generated", "hard brake", "network"]
    assert float(ignored[1].split()[0]) > 0.5 and float(ignored[-1]) == 0.0, "nearer to the log's path than to its own"
    assert float(cells["generated", "as driven", "network"][-1]) == 1.0
    assert cells["true video", "hard brake", "the nearer one"] == brake, "odometry has no opinion"
