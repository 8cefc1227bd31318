"""How far a finished clip strays from the path it was told to drive, by both opinions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from evaluators.buckets import BUCKET_S
from evaluators.ego_motion.inference import EgoMotionReader
from evaluators.ego_motion.odometry import OdometryConfig, ground_steps
from evaluators.ego_motion.path import PathError, mean_error, path_error, steps_of

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingConfig:
    """How a video is read."""

    step_s: float = (
        1 / 6
    )  # between the moments that are compared: odometry loses its corners over 0.25 s, and adds noise at 12 Hz
    bucket_s: float = BUCKET_S  # every stretch starts from the commanded pose, so that errors do not pile up
    odometry: OdometryConfig = field(default_factory=OdometryConfig)
    min_known: float = 0.5  # share of a stretch's steps from which on odometry has an opinion of it

    def for_video(self, fps: float) -> ReadingConfig:
        """The same with a step of whole frames."""
        return replace(self, step_s=max(1, round(self.step_s * fps)) / fps)

    def moments(self, fps: float, first: int, total: int) -> list[int]:
        """Frames of a video at which it is read, from the last given one on."""
        return list(range(first, total, max(1, round(self.step_s * fps))))

    def first_stretch(self, moments: Sequence[int]) -> list[int]:
        """Those of the first stretch."""
        return list(moments[: round(self.bucket_s / self.step_s) + 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class EgoMotionScore:
    """Errors by stretch."""

    learnt: tuple[PathError, ...]  # of the network
    seen: tuple[PathError, ...]  # of visual odometry
    known: tuple[float, ...]  # share of steps for which visual odometry has an answer
    config: ReadingConfig

    @property
    def agreed(self) -> tuple[PathError, ...]:
        """Of the opinion that is nearer to the command: a camera has strayed where none finds it on its path."""
        opinions = zip(self.learnt, self.seen, self.known, strict=True)
        return tuple(b if k >= self.config.min_known and b.ade_m < a.ade_m else a for a, b, k in opinions)

    def metrics(self) -> dict[str, float]:
        """Means over stretches, each by its steps, by metric name (docs/metrics.md)."""
        known = float(np.average(self.known, weights=[error.steps for error in self.seen]))
        out = {"ego_motion.odometry_known": known, "ego_motion.agreed_ade_m": mean_error(self.agreed).ade_m}
        for prefix, errors in (("ego_motion", self.learnt), ("ego_motion.odometry", self.seen)):
            mean = mean_error(errors)
            out |= {f"{prefix}.{name}": getattr(mean, name) for name in ("ade_m", "fde_m", "heading_rad", "speed_mps")}
        return out


def read_steps(
    reader: EgoMotionReader, images: NDArray[np.uint8], intrinsics: Array, camera_to_ego: Array, odometry: OdometryConfig
) -> tuple[Array, Array]:
    """Steps [T - 1, 3] between images [T, V, H, W, 3] by the network, and by odometry (NaN where it has no answer)."""
    return reader.steps(images, intrinsics, camera_to_ego), ground_steps(images, intrinsics, camera_to_ego, odometry)


def score_ego_motion(learnt: Array, seen: Array, ego_to_global: Array, config: ReadingConfig | None = None) -> EgoMotionScore:
    """Steps of ``read_steps`` against commanded poses [T, 4, 4] at the same moments, ``step_s`` apart."""
    config = config or ReadingConfig()
    told = steps_of(ego_to_global)
    length = max(1, round(config.bucket_s / config.step_s))
    stretches = [slice(i, i + length) for i in range(0, len(told), length)]
    return EgoMotionScore(
        learnt=tuple(path_error(learnt[s], told[s], config.step_s) for s in stretches),
        seen=tuple(path_error(seen[s], told[s], config.step_s) for s in stretches),
        known=tuple(float(np.isfinite(seen[s]).all(axis=1).mean()) for s in stretches), config=config,
    )  # fmt: skip
