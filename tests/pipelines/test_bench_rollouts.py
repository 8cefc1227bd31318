"""What the benches share: which moments they start from, which frames they keep."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dwm.conditioning.build import ScenarioConditioner, images_to_tensor, tensor_to_images
from dwm.errors import InputError
from dwm.rollout.config import RolloutConfig
from dwm.rollout.strategies import roll_out
from dwm.rollout.world_model import WorldModel
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Perturbation, Scenario
from dwm.scenes.nuscenes import read_scene
from pipelines.bench import rollouts
from pipelines.bench.rollouts import Moment, first_feasible, frames_between, generate, rejections, starting_moments
from pipelines.logged_frames import leading_images
from tests.factories import make_scene
from tests.pipelines.tiny_models import VERSION, write_models


def aside(offset_m: float) -> Perturbation:
    return Perturbation(name="lateral_offset", params={"offset_m": offset_m, "onset_s": 0.0, "ramp_s": 2.5}, severity=0.5)


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three scenes in memory: ten seconds, a parked ego, three seconds; returns the names that were rebuilt."""
    scenes = [make_scene(key_frames=21), make_scene(ego_speed_mps=0.0), make_scene(key_frames=7)]
    by_name = {f"scene-{i}": replace(scene, name=f"scene-{i}") for i, scene in enumerate(scenes)}
    opened: list[str] = []
    monkeypatch.setattr(rollouts, "list_scenes", lambda *_: list(by_name))
    monkeypatch.setattr(rollouts, "read_scene", lambda root, version, name: by_name[name])
    monkeypatch.setattr(rollouts, "open_counterfactual", lambda scene: opened.append(scene.name) or SimpleNamespace())
    return opened


def test_moments_go_round_the_scenes_in_motion_and_each_world_is_rebuilt_once(worlds: list[str]) -> None:
    found = starting_moments(Path(), VERSION, 5, logged_s=1.0)
    assert [(m.scene.name, m.start_s) for m in found] == [
        ("scene-0", 0.0), ("scene-2", 0.0), ("scene-0", 1.5), ("scene-2", 1.5), ("scene-0", 3.0),
    ]  # fmt: skip
    assert worlds == ["scene-0", "scene-2"]


def test_enough_log_must_be_left(worlds: list[str]) -> None:
    assert [(m.scene.name, m.start_s) for m in starting_moments(Path(), VERSION, 9, logged_s=8.5)] == [
        ("scene-0", 0.0), ("scene-0", 1.5),
    ]  # fmt: skip
    assert worlds == ["scene-0"]
    with pytest.raises(InputError, match="with 11 s of log to come"):
        starting_moments(Path(), VERSION, 9, logged_s=11.0)
    with pytest.raises(InputError, match="0 starting moments"):
        starting_moments(Path(), VERSION, 0, logged_s=1.0)


def test_a_log_that_cannot_be_rendered_is_refused(worlds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "open_counterfactual", lambda scene: None)
    with pytest.raises(InputError, match="not a proving-ground world"):
        starting_moments(Path(), VERSION, 1, logged_s=1.0)


def test_the_first_move_that_can_be_driven_is_taken_and_the_others_are_counted() -> None:
    moment = Moment(scene=make_scene(), start_s=0.0, truth=None)  # type: ignore[arg-type]
    rejected = Counter[str]()
    found = first_feasible(moment, [aside(1e-9), aside(2.0)], 5.0, rejected, "aside")
    assert isinstance(found, Scenario) and found.perturbation.params["offset_m"] == 2.0
    assert len(found.timestamps_us) == 61
    assert first_feasible(moment, [aside(1e-9)], 5.0, rejected, "hardly aside") is None
    assert rejected == {"aside: no_effect": 1, "hardly aside: no_effect": 1}
    assert rejections(Counter({"a: off_road": 1, "b: collision": 2}))[1] == "Rejected: 2 x b: collision, 1 x a: off_road."
    assert rejections(Counter()) == []


def test_stretches_hold_both_their_ends() -> None:
    assert frames_between(1.0, 3.0, every=6) == (12, 18, 24, 30, 36)
    assert frames_between(9.0, 10.0) == tuple(range(108, 121))


def test_kept_frames_are_those_of_the_whole_roll_out_and_windows_after_them_are_not_made(
    pg_dataroot: Path, tmp_path: Path
) -> None:
    models = write_models(tmp_path)
    world = WorldModel.load(models / "codec.safetensors", models / "world.safetensors", None, device="cpu")
    moment = Moment(scene=read_scene(pg_dataroot, VERSION, "scene-0001"), start_s=0.0, truth=None)  # type: ignore[arg-type]
    scenario = first_feasible(moment, [BASELINE], 0.75, Counter(), "as driven")
    assert scenario is not None
    conditioner, config = (
        ScenarioConditioner(scenario),
        RolloutConfig(window_frames=4, layout=False, appearance=False, memory="none"),
    )
    made = generate(world, conditioner, config, [2, 5])
    first = images_to_tensor(leading_images(scenario, 1, world.image_hw))
    whole = np.concatenate([tensor_to_images(c.images_NV3HW) for c in roll_out(world, conditioner, first, config, 0)])
    np.testing.assert_array_equal(made.images, whole[[1, 4]])
    assert (len(whole), made.frames) == (9, 6)
    assert made.seconds_per_frame == made.seconds / 6 > 0


def test_frames_that_lead_come_back_as_the_log_shows_them_and_cost_nothing(pg_dataroot: Path, tmp_path: Path) -> None:
    models = write_models(tmp_path)
    world = WorldModel.load(models / "codec.safetensors", models / "world.safetensors", None, device="cpu")
    moment = Moment(scene=read_scene(pg_dataroot, VERSION, "scene-0001"), start_s=0.0, truth=None)  # type: ignore[arg-type]
    scenario = first_feasible(moment, [BASELINE], 0.75, Counter(), "as driven")
    assert scenario is not None
    config = RolloutConfig(window_frames=4, condition_frames=2, logged_frames=4, layout=False, appearance=False, memory="none")
    made = generate(world, ScenarioConditioner(scenario), config, [2, 4, 6])
    leading = leading_images(scenario, 4, world.image_hw)
    whole = roll_out(world, ScenarioConditioner(scenario), images_to_tensor(leading), config, 0)
    np.testing.assert_array_equal(made.images[0], leading[2])
    np.testing.assert_array_equal(
        made.images[1:], np.concatenate([tensor_to_images(c.images_NV3HW) for c in whole])[[0, 2]]
    )  # fmt: skip
    assert made.frames == 4  # two windows of two new frames: 4 to 7
