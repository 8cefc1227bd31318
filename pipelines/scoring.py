"""`roadreel score`: what VAD makes of a published version's videos, beside what it makes of the truth (MiLA, table 7).

Each clip is read at its key frames, six cameras at once, from the tables and the mp4 files alone. True video is what the version stores
as stream ``truth``; both rows then judge the same key frames. Frames that the log gave are read, not judged. The log's own images, with
its annotations and CAN bus, may stand beside them: that is truth where no world can be rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dwm.errors import InputError
from dwm.models.weights import load_model
from dwm.scenes.clips import read_video_frames
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.types import CAMERAS
from evaluators.map_truth import map_lines, open_map
from evaluators.mapping import MAP_CLASSES, THRESHOLDS_M, MapLine
from evaluators.planning import HORIZONS_S
from evaluators.protocol import bootstrap_interval
from evaluators.vad.footage import VadFootage
from evaluators.vad.logged import logged_stretch
from evaluators.vad.model import VAD
from evaluators.vad.score import JudgedFrame, judge_stretch, score_frames
from evaluators.vad.weights import load_public
from pipelines.atomic import sha256_file
from pipelines.clip_drive import ClipDrive, read_clip_drive
from pipelines.dataset import Dataset

Judged = list[list[JudgedFrame]]  # by clip
STREAMS = {"truth": "true video", "rgb": "generated"}
LOG = "the log's images"
_RESAMPLES = 100
_COLUMNS = ("mAP_OD", "NDS", "mAP_Line", "Recall_Line")


def score_version(
    path: Path, weights: Path, size: str, *, rejected: bool = False, dataroot: Path | None = None, device: str = "cpu"
) -> str:
    """The tables as Markdown, over kept clips or over all that have video.

    Args:
        size: network of a public checkpoint.
        dataroot: where the clips' source scenes lie; None leaves the log out.

    Raises InputError for a broken version or weights, where no clip has video, and for a log without images or map expansion.
    """
    dataset, model = Dataset.open(path), load_vad(weights, size).to(device)
    clips, scenes = clips_with_video(dataset, rejected)
    rows: dict[str, Judged] = {}
    if dataroot is not None:
        logs = tqdm(scenes, desc="logs", disable=None)
        rows[LOG] = [judge_stretch(model, logged_stretch(read_scene(dataroot, *scene)), device) for scene in logs]
    for clip_id in tqdm(clips, desc="clips", disable=None):
        for stream, stretch in clip_stretches(dataset, clip_id, dataroot).items():
            rows.setdefault(STREAMS[stream], []).append(judge_stretch(model, stretch, device))
    head = f"{dataset.name}: {len(clips)} clips, key frames of 2 Hz, six cameras; VAD weights {sha256_file(weights)[:12]}"
    if STREAMS["truth"] not in rows:
        head += "; no true video at every key frame: evaluate.every_s=0.5 stores it where a world can be rendered"
    return "\n\n".join([head, *vad_tables(rows)])


def clips_with_video(dataset: Dataset, rejected: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Kept clips, or all that have video, and their source scenes (version, name); InputError where there is none."""
    kept = [row for row in dataset.clips(keep=None if rejected else True).to_pylist() if row["n_frames"]]
    if not kept:
        fix = "generate with looser thresholds" if rejected else "score the rejected ones too: --rejected"
        raise InputError(dataset.folder, "no clip has video" if rejected else "no clip passed the gate", fix)
    scenes = sorted({(row["source_dataset"], row["source_scene_name"]) for row in kept})
    return [row["clip_id"] for row in kept], scenes


def load_vad(weights: Path, size: str) -> VAD:
    """Own weights (.safetensors), or a public checkpoint of that size."""
    return load_model(weights, "vad")[0] if weights.suffix == ".safetensors" else load_public(weights, size)


def clip_stretches(dataset: Dataset, clip_id: str, dataroot: Path | None = None) -> dict[str, VadFootage]:
    """Key frames of a clip by stream, the same ones in each; true video that leaves key frames out is left out.

    The map's lines are those of the map expansion in ``dataroot``, from which the log's are made; without, the clip's own, which
    outline the drivable area instead of roads and lanes.
    """
    clip = read_clip_drive(dataset, clip_id)
    videos = {row["stream"]: row for row in dataset.rows("videos", clip_id, channel=CAMERAS[0])}
    streams = [stream for stream in STREAMS if stream in videos]
    shown = {stream: frames_shown(row) for stream, row in videos.items()}
    stored = [k for k, frame in enumerate(clip.frames) if all(frame in shown[s] for s in streams)]
    if stored != list(range(stored[0] if stored else 0, len(clip.frames))):
        streams = ["rgb"]
    kept = [k for k, frame in enumerate(clip.frames) if all(frame in shown[s] for s in streams)]
    given = frames_given(dataset, clip_id, CAMERAS[0])
    frames = [clip.frames[k] for k in kept]
    lines = _lines(dataset, clip_id, clip, kept, dataroot)
    return {
        stream: VadFootage(
            drive=clip.drive, frames=tuple(kept), images=clip_images(dataset, clip_id, stream, [shown[stream][f] for f in frames]),
            lines=lines, seen=clip.seen[kept], given=len(given & {*frames}),
        )
        for stream in streams
    }  # fmt: skip


def _lines(
    dataset: Dataset, clip_id: str, clip: ClipDrive, kept: Sequence[int], dataroot: Path | None
) -> tuple[tuple[MapLine, ...], ...]:
    if dataroot is None:
        return tuple(clip.lines_at(k) for k in kept)
    nusc_map = open_map(dataroot, dataset.rows("clips", clip_id)[0]["location"])
    return tuple(map_lines(nusc_map, clip.drive.ego_to_global[k] @ clip.drive.lidar_to_ego) for k in kept)


