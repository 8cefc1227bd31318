"""Training clips from logs: windows of real camera images as latents, with everything that a world model is told about them.

What is told comes from the log as in a roll-out (``dwm.conditioning.build``). Resumable file by file, as ``dwm.training.cache``.

Shapes: T frames, V views, H W pixels.
"""

from __future__ import annotations

import logging
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from dwm.codec.interface import Codec
from dwm.conditioning.build import ScenarioConditioner, cast_size, images_to_tensor
from dwm.conditioning.things import Things
from dwm.device import pick_device
from dwm.errors import InputError
from dwm.models.text_encoder import TextEncoder
from dwm.scenario.as_logged import CAMERA_HZ, as_logged
from dwm.scenario.types import Scenario
from dwm.scenes.clips import read_images
from dwm.scenes.nuscenes import list_scenes, nearest_frames, read_scene, source_notes
from dwm.scenes.splits import split_names
from dwm.scenes.types import CAMERAS
from dwm.training.config import LogClipsConfig
from dwm.training.encoding import ClipWindow, encode_window, save_clip
from dwm.training.log_windows import draw_windows

logger = logging.getLogger(__name__)
_SAME_MOMENT_US = 60_000  # an image further from the front camera's shows another moment


@torch.inference_mode()
def encode_log_clips(
    config: LogClipsConfig, codec: Codec, progress: bool = True, part: int = 0, text: TextEncoder | None = None
) -> Path:
    """Encode the windows of every scene that are not there yet; returns the folder. Of several processes each takes a part.

    Frames without all six images on disk are left out. Raises InputError for settings of which no clip can be made.
    """
    _check(config)
    cast_size(config.image_hw, codec.downsample)  # before the first scene is read
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    things = Things.load(Path(config.things)) if config.things else Things.none()
    names = scene_names(config)[part :: config.processes]
    for name in tqdm(names, desc="encoding logs", disable=None if progress and not part else True):
        scenario = as_logged(read_scene(Path(config.dataroot), config.version, name))
        images = frame_images(scenario)
        todo = {out / file: window for file, window in windows_of(scenario, images, config).items()}
        todo = {path: window for path, window in todo.items() if not path.exists()}
        conditioner = ScenarioConditioner(
            scenario, pick_device(config.device), image_hw=config.image_hw, downsample=codec.downsample, text=text
        )
        for path, window in todo.items():
            pictures = {f: _pictures(scenario, images[f], config.image_hw, conditioner.device) for f in window.frames}
            latents = {f: codec.encode(views) for f, views in pictures.items()}
            save_clip(encode_window(conditioner, codec, things, window, pictures, latents), path)
    if config.processes == 1 and not any(out.glob("clip-*.pt")):
        raise InputError(
            config.dataroot, f"no scene holds {config.window_frames} frames with images at one of {list(config.rates)} Hz",
            "unpack the camera images, or lower log_clips.window_frames",
        )  # fmt: skip
    return out


def scene_names(config: LogClipsConfig) -> list[str]:
    """The scenes to encode; InputError for one that does not exist, and for none."""
    tables, present = Path(config.dataroot) / config.version, list_scenes(Path(config.dataroot), config.version)
    names = list(config.names) or split_names(tables, config.split, present)
    if missing := [name for name in names if name not in present]:
        raise InputError(
            tables / "scene.json", f"no scene named {missing[0]}", f"use its scenes: {', '.join(present[:5])}, ..."
        )
    if not names:
        raise InputError(tables / "scene.json", "no scene matches", "set log_clips.names or log_clips.split")
    return names


def frame_images(scenario: Scenario) -> NDArray[np.int64]:
    """Per frame and camera the image that shows it [T, V], as an index into ``scene.frames``; -1 where there is none on disk."""
    times, columns = scenario.timestamps_us, []
    found = nearest_frames(scenario.scene, times)
    for channel in CAMERAS:
        nearest, frames = found[channel], scenario.scene.frames[channel]
        there = [
            abs(frames[i].timestamp_us - t) <= _SAME_MOMENT_US and frames[i].path.is_file()
            for i, t in zip(nearest, times, strict=True)
        ]
        columns.append(np.where(there, nearest, -1))
    return np.stack(columns, axis=1)


def windows_of(scenario: Scenario, images_TV: NDArray[np.int64], config: LogClipsConfig) -> dict[str, ClipWindow]:
    """The windows of a scene by the names of their files; says what the scene lacks."""
    scene, usable = scenario.scene, (images_TV >= 0).all(axis=1)
    notes = [*source_notes(scene)]
    if not usable.all():
        notes.append(f"{(~usable).sum()} of {len(usable)} frames are left out: not all six images are on disk")
    found: dict[str, ClipWindow] = {}
    for fps in config.rates:
        rng = np.random.default_rng((config.seed, zlib.crc32(scene.name.encode()), fps))
        rates = (config.given_rate or fps, fps)
        windows = draw_windows(scenario.timestamps_us, usable, rates, config.given, config.window_frames, config.windows, rng)
        if len(windows) < config.windows:
            notes.append(f"{len(windows)} of {config.windows} windows at {fps} Hz")
        found |= {f"clip-{scene.name}-{fps:02d}-{i:02d}.pt": window for i, window in enumerate(windows)}
    for note in notes:
        logger.info("%s: %s", scene.name, note)
    return found


def _pictures(scenario: Scenario, images_V: NDArray[np.int64], image_hw: tuple[int, int], device: torch.device) -> Tensor:
    """The images [V, 3, H, W] in [-1, 1] of a frame."""
    views = [read_images(scenario.scene, c, [int(i)], image_hw)[0] for c, i in zip(CAMERAS, images_V, strict=True)]
    return images_to_tensor(np.stack(views), device)


def _check(config: LogClipsConfig) -> None:
    """InputError for settings that mean nothing."""
    rates = (*config.rates, config.given_rate or CAMERA_HZ)
    if not config.rates or not all(0 < rate <= CAMERA_HZ for rate in rates):
        raise InputError(
            "log_clips.rates",
            f"{list(config.rates)} Hz, given frames at {config.given_rate} Hz",
            f"give rates from 1 to {CAMERA_HZ}",
        )
    if not config.given or not all(0 < given < config.window_frames for given in config.given):
        problem = f"{list(config.given)} of a window of {config.window_frames}"
        raise InputError("log_clips.given", problem, "give at least one frame and leave one to generate")
    if config.windows < 1 or config.processes < 1:
        raise InputError("log_clips", f"{config.windows} windows, {config.processes} processes", "give at least 1 of each")
