"""Boxes at camera rate from key-frame annotations alone.

Semantics as the devkit's ``NuScenes.get_boxes`` for sweeps: the agents at a time are those annotated at the next key
frame; where they were annotated at the previous one too, centre (linear) and rotation (slerp) lie between both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwm.scenes.types import AgentTrack, Scene

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxesAt:
    """N boxes at one time, in the global frame."""

    timestamp_us: int
    agent_indices: NDArray[np.int64]  # [N] into scene.agents
    centers_m: Array  # [N, 3]
    sizes_wlh_m: Array  # [N, 3]
    rotations_wxyz: Array  # [N, 4]
    velocities_mps: Array  # [N, 2] of the next key frame's annotation; NaN where unknown
    annotation_tokens: tuple[str, ...]  # [N] of the next key frame
    interpolated: NDArray[np.bool_]  # [N] False: the annotation itself


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackAt:
    """One agent over T times; rows of absent times repeat an arbitrary annotation."""

    present: NDArray[np.bool_]  # [T]
    annotation: NDArray[np.int64]  # [T] index of the next key frame's annotation in the track
    centers_m: Array  # [T, 3]
    rotations_wxyz: Array  # [T, 4]


def boxes_at(scene: Scene, timestamp_us: int) -> BoxesAt:
    """All boxes at a time; before the first and after the last key frame, those of that key frame."""
    keys = scene.key_timestamps_us
    upper = int(np.clip(np.searchsorted(keys, timestamp_us), 0, len(keys) - 1))
    lower = max(upper - 1, 0)
    found = [(i, j, _index(a, keys[lower])) for i, a in enumerate(scene.agents) if (j := _index(a, keys[upper])) is not None]
    span = max(int(keys[upper] - keys[lower]), 1)
    amount = 1.0 if upper == lower else float(np.clip((timestamp_us - keys[lower]) / span, 0.0, 1.0))
    centers, rotations, moved = [], [], []
    for i, j, before in found:
        agent, between = scene.agents[i], before is not None and amount < 1.0
        k = before if between else j
        centers.append((1 - amount) * agent.centers_m[k] + amount * agent.centers_m[j])
        rotations.append(slerp(agent.rotations_wxyz[k], agent.rotations_wxyz[j], amount))
        moved.append(between)
    agents = [scene.agents[i] for i, _, _ in found]
    return BoxesAt(
        timestamp_us=int(timestamp_us), agent_indices=np.array([i for i, _, _ in found], np.int64),
        centers_m=np.reshape(centers, (-1, 3)), rotations_wxyz=np.reshape(rotations, (-1, 4)),
        sizes_wlh_m=np.reshape([a.size_wlh_m for a in agents], (-1, 3)),
        velocities_mps=np.reshape([scene.agents[i].velocities_mps[j] for i, j, _ in found], (-1, 2)),
        annotation_tokens=tuple(scene.agents[i].annotation_tokens[j] for i, j, _ in found),
        interpolated=np.array(moved, bool),
    )  # fmt: skip


def track_at(agent: AgentTrack, key_timestamps_us: NDArray[np.int64], timestamps_us: NDArray[np.int64]) -> TrackAt:
    """What ``boxes_at`` says about one agent, for all times [T] at once."""
    keys = key_timestamps_us
    upper = np.clip(np.searchsorted(keys, timestamps_us), 0, len(keys) - 1)
    lower = np.maximum(upper - 1, 0)
    own = np.searchsorted(agent.timestamps_us, keys)
    known = agent.timestamps_us[np.minimum(own, len(agent.timestamps_us) - 1)] == keys
    span = np.maximum(keys[upper] - keys[lower], 1)
    amount = np.where(upper == lower, 1.0, np.clip((timestamps_us - keys[lower]) / span, 0.0, 1.0))
    after = np.where(known[upper], own[upper], 0)
    before = np.where(known[lower] & (amount < 1.0), own[lower], after)
    before = np.where(known[upper], before, 0)
    share = amount[:, None]
    return TrackAt(
        present=known[upper], annotation=after,
        centers_m=(1 - share) * agent.centers_m[before] + share * agent.centers_m[after],
        rotations_wxyz=slerp(agent.rotations_wxyz[before], agent.rotations_wxyz[after], amount),
    )  # fmt: skip


def slerp(first_wxyz: Array, second_wxyz: Array, amount: float | Array) -> Array:
    """Rotations between quaternions [..., 4] by amounts [...], the shortest way; pyquaternion's formula, linear below 1.8 degrees."""
    share = np.asarray(amount, dtype=np.float64)[..., None]
    a = first_wxyz / np.linalg.norm(first_wxyz, axis=-1, keepdims=True)
    b = second_wxyz / np.linalg.norm(second_wxyz, axis=-1, keepdims=True)
    dot = (a * b).sum(axis=-1, keepdims=True)
    a, dot = np.where(dot < 0, -a, a), np.abs(dot)
    theta = np.arccos(np.minimum(dot, 0.9995))
    turned = (np.sin((1 - share) * theta) * a + np.sin(share * theta) * b) / np.sin(theta)
    mixed = np.where(dot > 0.9995, a + share * (b - a), turned)
    return mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)


def _index(agent: AgentTrack, timestamp_us: int) -> int | None:
    i = int(np.searchsorted(agent.timestamps_us, timestamp_us))
    return i if i < len(agent.timestamps_us) and agent.timestamps_us[i] == timestamp_us else None
