"""Traffic between the steps of its simulation."""

from __future__ import annotations

import numpy as np
import pytest

from dwm.scenario.upsampling import at_frames, step_times_us, stride_of

FRAMES_US = np.round(np.arange(25) * 1e6 / 12).astype(np.int64)
SECONDS = FRAMES_US * 1e-6


def up(x, yaw, speed, present=None):
    steps = step_times_us(FRAMES_US, 2)
    t = steps * 1e-6
    xy = np.stack([x(t), 0 * t], axis=-1)[None]
    there = np.ones((1, len(t)), dtype=bool) if present is None else present[None]
    return at_frames(xy, yaw(t)[None], speed(t)[None], there, steps, FRAMES_US)


def test_a_step_is_a_sixth_of_a_second_or_a_frame():
    assert [stride_of(fps) for fps in (2.0, 6.0, 10.0, 12.0, 24.0)] == [1, 1, 1, 2, 4]
    assert np.array_equal(step_times_us(FRAMES_US, 2), FRAMES_US[::2])
    # The last frame lies between two steps.
    assert step_times_us(FRAMES_US[:24], 2)[-1] == 2 * FRAMES_US[22] - FRAMES_US[20]
    assert np.array_equal(step_times_us(FRAMES_US, 1), FRAMES_US)


def test_steady_braking_is_reproduced_exactly():
    xy, yaw, present = up(lambda t: 10 * t - 1.5 * t**2, lambda t: 0 * t, lambda t: 10 - 3 * t)
    assert xy[0, :, 0] == pytest.approx(10 * SECONDS - 1.5 * SECONDS**2, abs=1e-6)
    assert np.abs(yaw).max() == 0 and present.all()


def test_a_car_that_stops_does_not_roll_back():
    x = lambda t: np.where(t < 1.0, 3 * t - 1.5 * t**2, 1.5)  # noqa: E731
    xy, _, _ = up(x, lambda t: 0 * t, lambda t: np.maximum(3 - 3 * t, 0))
    assert np.diff(xy[0, :, 0]).min() > -1e-9


def test_turning_at_a_steady_rate_is_reproduced_and_goes_the_short_way():
    _, yaw, _ = up(lambda t: 0 * t, lambda t: (3.0 + 0.5 * t + np.pi) % (2 * np.pi) - np.pi, lambda t: 0 * t)
    assert yaw[0] == pytest.approx(3.0 + 0.5 * SECONDS, abs=1e-6)


def test_between_two_steps_is_there_who_is_there_at_both():
    present = np.array([False] * 4 + [True] * 5 + [False] * 4)
    _, _, there = up(lambda t: t, lambda t: 0 * t, lambda t: 0 * t + 1, present)
    assert np.flatnonzero(there[0]).tolist() == list(range(8, 17))
