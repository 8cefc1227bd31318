"""Which frames of a log become training clips: some given ones, then frames at the clip's rate (MiLA, supplement B).

Shapes: T frames of the log.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dwm.scenario.as_logged import CAMERA_HZ
from dwm.training.encoding import ClipWindow

_LONGEST_US = 125_000  # between two frames that follow each other at 12 Hz
_OFF_US = 50_000  # from the time that a frame should have


def frames_from(
    first: int, times_us_T: NDArray[np.int64], usable_T: NDArray[np.bool_], rates: tuple[int, int], given: int, count: int
) -> list[int] | None:
    """``count`` frames from ``first`` on; None where the log does not hold them.

    ``rates`` [Hz] are that of the ``given`` leading frames and that of the others. ``usable`` says of which frames there are images.
    """
    frames = [first]
    for fps, steps in zip(rates, (given - 1, count - given), strict=True):
        following = _following(frames[-1], times_us_T, fps, steps)
        if following is None:
            return None
        frames += following
    return frames if usable_T[frames].all() else None


def _following(last: int, times_us_T: NDArray[np.int64], fps: int, steps: int) -> list[int] | None:
    """The next ``steps`` frames behind one, at ``fps`` a second."""
    if fps == CAMERA_HZ:
        frames = list(range(last + 1, last + 1 + steps))
        whole = last + steps < len(times_us_T)
        return frames if whole and np.diff(times_us_T[[last, *frames]]).max(initial=0) <= _LONGEST_US else None
    asked = times_us_T[last] + np.round(np.arange(1, steps + 1) * 1e6 / fps).astype(np.int64)
    found = np.abs(times_us_T[None] - asked[:, None]).argmin(axis=1)
    return found.tolist() if np.all(np.abs(times_us_T[found] - asked) <= _OFF_US) else None


def draw_windows(
    times_us_T: NDArray[np.int64], usable_T: NDArray[np.bool_], rates: tuple[int, int], givens: Sequence[int], count: int, most: int,
    rng: np.random.Generator,
) -> list[ClipWindow]:  # fmt: skip
    """Up to ``most`` windows of ``count`` frames that begin at different frames, the ``givens`` by turns.

    Appearance comes from any frame of the window.
    """
    starts = {given: rng.permutation(len(times_us_T)).tolist() for given in givens}
    windows: list[ClipWindow] = []
    for turn in range(most):
        given = givens[turn % len(givens)]
        while starts[given]:
            frames = frames_from(starts[given].pop(), times_us_T, usable_T, rates, given, count)
            if frames is not None:
                windows.append(ClipWindow(fps=rates[1], frames=frames, given=given, look=int(rng.choice(frames))))
                break
    return windows
