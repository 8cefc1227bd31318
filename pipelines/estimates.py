"""What a plan will cost: hours, memory and disk, before anything runs. Rules of thumb with their measurements."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dwm.models.weights import load_config_of
from dwm.scenes.dataroot import TABLES
from dwm.scenes.types import CAMERAS
from pipelines.config import RunConfig
from pipelines.plan import Shard

# H.264 at crf 17, proving ground at 128 x 224: 0.45 to 0.65 bits a pixel in 48-frame clips; six crf steps halve it.
BITS_PER_PIXEL, CRF, CRF_HALF = 0.55, 17.0, 6.0
TABLE_BYTES_PER_FRAME, TABLE_BYTES_PER_CLIP = 2_500, 10_000
# A worker without tables and clip: 1.2 to 1.7 GB in clips of 48 frames, libraries, weights and one window of activations.
WORKER_BYTES = 1_500_000_000
# Scoring holds a clip's frames about 3.5 times: 2.6 GiB at 720 frames of six cameras.
CLIP_COPIES = 3.5
# Rows of JSON tables as Python objects, with the devkit's indices.
TABLE_COPIES = 3.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Predictions for all shards of a plan."""

    worker_hours: float
    wall_hours: float  # on the configured workers
    gpu_hours: float  # 0 without GPUs
    worker_memory_bytes: int  # main memory of one worker
    memory_bytes: int  # of all workers
    disk_bytes: int
    free_disk_bytes: int | None  # where the run will be written; None when that cannot be told


def estimate(config: RunConfig, shards: Sequence[Shard]) -> Estimate:
    """Hours from ``execution.seconds_per_frame``; bytes from image size, rate factor, tables and weights."""
    hours, workers = sum(shard.predicted_minutes for shard in shards) / 60, config.execution.workers
    pixels = len(CAMERAS) * math.prod(load_config_of(Path(config.model.world_model), "multi_view_dit").image_hw)
    bits = BITS_PER_PIXEL * 2 ** ((CRF - config.video.crf) / CRF_HALF)
    frames = sum(shard.n_frames for shard in shards)
    longest = max((shard.n_frames for shard in shards), default=0)
    memory = round(WORKER_BYTES + CLIP_COPIES * longest * pixels * 3 + TABLE_COPIES * _table_bytes(config))
    return Estimate(
        worker_hours=hours, wall_hours=hours / workers, gpu_hours=hours * config.execution.gpus_per_worker,
        worker_memory_bytes=memory, memory_bytes=memory * workers, free_disk_bytes=_free_bytes(Path(config.out)),
        disk_bytes=round(frames * (pixels * bits / 8 + TABLE_BYTES_PER_FRAME) + len(shards) * TABLE_BYTES_PER_CLIP),
    )  # fmt: skip


def _table_bytes(config: RunConfig) -> int:
    folder = Path(config.scenes.dataroot) / config.scenes.version
    return sum((folder / f"{table}.json").stat().st_size for table in TABLES)


def _free_bytes(path: Path) -> int | None:
    """Of the file system that holds the nearest folder that exists."""
    for folder in (path, *path.absolute().parents):
        if folder.is_dir():
            try:
                return shutil.disk_usage(folder).free
            except OSError:
                return None
    return None
