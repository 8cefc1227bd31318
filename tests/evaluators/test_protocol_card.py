"""Protocol cards and bootstrap intervals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dwm.errors import InputError
from evaluators.protocol import ProtocolCard, bootstrap_interval


def test_the_interval_of_a_mean_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    interval = bootstrap_interval(values, np.random.default_rng(0), resamples=4000)
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_the_interval_is_decided_by_the_generator_and_widens_with_its_level() -> None:
    values = np.arange(30.0)
    first, again = (bootstrap_interval(values, np.random.default_rng(3)) for _ in range(2))
    wide = bootstrap_interval(values, np.random.default_rng(3), level=0.99)
    assert first == again
    assert wide.high - wide.low > first.high - first.low


def test_rows_are_resampled_whole() -> None:
    pairs = np.stack([np.arange(20.0), np.arange(20.0) * 2], axis=1)
    interval = bootstrap_interval(
        pairs, np.random.default_rng(0), statistic=lambda rows: float(rows[:, 1].sum() / rows[:, 0].sum())
    )
    assert (interval.low, interval.high) == (2.0, 2.0)


def test_no_sample_is_an_error() -> None:
    with pytest.raises(InputError, match="no samples"):
        bootstrap_interval(np.zeros(0), np.random.default_rng(0))


def test_a_card_says_everything_in_one_line_and_survives_json() -> None:
    card = ProtocolCard(
        metric="psnr", samples=8, unit="clip", frames=720, frames_per_second=12.0, cameras=("CAM_FRONT", "CAM_BACK"),
        image_hw=(128, 224), weights_sha256="ab" * 32, seed=3, notes=("condition frames left out",),
        interval=bootstrap_interval(np.array([20.0, 22.0]), np.random.default_rng(0)),
    )  # fmt: skip
    sentence = card.sentence()
    for part in (
        "psnr: 8 clips of 720 frames at 12 Hz",
        "2 cameras, 128x224 px",
        "abababababab",
        "seed 3",
        "95% interval",
        "left out",
    ):
        assert part in sentence
    assert json.loads(json.dumps(card.as_record()))["interval"]["value"] == 21.0
