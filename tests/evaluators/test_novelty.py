"""A copy of the log is found, in whatever order; something else is not taken for one."""

from __future__ import annotations

import numpy as np
import pytest

from dwm.errors import InputError
from evaluators.novelty import LoggedCamera, score_novelty


def logged(moments=4):
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (moments, 2, 4, 7, 3), np.uint8)
    return coarse.repeat(16, axis=2).repeat(16, axis=3)


def cameras(images):
    return [LoggedCamera.of(images[:, v]) for v in range(images.shape[1])]


def test_a_copy_is_found_where_it_was_taken():
    log = logged()
    score = score_novelty(log[[2, 0, 3]], cameras(log))
    assert score.nearest.tolist() == [[2, 2], [0, 0], [3, 3]]
    assert score.metrics() == {"novelty.nearest_psnr_db": 100.0, "novelty.near_copies": 1.0}


def test_noise_on_a_copy_has_its_closed_form():
    log = logged()
    noisy = np.clip(log.astype(int) + np.where(np.indices(log.shape).sum(0) % 2, 4, -4), 0, 255).astype(np.uint8)
    inside = np.clip(log, 4, 251)
    assert score_novelty(noisy, cameras(inside)).metrics()["novelty.nearest_psnr_db"] == pytest.approx(
        10 * np.log10(255**2 / 16), abs=0.4
    )


def test_another_world_is_new():
    assert score_novelty(255 - logged(), cameras(logged())).metrics()["novelty.near_copies"] == 0.0


def test_other_cameras_and_none_are_refused():
    with pytest.raises(InputError, match="at least one logged image of each camera"):
        score_novelty(logged()[:, :1], cameras(logged()))
    with pytest.raises(InputError, match=r"\[0, 0\] logged images"):
        score_novelty(logged(), [LoggedCamera(thumbnails=np.zeros((0, 32, 56), np.float32), read=lambda n: logged()[n, 0])] * 2)
