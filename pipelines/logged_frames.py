"""The frames that lead a clip: the log's own pictures, which nobody generates.

Shapes: N leading frames, V views, H W pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dwm.errors import InputError
from dwm.scenario.types import Rejection, Scenario
from dwm.scenes.clips import read_images
from dwm.scenes.types import CAMERAS, Scene

Images = NDArray[np.uint8]
# A picture shows a pose that is no further from the one it was taken at.
_AWAY_M, _TURNED_DEG = 0.05, 0.3


def leading_images(scenario: Scenario, count: int, image_hw: tuple[int, int]) -> Images:
    """The log's pictures [N, V, H, W, 3] of a scenario's first ``count`` frames, resized.

    Raises InputError, which names the file, where the log has no picture of a frame.
    """
    total = len(scenario.timestamps_us)
    if not 1 <= count <= max(total - 1, 1):
        raise InputError("rollout.logged_frames", f"{count} of a video of {total} frames", "leave at least one to generate")
    indices = [leading_indices(scenario, channel, count) for channel in CAMERAS]
    views = [read_images(scenario.scene, *view, image_hw) for view in zip(CAMERAS, indices, strict=True)]
    return np.stack(views, axis=1)


def leading_indices(scenario: Scenario, channel: str, count: int) -> list[int]:
    """Which of ``scene.frames[channel]`` are the first ``count`` frames: each a picture of its own.

    The first is the one nearest to frame 0. Cameras fire up to half a frame away from it, so the others are sought from that
    picture's own time on, at the video's pace; the nearest on disk must lie within half a frame.
    """
    frames, times_us = scenario.scene.frames[channel], scenario.timestamps_us
    taken_us = np.array([f.timestamp_us for f in frames], np.int64)
    first = int(np.argmin(np.abs(taken_us - times_us[0])))
    if not frames[first].path.is_file():
        raise _no_start(scenario.scene, channel, first)
    indices = [first]
    for frame in range(1, count):
        away_us = np.abs((taken_us - taken_us[first]) - (times_us[frame] - times_us[0]))
        order = np.argsort(away_us, kind="stable").tolist()
        nearest = next(i for i in order if frames[i].path.is_file())
        if 2 * away_us[nearest] >= np.diff(times_us).min():
            problem = f"frame {frame} of a clip of {scenario.scene.name} has no {channel} image on disk: the nearest is "
            problem += f"{away_us[nearest] / 1e3:.0f} ms away, and half a frame is {500 / scenario.fps:.0f} ms"
            raise InputError(frames[order[0]].path, problem, "unpack the sweeps, or set rollout.logged_frames=1")
        indices.append(nearest)
    return indices


def led_by_log(made: Scenario | Rejection, count: int) -> Scenario | Rejection:
    """A scenario that the log's pictures can lead for ``count`` frames, or why they cannot: its path is another by then.

    One frame can always lead.
    """
    if isinstance(made, Rejection) or count == 1:
        return made
    why = _leaves_log(made, count)
    if not why:
        return made
    return Rejection(scene=made.scene.name, perturbation=made.perturbation, seed=made.seed, reason="leading_frames", detail=why)


def _leaves_log(scenario: Scenario, count: int) -> str:
    """How far the path is from the log's at the first leading frame that the log does not show; "" where it shows all."""
    if scenario.log_end_index < count:
        return f"the log ends at frame {scenario.log_end_index} of the clip, and {count} frames are to be its pictures"
    ego, logged = scenario.ego_to_global[:count], scenario.baseline_ego_to_global[:count]
    away_m = np.linalg.norm(ego[:, :3, 3] - logged[:, :3, 3], axis=1)
    turned = Rotation.from_matrix(np.swapaxes(logged[:, :3, :3], 1, 2) @ ego[:, :3, :3])
    turned_deg = np.degrees(turned.magnitude())
    off = (away_m > _AWAY_M) | (turned_deg > _TURNED_DEG)
    if not off.any():
        return ""
    frame = int(np.argmax(off))
    return (
        f"at frame {frame} of {count} that are the log's pictures the ego is {away_m[frame]:.2f} m and {turned_deg[frame]:.1f} degrees "
        f"off the logged path, more than {_AWAY_M:g} m or {_TURNED_DEG:g} degrees"
    )


def _no_start(scene: Scene, channel: str, first: int) -> InputError:
    frames = scene.frames[channel]
    present = [f for f in frames if f.path.is_file()]
    if not present:
        return InputError(
            frames[first].path, f"{channel} has no image of scene {scene.name} on disk", "unpack the camera images"
        )
    start_s = (present[-1].timestamp_us - int(scene.key_timestamps_us[0])) * 1e-6
    return InputError(
        frames[first].path, f"the image to start from is missing ({len(present)} of {len(frames)} {channel} images exist)",
        f"set scenario.start_s to a time with images, e.g. 0 to {max(start_s, 0):.1f}",
    )  # fmt: skip
