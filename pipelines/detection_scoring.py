"""`roadreel score --mmdet3d`: the official detection scores of a network of mmdet3d on a published version's videos, beside true video and the log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dwm.scenes.nuscenes import read_scene
from dwm.scenes.types import Scene
from evaluators.boxes import Boxes, boxes_of_scene
from evaluators.detection import OFFICIAL_CONFIG, evaluate_boxes_in_memory
from evaluators.vad.footage import VadFootage
from pipelines.dataset import Dataset
from pipelines.detecting import FindsBoxes, detect_key_frame, key_images
from pipelines.scoring import LOG, STREAMS, clip_stretches, clips_with_video, with_intervals

Judged = list[list[tuple[Boxes, Boxes]]]  # by clip, of each key frame what is true and what was found, in the ego frame
_COLUMNS = ("mAP", "NDS", "mAP, classes with boxes")


def score_detections(
    path: Path, detector: FindsBoxes, *, rejected: bool = False, dataroot: Path | None = None, scale: float = 1.0,
    skip_missing: bool = False,
) -> str:  # fmt: skip
    """The table as Markdown, over kept clips or over all that have video; ``dataroot`` as for ``score_version``.

    ``scale`` is of the log's images, and ``skip_missing`` leaves out its key frames whose images are missing.

    Raises InputError for a broken version, where no clip has video, and for a log without its images.
    """
    dataset = Dataset.open(path)
    clips, scenes = clips_with_video(dataset, rejected)
    rows: dict[str, Judged] = {}
    if dataroot is not None:
        logs = tqdm(scenes, desc="logs", disable=None)
        rows[LOG] = [_of_log(detector, read_scene(dataroot, *scene, 1.0), scale, skip_missing) for scene in logs]
    for clip_id in tqdm(clips, desc="clips", disable=None):
        for stream, stretch in clip_stretches(dataset, clip_id).items():
            rows.setdefault(STREAMS[stream], []).append(_of_stretch(detector, stretch))
    lines = [f"| video | clips | key frames | {' | '.join(_COLUMNS)} |", "|---" * (3 + len(_COLUMNS)) + "|"]
    for video, judged in rows.items():
        cells = " | ".join(with_intervals(len(judged), lambda chosen, of=judged: _scores([of[k] for k in chosen])))
        lines.append(f"| {video} | {len(judged)} | {sum(map(len, judged))} | {cells} |")
    return "\n".join([f"{dataset.name}: {len(clips)} clips, key frames of 2 Hz, six cameras; {OFFICIAL_CONFIG}", "", *lines])


def _of_log(detector: FindsBoxes, scene: Scene, scale: float, skip_missing: bool) -> list[tuple[Boxes, Boxes]]:
    frames = range(len(scene.sample_tokens))
    kept = [k for k in frames if not skip_missing or all(path.is_file() for path in key_images(scene, k))]
    return [(boxes_of_scene(scene, k), detect_key_frame(detector, scene, k, scale)) for k in kept]


def _of_stretch(detector: FindsBoxes, stretch: VadFootage) -> list[tuple[Boxes, Boxes]]:
    """Given frames are not judged. An agent that no picture shows is no truth."""
    drive = stretch.drive
    intrinsics = np.stack([camera.intrinsics for camera in drive.cameras])
    mounted = np.stack([camera.camera_to_ego for camera in drive.cameras])
    return [
        (drive.seen_boxes(stretch.frames[k], stretch.seen[k])[0], detector.detect(list(stretch.images[k]), intrinsics, mounted))
        for k in range(stretch.given, len(stretch))
    ]


def _scores(clips: Sequence[Sequence[tuple[Boxes, Boxes]]]) -> dict[str, float]:
    frames = {f"{n}.{k}": pair for n, clip in enumerate(clips) for k, pair in enumerate(clip)}
    report = evaluate_boxes_in_memory(
        {token: truth for token, (truth, _) in frames.items()}, {token: found for token, (_, found) in frames.items()}
    )
    return dict(zip(_COLUMNS, (report.mean_ap, report.nds, report.mean_ap_with_truth), strict=True))
