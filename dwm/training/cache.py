"""From true videos to what training reads: rendered drives on disk, then windows of latents with their conditions.

Two steps, each resumable file by file: ``render_drives`` (pixels, for the codec and everything after) and
``encode_clips`` (latents and memory, once a codec exists). A clip's memory comes from the codec's own reconstruction
of its last condition frame, which is what a roll-out carries along; in a share of the drives the street that another drive's
LiDAR and cameras saw takes its place where that is known (memory mode ``log``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from dwm.codec.interface import Codec
from dwm.conditioning.build import ScenarioConditioner, images_to_tensor
from dwm.conditioning.things import Things
from dwm.device import pick_device
from dwm.errors import InputError
from dwm.models.text_encoder import TextEncoder
from dwm.scenario.types import Scenario
from dwm.scenes.proving_ground.city import FIRST_HELD_OUT_TOWN
from dwm.training.clips import TrainingClip
from dwm.training.config import ClipsConfig, DrivesConfig
from dwm.training.encoding import ClipWindow, encode_window, save_clip
from dwm.training.scanned_log import scan_log
from dwm.training.sequences import Town, drive, open_town, render_frames

_FPS = 12
WARMUP_FRAMES = 12  # traffic settles before anything is filmed


def render_drives(config: DrivesConfig, progress: bool = True) -> Path:
    """Render every drive that is not there yet; returns the folder."""
    check_towns(config.first_town, config.towns)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    device = pick_device(config.device)
    town: Town | None = None
    todo = [(t, d) for t in range(config.first_town, config.first_town + config.towns) for d in range(config.drives_per_town)]
    for town_seed, drive_seed in tqdm(todo, desc="rendering drives", disable=None if progress else True):
        target = out / f"drive-{town_seed:04d}-{drive_seed:04d}.npy"
        if target.exists():
            continue
        if town is None or town.city.seed != town_seed:
            town = open_town(town_seed, device)
        scenario, weather = drive(town, drive_seed)
        runs = _runs(len(scenario.timestamps_us), config, np.random.default_rng((town_seed, drive_seed, 1)))
        frames = np.array(sorted({f for _, run in runs for f in run}))
        images = render_frames(town, scenario, weather, frames)
        record = {"town": town_seed, "drive": drive_seed, "weather": weather, "frames": frames.tolist(), "runs": runs}
        _write(target.with_suffix(".json"), json.dumps(record).encode())
        temporary = target.with_suffix(".part")
        with temporary.open("wb") as file:
            np.save(file, images.reshape(-1, *images.shape[2:]))  # views of a frame are neighbours
        os.replace(temporary, target)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedDrive:
    """A drive as ``render_drives`` left it."""

    name: str
    town: Town  # without a renderer
    scenario: Scenario
    frames: list[int]  # of the scenario
    images: NDArray[np.uint8]  # [T, V, H, W, 3], memory mapped


def rendered_drives(folder: Path, progress: bool = True, part: int = 0, parts: int = 1) -> Iterator[RenderedDrive]:
    """The drives of a folder, town by town, or every ``parts``-th one from number ``part`` on; InputError where there is none."""
    paths = sorted(folder.glob("drive-*.npy"))[part::parts]
    if not paths:
        raise InputError(folder, "no rendered drives", "run the training target 'drives' first")
    town: Town | None = None
    for path in tqdm(paths, desc="reading drives", disable=None if progress else True):
        record = json.loads(path.with_suffix(".json").read_text())
        if town is None or town.city.seed != record["town"]:
            town = open_town(record["town"], render=False)
        scenario, _ = drive(town, record["drive"])
        images = np.load(path, mmap_mode="r")
        shaped = images.reshape(len(record["frames"]), -1, *images.shape[1:])
        yield RenderedDrive(name=path.stem, town=town, scenario=scenario, frames=record["frames"], images=shaped)


def check_towns(first_town: int, towns: int) -> None:
    """Raises InputError for towns that published figures are measured in."""
    if first_town + towns > FIRST_HELD_OUT_TOWN:
        raise InputError(
            "towns", f"seeds reach {FIRST_HELD_OUT_TOWN}, which is held out", "use fewer towns or a lower first_town"
        )


def _runs(n_frames: int, config: DrivesConfig, rng: np.random.Generator) -> list[tuple[int, list[int]]]:
    """(fps, frame indices) of the stretches to film."""
    runs = [_run(n_frames, _FPS, config.frames_12hz, "drives.frames_12hz", rng)] if config.frames_12hz else []
    runs += [_run(n_frames, fps, config.low_fps_frames, "drives.low_fps_frames", rng) for fps in config.low_fps]
    if not runs:
        raise InputError("drives", "neither frames_12hz nor low_fps asks for a frame", "give one of them")
    return runs


def _run(n_frames: int, fps: int, frames: int, setting: str, rng: np.random.Generator) -> tuple[int, list[int]]:
    """A stretch somewhere in the drive."""
    stride = _FPS // fps
    reach = n_frames - stride * (frames - 1)
    if reach <= WARMUP_FRAMES:
        most = (n_frames - WARMUP_FRAMES - 1) // stride + 1
        raise InputError(setting, f"{frames} frames at {fps} Hz of a drive of {n_frames}", f"give at most {most}")
    start = int(rng.integers(WARMUP_FRAMES, reach))
    return fps, list(range(start, start + stride * frames, stride))


@torch.inference_mode()
def encode_clips(
    config: ClipsConfig, codec: Codec, progress: bool = True, part: int = 0, text: TextEncoder | None = None
) -> Path:  # fmt: skip
    """Cut every rendered drive into windows and encode them; returns the folder. Of several processes each takes a part."""
    drives, out = Path(config.drives), Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    records = sorted(drives.glob("drive-*.npy"))
    if not records:
        raise InputError(drives, "no rendered drives", "run the training target 'drives' first")
    town: Town | None = None
    things = Things.load(Path(config.things)) if config.things else Things.none()
    for path in tqdm(records, desc="encoding clips", disable=None if progress and not part else True):
        record = json.loads(path.with_suffix(".json").read_text())
        if record["town"] % config.processes != part:
            continue
        chance = np.random.default_rng((record["town"], record["drive"], 2))
        windows = [window for fps, run in record["runs"] for window in _windows(fps, run, config, chance)]
        if not windows:
            raise InputError(
                path, f"no stretch of {config.window_frames} frames",
                "render with as many drives.frames_12hz, or lower clips.window_frames",
            )  # fmt: skip
        names = [out / f"{path.stem.replace('drive', 'clip')}-{i:02d}.pt" for i in range(len(windows))]
        if all(name.exists() for name in names):
            continue
        if town is None or town.city.seed != record["town"]:
            town = open_town(record["town"], pick_device(config.device), render=config.log_share > 0)
        scenario, weather = drive(town, record["drive"])
        other = np.random.default_rng((record["town"], record["drive"], 4))
        log = other.random() < config.log_share
        points = scan_log(town, scenario, weather, record["frames"], other) if log else None
        conditioner = ScenarioConditioner(scenario, pick_device(config.device), points, downsample=codec.downsample, text=text)
        images = _images(np.load(path, mmap_mode="r"), record["frames"], conditioner.device)
        latents = {frame: codec.encode(image) for frame, image in images.items()}
        for name, window in zip(names, windows, strict=True):
            if not name.exists():
                clip = encode_window(conditioner, codec, things, window, images, latents, log=log)
                save_clip(clip, name)
    return out


def _windows(fps: int, run: list[int], config: ClipsConfig, chance: np.random.Generator) -> list[ClipWindow]:
    """Windows of a filmed stretch: each from some frame to the stretch's end, some frames between left out.

    Appearance comes from anywhere in the stretch, so that it mostly shows the very place, and the model learns to trust
    it; in a roll-out it trusts what was laid there from elsewhere.
    """
    windows = []
    for i, start in enumerate(range(0, len(run) - config.window_frames + 1, config.window_step)):
        given = 1 + i % 2
        between = chance.choice(np.arange(start + given, len(run) - 1), config.window_frames - given - 1, replace=False)
        kept = [*range(start, start + given), *np.sort(between).tolist(), len(run) - 1]
        windows.append(ClipWindow(fps=fps, frames=[run[k] for k in kept], given=given, look=int(chance.choice(run[start:]))))
    return windows


def _images(images: NDArray[np.uint8], frames: list[int], device: torch.device) -> dict[int, Tensor]:
    """Pictures [V, 3, H, W] in [-1, 1] of every filmed frame of a drive."""
    views = images.reshape(len(frames), -1, *images.shape[1:])
    return {f: images_to_tensor(np.array(view), device) for f, view in zip(frames, views, strict=True)}


class ClipCache:
    """Encoded clips in a folder. New files appear after ``refresh``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refresh()
        if not self._paths:
            raise InputError(folder, "no encoded clips", "run the training target 'clips' first")

    def refresh(self) -> None:
        self._paths = sorted(self.folder.glob("clip-*.pt"))

    def __len__(self) -> int:
        return len(self._paths)

    def get(self, index: int, generator: np.random.Generator) -> TrainingClip:
        raw = torch.load(self._paths[index], weights_only=True, mmap=True)  # a window of a long clip is a part of its file
        return TrainingClip(
            latents_TVCHW=raw["latents"], memory_TVCHW=raw["memory"], memory_valid_TV1HW=raw["memory_valid"],
            appearance_TVCHW=raw["appearance"], appearance_known_TV1HW=raw["appearance_known"],
            layout_TVCHW=raw["layout"], waypoints_TK=raw["waypoints"], cameras_VK=raw["cameras"], times_T=raw["times"],
            fps=raw["fps"], text_L=raw["text"], given=raw["given"], text_features_LK=raw.get("text_features"),
        )  # fmt: skip


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