def frames_shown(video: dict[str, Any]) -> dict[int, int]:
    """Frame of the clip -> index in the file, of a row of ``videos``."""
    return {video["first_frame"] + k * video["frame_step"]: k for k in range(video["n_frames"])}


def frames_given(dataset: Dataset, clip_id: str, channel: str) -> set[int]:
    """Frames of a clip that the log gave."""
    rows = dataset.rows("camera_frames", clip_id, channel=channel)
    return {row["frame_index"] for row in rows if row["source_sample_data_token"] is not None}


def clip_images(
    dataset: Dataset, clip_id: str, stream: str, indices: Sequence[int], channels: Sequence[str] = CAMERAS
) -> NDArray[np.uint8]:
    """Decoded frames [K, V, H, W, 3] at indices of a stream's files."""
    paths = [dataset.video_path(clip_id, channel, stream) for channel in channels]
    return np.stack([read_video_frames(path, list(indices)) for path in paths], axis=1)


def vad_tables(rows: dict[str, Judged]) -> list[str]:
    """Everything VAD is scored by: MiLA's columns, map lines, forecasts and planning."""
    return [quality_table(rows), map_table(rows), forecast_table(rows), planning_table(rows)]


def quality_table(rows: dict[str, Judged]) -> str:
    """MiLA's four columns by kind of video, with 95 % intervals over clips."""
    lines = ["| video | clips | key frames | " + " | ".join(_COLUMNS) + " |", "|---|---|---|---|---|---|---|"]
    for video, judged in rows.items():
        cells = " | ".join(
            with_intervals(len(judged), lambda chosen, of=judged: score_frames([of[k] for k in chosen]).table_7())
        )
        lines.append(f"| {video} | {len(judged)} | {sum(map(len, judged))} | {cells} |")
    return "\n".join(lines)


def map_table(rows: dict[str, Judged]) -> str:
    """AP and recall of lines by class and distance."""
    reports = {video: score_frames(judged).map for video, judged in rows.items()}
    lines = [
        f"| video | lines | {' | '.join(f'AP, recall at {t:g} m' for t in THRESHOLDS_M)} |",
        "|---" * (2 + len(THRESHOLDS_M)) + "|",
    ]
    for video, report in reports.items():
        for name in MAP_CLASSES:
            own = [score for score in report.scores if score.class_name == name]
            cells = " | ".join(f"{score.ap:.3f}, {score.recall:.3f}" for score in own)
            lines.append(f"| {video} | {name} ({own[0].truths}) | {cells} |")
    return "\n".join(lines)


def forecast_table(rows: dict[str, Judged]) -> str:
    """Where road users go, as VAD scores it; agents with a detection above its least score are matched."""
    lines = ["| video | forecasts of | true | matched | ADE [m] | FDE [m] | MR | EPA |", "|---" * 8 + "|"]
    for video, judged in rows.items():
        for name, score in score_frames(judged).motion.items():
            figures = (score.ade_m, score.fde_m, score.miss_rate, score.epa)
            cells = " | ".join(f"{value:.2f}" for value in figures)
            lines.append(f"| {video} | {name} | {score.truths} | {score.matched_full} | {cells} |")
    return "\n".join(lines)


def with_intervals(clips: int, scores_of: Callable[[Sequence[int]], dict[str, float]]) -> list[str]:
    """Scores by name of a choice of clips, with their 95 % intervals over clips; of one clip there is none."""

    @cache
    def of(chosen: tuple[int, ...]) -> dict[str, float]:
        return scores_of(chosen)

    everything = of(tuple(range(clips)))
    if clips == 1:
        return [f"{value:.3f}" for value in everything.values()]
    # The same seed draws the same clips for every column.
    intervals = [
        bootstrap_interval(
            np.arange(clips, dtype=np.float64), np.random.default_rng(0), lambda drawn, name=name: of(tuple(sorted(drawn.astype(int))))[name], _RESAMPLES
        )
        for name in everything
    ]  # fmt: skip
    return [each.text(".3f") for each in intervals]


def planning_table(rows: dict[str, Judged]) -> str:
    """L2 and collisions by kind of video, in both conventions, and what the collisions hang on."""
    lines = [
        "| video | convention | key frames | L2 1 / 2 / 3 s [m] | collisions 1 / 2 / 3 s [%] | heading-aware [%] |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    reports = {video: score_frames(judged).planning for video, judged in rows.items()}
    for video, report in reports.items():
        for name, score in (
            ("mean up to (ST-P3, VAD)", report.average),
            ("at time (as UniAD; obstacles as VAD)", report.at_time),
        ):
            cells = [
                " / ".join(f"{score.l2_m[h]:.2f}" for h in HORIZONS_S),
                *(
                    " / ".join(f"{100 * rate[h]:.2f}" for h in HORIZONS_S)
                    for rate in (score.grid_collision_rate, score.heading_collision_rate)
                ),
            ]
            lines.append(f"| {video} | {name} | {report.frames} | " + " | ".join(cells) + " |")
    any_of = next(iter(reports.values()))
    obstacles = " and ".join(f"{kind}s" for kind in any_of.obstacle_kinds) + (
        " that VAD's labels hold" if any_of.only_vad_labels else ""
    )
    cut = ", ".join(f"{report.frames_cut_short} ({video})" for video, report in reports.items())
    return "\n".join(
        [
            *lines,
            "",
            f"Ego box: {any_of.ego.name}; obstacles: {obstacles}; key frames without six true positions, left out: {cut}.",
        ]
    )
