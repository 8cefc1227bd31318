"""The log of a training drive: filmed from another path, it shows the drive's own street."""

import numpy as np

from dwm.conditioning.build import ScenarioConditioner, tensor_to_images
from dwm.geometry import transform_from_xy_yaw
from dwm.models.dit import IMAGE_HW
from dwm.scenes.proving_ground.city import build_city
from dwm.scenes.proving_ground.render import Renderer
from dwm.training.scanned_log import other_path, scan_log
from dwm.training.sequences import Town, drive, render_frames


def test_the_other_path_is_a_step_aside_and_on_the_same_road():
    ego = transform_from_xy_yaw(np.linspace(0, 100, 240), np.zeros(240), np.zeros(240))
    apart = [np.abs(other_path(ego, np.random.default_rng(seed))[:, 1, 3]) for seed in range(20)]
    assert np.mean([a.mean() > 0.3 for a in apart]) >= 0.9
    assert max(a.max() for a in apart) <= 3.01


def test_a_log_from_another_path_shows_what_the_drive_sees(monkeypatch):
    city = build_city(3, 200.0)
    town = Town(city=city, renderer=Renderer(city))
    scenario, weather = drive(town, 0, duration_s=4.0, n_agents=8)
    monkeypatch.setattr("dwm.training.scanned_log._AROUND", 6)
    aside = scenario.ego_to_global.copy()
    aside[:, :2, 3] += aside[:, :2, 1] * 0.8
    monkeypatch.setattr("dwm.training.scanned_log.other_path", lambda *_: aside)
    points = scan_log(town, scenario, weather, [20, 26], np.random.default_rng(0))
    images, known = ScenarioConditioner(scenario, points=points).logged(23)
    assert images.shape == (6, 3, *IMAGE_HW)
    assert float(known.mean()) > 0.5
    truth = render_frames(town, scenario, weather, np.array([23]))[0].astype(float)
    sure = (known[:, 0] == 1.0).repeat_interleave(2, 1).repeat_interleave(2, 2).numpy()
    error = np.abs(tensor_to_images(images) - truth).mean(-1)[sure]
    still = np.abs(truth - np.roll(truth, 12, axis=2)).mean(-1)[sure]  # a picture that is out of place
    assert np.median(error) < 6
    assert error.mean() < 0.6 * still.mean()
