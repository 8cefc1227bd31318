"""One roll-out at one starting moment: by what it is scored and what it cost. Kept in a file, so that a long bench goes on.

Shapes: K scored frames of a bucket, V views, H W pixels, F features.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dwm.errors import InputError
from dwm.flow.sampler import Denoiser
from dwm.models.conditioning import DenoiseCondition
from evaluators.boxes import Boxes

Array = NDArray[np.float64]
_ARRAYS = ("psnr_db", "image_features", "video_features", "front_HW3")  # of a bucket


@dataclass(slots=True)
class Counted:
    """A denoiser that counts: how often it ran, and on how many windows."""

    model: Denoiser
    calls: int = 0
    windows: int = 0

    def __call__(self, latents_BTVCHW: Tensor, levels_BT: Tensor, condition: DenoiseCondition, /) -> Tensor:
        self.calls += 1
        self.windows += len(latents_BTVCHW)
        return self.model(latents_BTVCHW, levels_BT, condition)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a roll-out took."""

    seconds: float
    seconds_side_by_side: float  # had everything run at once that does not wait for anything else
    passes: int  # windows through the network, steps and guidance counted
    frames: int  # generated


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What the frames of one bucket of one clip show."""

    psnr_db: Array  # [K], to the true video of the commanded path; inf-capped for the truth itself
    image_features: Array  # [N, F]
    video_features: Array  # [N, F]
    detections: tuple[Boxes, ...]  # of every few frames
    labels: tuple[Boxes, ...]  # of the same frames
    front_HW3: NDArray[np.uint8]  # the front camera's last image


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A clip by buckets, and its cost (none for the truth)."""

    buckets: tuple[Scored, ...]
    cost: Cost


class Stopwatch:
    """Seconds of a roll-out chunk by chunk, as they passed and had all chunks that wait for no other run at once."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._in_a_row = self._longest_beside = self.seconds = 0.0

    def chunk(self, *, waited_for: bool) -> None:
        """A chunk is done; ``waited_for``: later ones needed it."""
        now = time.perf_counter()
        took, self._last = now - self._last, now
        self.seconds += took
        if waited_for:
            self._in_a_row += took
        else:
            self._longest_beside = max(self._longest_beside, took)

    @property
    def seconds_side_by_side(self) -> float:
        """All chunks that others waited for, then the longest of the rest."""
        return self._in_a_row + self._longest_beside


def save_run(run: Run, path: Path) -> None:
    """As arrays, all of them or nothing."""
    arrays: dict[str, NDArray] = {f"cost.{f.name}": np.array(getattr(run.cost, f.name)) for f in fields(Cost)}
    for b, bucket in enumerate(run.buckets):
        for name in _ARRAYS:
            arrays[f"{b}.{name}"] = getattr(bucket, name)
        for kind in ("detections", "labels"):
            for i, boxes in enumerate(getattr(bucket, kind)):
                arrays |= {f"{b}.{kind}.{i}.{f.name}": getattr(boxes, f.name) for f in fields(Boxes)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)


def load_run(path: Path) -> Run:
    """A run as it was saved; InputError for one of a version that kept something else."""
    with np.load(path, allow_pickle=False) as arrays:
        found = dict(arrays)
    count = 1 + max(int(name.split(".")[0]) for name in found if name[0].isdigit())
    try:
        cost = Cost(**{f.name: found[f"cost.{f.name}"].item() for f in fields(Cost)})
        return Run(buckets=tuple(_bucket(found, b) for b in range(count)), cost=cost)
    except KeyError as missing:
        raise InputError(
            path, f"kept by another version, without {missing}", "give another --out, or delete the file"
        ) from missing


def _bucket(arrays: dict[str, NDArray], b: int) -> Scored:
    def boxes(kind: str) -> tuple[Boxes, ...]:
        out = []
        while f"{b}.{kind}.{len(out)}.labels" in arrays:
            out.append(Boxes(**{f.name: arrays[f"{b}.{kind}.{len(out)}.{f.name}"] for f in fields(Boxes)}))
        return tuple(out)

    plain = {name: arrays[f"{b}.{name}"] for name in _ARRAYS}
    return Scored(**plain, detections=boxes("detections"), labels=boxes("labels"))
