"""`roadreel quality`: Frechet distances between the generated and the true video of a published version.

Both are read from the mp4 files (streams ``rgb`` and ``truth``) at the frames that both show; true video is stored at the scored
frames, every ``evaluate.every_s``. The network of the proving ground always looks, the public ones where their files are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from dwm.errors import InputError
from dwm.scenes.types import CAMERAS
from evaluators.detector.inference import Detector
from evaluators.frechet_features import FrechetFeatures
from evaluators.network_file import NetworkFile
from evaluators.public_networks import ClipResize, I3dFeatures, InceptionFeatures
from evaluators.video_quality import (
    FRONT,
    VideoQuality,
    VideoQualityConfig,
    VideoQualityResult,
    fid,
    fvd,
    proving_ground,
)
from pipelines.dataset import Dataset
from pipelines.scoring import STREAMS, clip_images, clips_with_video, frames_given, frames_shown

_HEAD = ("metric", "samples that begin", "clips", "samples, generated and true", "distance", "true halves, by clip")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Footage:
    """What generated and true video of a clip both show."""

    channels: tuple[str, ...]
    image_hw: tuple[int, int]  # of the generated video
    indices: dict[str, tuple[int, ...]]  # by stream, in its files
    given: int  # of these frames, at the start
    begins_s: float
    frames_per_second: float

    @property
    def frames(self) -> int:
        return len(self.indices["rgb"])


def score_quality(
    path: Path, detector: Path, *, inception: NetworkFile | None = None, i3d: NetworkFile | None = None,
    resize: ClipResize = "anisotropic", views: Literal["all", "front"] = "all", count_given_frames: bool = False,
    rejected: bool = False, resamples: int = 200, device: str = "cpu",
) -> str:  # fmt: skip
    """The table as Markdown with its protocol cards, over kept clips or over all that have video.

    Clips without true video are left out and counted; so is, with its reason, a metric that these clips give no samples for.

    Args:
        detector: weights behind FID-pg and FVD-pg.
        inception: network of FID; None leaves it out, as ``i3d`` does FVD.

    Raises InputError for a broken version or network, where no clip has video or true video, for clips of different kinds, and
    where no metric is left.
    """
    dataset = Dataset.open(path)
    clips = clips_with_video(dataset, rejected)[0]
    footage = {clip_id: found for clip_id in clips if (found := _footage(dataset, clip_id, views)) is not None}
    kind = _common(dataset, footage)
    config = VideoQualityConfig(
        views=views, given_frames=kind.given, count_given_frames=count_given_frames, resamples=resamples
    )
    extractors = [*proving_ground(FrechetFeatures(Detector.load(detector, device)))]
    extractors += [fid(InceptionFeatures(inception, device))] if inception is not None else []
    extractors += [fvd(I3dFeatures(i3d, resize, device))] if i3d is not None else []
    counted = kind.frames - (0 if count_given_frames else kind.given)
    refused = {
        each.metric: each.refusal(clips=len(footage), frames=counted, cameras=len(kind.channels), image_hw=kind.image_hw)
        for each in extractors
    }
    left_out = [f"no {metric}: {reason}" for metric, reason in refused.items() if reason]
    used = [each for each in extractors if not refused[each.metric]]
    if not used:
        raise InputError(
            dataset.folder, "; ".join(left_out), "generate more or longer clips, or score more often: evaluate.every_s"
        )
    results = _compared(dataset, footage, VideoQuality(config, used))
    head = f"{dataset.name}: {len(footage)} clips, generated against true video at the frames that both show"
    if missing := len(clips) - len(footage):
        head += f"; {missing} without true video left out"
    cards = [f"- {result.card.sentence()}" for result in results]
    return "\n".join([head, "", *_table(results), "", *(f"- {reason}" for reason in left_out), *cards])


def _footage(dataset: Dataset, clip_id: str, views: Literal["all", "front"]) -> _Footage | None:
    """None where no camera has both kinds of video, or where they show no moment in common."""
    videos = {(row["channel"], row["stream"]): row for row in dataset.rows("videos", clip_id)}
    channels = tuple(c for c in CAMERAS if (views == "all" or c == FRONT) and all((c, stream) in videos for stream in STREAMS))
    if not channels:
        return None
    rows = {stream: videos[channels[0], stream] for stream in STREAMS}
    shown = {stream: frames_shown(row) for stream, row in rows.items()}
    frames = sorted(shown["rgb"].keys() & shown["truth"].keys())
    if not frames:
        return None
    fps = rows["rgb"]["fps"] * rows["rgb"]["frame_step"]
    step = frames[1] - frames[0] if len(frames) > 1 else max(row["frame_step"] for row in rows.values())
    return _Footage(
        channels=channels, image_hw=(rows["rgb"]["height"], rows["rgb"]["width"]),
        indices={stream: tuple(shown[stream][frame] for frame in frames) for stream in STREAMS},
        given=len(frames_given(dataset, clip_id, channels[0]) & {*frames}), begins_s=frames[0] / fps, frames_per_second=fps / step,
    )  # fmt: skip


def _common(dataset: Dataset, footage: dict[str, _Footage]) -> _Footage:
    """What all clips have alike; InputError where there is none, or where they differ."""
    if not footage:
        fix = "generate from a proving ground with evaluate.counterfactual=true, which stores it"
        raise InputError(dataset.folder, "no clip has true video of the same moments", fix)
    first, *others = footage.items()
    for clip_id, own in others:
        if own != first[1]:
            problem = f"clips {first[0]} and {clip_id} differ in their cameras, size, length, rate or given frames"
            raise InputError(dataset.folder, problem, "compare versions whose clips are of one kind")
    return first[1]


def _compared(dataset: Dataset, footage: dict[str, _Footage], quality: VideoQuality) -> Sequence[VideoQualityResult]:
    for clip_id, own in tqdm(footage.items(), desc="clips", disable=None):
        true, generated = (
            clip_images(dataset, clip_id, stream, own.indices[stream], own.channels) for stream in ("truth", "rgb")
        )
        quality.add(
            true, generated, cameras=own.channels, frames_per_second=own.frames_per_second, begins_s=own.begins_s
        )  # fmt: skip
    return quality.results()


def _table(results: Sequence[VideoQualityResult]) -> list[str]:
    lines = [_row(*_HEAD), _row(*["---"] * len(_HEAD))]
    for result in results:
        score, whole = result.score, result.start_s is None
        lines.append(_row(
            result.metric, "at any time" if whole else f"at {result.start_s:g}-{result.end_s:g} s", str(score.clips),
            f"{score.generated_samples}, {score.true_samples}",
            f"{score.distance:.4f}" if score.interval is None else score.interval.text(".4f"),
            "" if score.floor is None else f"{score.floor:.4f}",
        ))  # fmt: skip
    return lines


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
