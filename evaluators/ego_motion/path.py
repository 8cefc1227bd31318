"""Motions between moments, paths made of them, and how far an estimated path is from the commanded one.

A step is the pose of the later moment in the ego frame of the earlier one, in the plane: x [m] ahead, y [m] to the left, yaw [rad].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.geometry import invert, wrap_angle, yaw_from_rotation

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathError:
    """An estimated path against the commanded one, both from the same start."""

    ade_m: float  # mean distance of positions
    fde_m: float  # distance of the last ones
    heading_rad: float  # mean absolute difference of headings
    speed_mps: float  # mean absolute difference of speeds, step by step
    steps: int


def steps_of(ego_to_global: Array) -> Array:
    """Steps [T - 1, 3] between successive poses [T, 4, 4]."""
    relative = invert(ego_to_global[:-1]) @ ego_to_global[1:]
    return np.column_stack([relative[:, 0, 3], relative[:, 1, 3], yaw_from_rotation(relative)])


def path_of(steps: Array) -> Array:
    """Positions and headings [T, 3] in the ego frame of the start, itself the first row, from steps [T - 1, 3]."""
    yaw = np.concatenate([[0.0], np.cumsum(steps[:, 2])])
    cos, sin = np.cos(yaw[:-1]), np.sin(yaw[:-1])
    x = np.cumsum(cos * steps[:, 0] - sin * steps[:, 1])
    y = np.cumsum(sin * steps[:, 0] + cos * steps[:, 1])
    return np.column_stack([np.concatenate([[0.0], x]), np.concatenate([[0.0], y]), yaw])


def path_error(estimated: Array, commanded: Array, step_s: float) -> PathError:
    """Both as steps [N, 3], ``step_s`` apart; a step that could not be estimated (NaN) repeats the one before it.

    Raises InputError for paths of different lengths and for none.
    """
    if estimated.shape != commanded.shape or not len(estimated):
        problem = f"{len(estimated)} estimated and {len(commanded)} commanded steps"
        raise InputError("ego motion", problem, "give as many of both, at least one")
    estimated = filled(estimated)
    found, told = path_of(estimated), path_of(commanded)
    apart = np.linalg.norm(found[1:, :2] - told[1:, :2], axis=1)
    speeds = [np.linalg.norm(steps[:, :2], axis=1) * np.sign(steps[:, 0]) / step_s for steps in (estimated, commanded)]
    return PathError(
        ade_m=float(apart.mean()), fde_m=float(apart[-1]), heading_rad=float(np.abs(wrap_angle(found[1:, 2] - told[1:, 2])).mean()),
        speed_mps=float(np.abs(speeds[0] - speeds[1]).mean()), steps=len(estimated),
    )  # fmt: skip


def mean_error(errors: Sequence[PathError]) -> PathError:
    """Of several stretches, each by its steps; the last one of a clip may be short."""
    steps = [error.steps for error in errors]
    names = ("ade_m", "fde_m", "heading_rad", "speed_mps")
    means = {name: float(np.average([getattr(error, name) for error in errors], weights=steps)) for name in names}
    return PathError(**means, steps=sum(steps))


def filled(steps: Array) -> Array:
    """Steps [N, 3] without gaps: what could not be estimated repeats the step before, at the start the first that was; else zero."""
    known = np.flatnonzero(np.isfinite(steps).all(axis=1))
    if not len(known):
        return np.zeros_like(steps)
    last = np.searchsorted(known, np.arange(len(steps)), side="right") - 1
    return steps[known[np.maximum(last, 0)]]
