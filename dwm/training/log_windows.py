"""Which frames of a log become training clips: some given ones at the camera's rate, then frames at the clip's own (MiLA, supplement B).

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
    first: int, times_us_T: NDArray[np.int64], usable_T: NDArray[np.bool_], fps: int, given: int, count: int
) -> list[int] | None:
    """``count`` frames: ``given`` consecutive ones, then others at ``fps`` a second; None where the log does not hold them.

    ``usable`` says of which frames there are images.
    """
    if fps == CAMERA_HZ:
        given = count
    frames = list(range(first, first + given))
    if frames[-1] >= len(times_us_T) or np.diff(times_us_T[frames]).max(initial=0) > _LONGEST_US:
        return None
    for step in range(1, count - given + 1):
        asked = times_us_T[frames[given - 1]] + round(step * 1e6 / fps)
        found = int(np.abs(times_us_T - asked).argmin())
        if abs(int(times_us_T[found]) - asked) > _OFF_US:
            return None
        frames.append(found)
    return frames if usable_T[frames].all() else None


def draw_windows(
    times_us_T: NDArray[np.int64], usable_T: NDArray[np.bool_], fps: int, givens: Sequence[int], count: int, most: int,
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
            frames = frames_from(starts[given].pop(), times_us_T, usable_T, fps, given, count)
            if frames is not None:
                windows.append(ClipWindow(fps=fps, frames=frames, given=given, look=int(rng.choice(frames))))
                break
    return windows
