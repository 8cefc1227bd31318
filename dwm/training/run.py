"""``roadreel train``: from a configuration to weights."""

from __future__ import annotations

from pathlib import Path

from dwm.errors import InputError
from dwm.training.codec_trainer import CodecTask, open_images
from dwm.training.config import TrainConfig
from dwm.training.loop import fit
from dwm.training.world_trainer import WorldTask


def train(config: TrainConfig, progress: bool = False) -> Path:
    """Train ``config.target``, or go on where the same folder stopped; the path of the exported weights."""
    if config.target == "codec":
        task = CodecTask(config, open_images(Path(config.data)))
    elif config.target == "world_model":
        from dwm.training.cache import ClipCache  # here: the cache reads scenes, which nothing else in training needs

        task = WorldTask(config, ClipCache(Path(config.data)))
    else:
        raise InputError("target", f"'{config.target}' cannot be trained", "choose codec or world_model")
    return fit(task, config.loop, progress=progress)
