"""``roadreel train``: from a configuration to weights."""

from __future__ import annotations

from pathlib import Path

from dwm.errors import InputError
from dwm.training.clips import MixedClips
from dwm.training.codec_trainer import CodecTask, open_images
from dwm.training.config import TrainConfig
from dwm.training.distillation_trainer import DistillationTask
from dwm.training.long_clips import cut_clips
from dwm.training.loop import fit
from dwm.training.world_trainer import WorldTask


def train(config: TrainConfig, progress: bool = False) -> Path:
    """Work on ``config.target``, or go on where the same folder stopped; the path of what was made.

    "drives" renders proving-ground videos, "codec" trains on them, "clips" encodes them, "log_clips" encodes logs, "world_model" trains on the clips,
    "distillation" goes on with a coarse one under a fine one (LongDWM), "replay" adds clips that begin with the world model's
    own frames, "things" learns what the things of other logs look like.
    """
    if config.target == "things":
        from dwm.training.things import learn_things

        return learn_things(config.things, progress)
    if config.target in ("drives", "clips", "log_clips", "world_model", "distillation"):
        from dwm.training import cache, encoding, log_clips  # here: they read scenes, which codec training does not need

        if config.target == "drives":
            return cache.render_drives(config.drives, progress)
        if config.target == "clips":
            return encoding.encode(config.clips, cache.encode_clips, progress)
        if config.target == "log_clips":
            return encoding.encode(config.log_clips, log_clips.encode_log_clips, progress)
        found = cache.ClipCache(Path(config.data))
        if config.more_data:
            found = MixedClips(first=found, others=tuple(cache.ClipCache(Path(folder)) for folder in config.more_data))
        if config.target == "distillation":
            return fit(DistillationTask(config, found), config.loop, progress=progress)
        clips = cut_clips(found, config.world.cut, config.world.key_frames, config.world.rates_hz, config.world.window_frames)
        return fit(WorldTask(config, clips), config.loop, progress=progress)
    if config.target == "replay":
        from dwm.training.replay import replay

        return replay(config.replay, progress)
    if config.target == "codec":
        return fit(CodecTask(config, open_images(Path(config.data))), config.loop, progress=progress)
    raise InputError(
        "target",
        f"'{config.target}' cannot be trained",
        "choose drives, codec, clips, log_clips, world_model, distillation, replay or things",
    )
