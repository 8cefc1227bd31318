"""FID, FVD and their stand-ins between true and generated clips, each with its protocol (``evaluators/frechet.py`` for the distance).

What has been seen to change these figures, and is therefore settled here or written on the card: the number of clips and of frames
in a sample, which cameras, whether the given frames count, the resizing (true and generated clips must come in one size), the
network's file. Figures with another card are other figures.

Of 2048 features, moments take 32 MB a clip and side, and an interval of 200 draws hours on one core: lower ``resamples`` there.
Shapes: T frames, V cameras; N samples of L frames, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from dwm.errors import InputError
from evaluators.buckets import BUCKET_S
from evaluators.frechet import FrechetScore, score_frechet
from evaluators.frechet_features import CLIP_FRAMES, LAYER, FrechetFeatures
from evaluators.protocol import ProtocolCard
from evaluators.public_networks import I3dFeatures, Images, InceptionFeatures

Array = NDArray[np.float64]
FRONT = "CAM_FRONT"


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoQualityConfig:
    """Everything but the networks that decides the figures."""

    views: Literal["all", "front"] = "all"  # every camera's video as a sample of its own, or the front camera's alone
    given_frames: int = 1  # at the start of each clip, given to the generator
    count_given_frames: bool = False
    bucket_s: float = BUCKET_S  # length of the stretches that are also scored alone
    resamples: int = 200  # bootstrap draws behind the interval
    seed: int = 0
    source: str = "decoded video"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extractor:
    """What one metric looks at, and with which network."""

    metric: str
    frames: int  # successive frames of one camera to a sample
    features: Callable[[Images], Array]  # [N, D] of uint8 samples [N, L, H, W, 3]
    resize: str
    sha256: str
    image_hw: tuple[int, int] | None = None  # the only size [px] that the network takes; None takes any
    notes: tuple[str, ...] = ()

    def refusal(self, *, clips: int, frames: int, cameras: int, image_hw: tuple[int, int]) -> str | None:
        """Why so many clips of ``frames`` frames that count do not make a figure with a floor; None where they do."""
        if self.image_hw is not None and self.image_hw != image_hw:
            return f"its network reads images of {_by(self.image_hw)} px, these have {_by(image_hw)}"
        if frames < self.frames:
            return f"a sample takes {self.frames} successive frames, {frames} of a clip count"
        if not _enough(frames // self.frames * cameras, clips):
            return f"{clips} clips give {frames // self.frames * cameras * clips} samples"
        return None


def fid(network: InceptionFeatures) -> Extractor:
    """Every image a sample."""
    return Extractor(
        metric="FID", frames=1, features=lambda samples: network.of_images(samples[:, 0]), resize=network.resize,
        sha256=network.sha256,
    )  # fmt: skip


def fvd(network: I3dFeatures, clip_frames: int = 16) -> Extractor:
    """Every ``clip_frames`` successive frames of a camera a sample; figures of other lengths are on another scale."""
    return Extractor(
        metric="FVD", frames=clip_frames, features=network.of_clips, resize=network.resize, sha256=network.sha256,
        notes=(_length(clip_frames),),
    )  # fmt: skip


def proving_ground(network: FrechetFeatures) -> tuple[Extractor, ...]:
    """FID-pg and FVD-pg."""
    return tuple(
        Extractor(
            metric=metric, frames=frames, features=features, resize=network.resize, sha256=network.sha256,
            image_hw=network.image_hw, notes=(f"layer {LAYER}", *([_length(frames)] if frames > 1 else [])),
        )
        for metric, frames, features in (("FID-pg", 1, network.of_images), ("FVD-pg", CLIP_FRAMES, network.of_clips))
    )  # fmt: skip


def _length(frames: int) -> str:
    return f"{frames} successive frames to a sample"


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoQualityResult:
    """One distance: of whole clips, or of the samples that begin within a stretch."""

    metric: str
    start_s: float | None  # None for whole clips
    end_s: float | None
    score: FrechetScore  # with interval and floor
    card: ProtocolCard


@dataclass(frozen=True, slots=True, kw_only=True)
class _Samples:
    """Features of one clip by one extractor."""

    features: Array  # [N, D]
    starts_s: Array  # [N] when each begins, from the clip's first frame


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What all clips share."""

    frames: int
    cameras: tuple[str, ...]
    image_hw: tuple[int, int]
    frames_per_second: float
    start_s: float  # of the first frame that counts


class VideoQuality:
    """Takes clips one after the other and keeps their features alone."""

    def __init__(self, config: VideoQualityConfig, extractors: Sequence[Extractor]) -> None:
        self.config, self._extractors = config, tuple(extractors)
        # (true, generated) by clip
        self._pairs: dict[str, list[tuple[_Samples, _Samples]]] = {extractor.metric: [] for extractor in extractors}
        self._shape: _Shape | None = None

    def add(
        self, true: Images, generated: Images, *, cameras: Sequence[str], frames_per_second: float, begins_s: float = 0.0
    ) -> None:
        """One clip, both of it uint8 [T, V, H, W, 3] and of the same moments, the first of them ``begins_s`` into the clip.

        Raises:
            InputError: clips of different sizes, lengths, cameras or rates, or too short for one sample.
        """
        if true.shape != generated.shape:
            problem = f"true frames {true.shape} and generated ones {generated.shape}"
            raise InputError("video quality", problem, "bring both to one size by the same steps")
        if true.ndim != 5 or true.shape[1] != len(cameras):
            raise InputError("video quality", f"frames {true.shape} of {len(cameras)} cameras", "give [T, V, H, W, 3]")
        used = list(cameras) if self.config.views == "all" else [FRONT]
        if missing := [name for name in used if name not in cameras]:
            raise InputError("video quality", f"no {missing[0]} among {', '.join(cameras)}", 'give it, or score views="all"')
        rows = [list(cameras).index(name) for name in used]
        first = 0 if self.config.count_given_frames else self.config.given_frames
        h, w = true.shape[2:4]
        frames = len(true) - first
        start_s = begins_s + first / frames_per_second
        shape = _Shape(
            frames=frames, cameras=tuple(used), image_hw=(h, w), frames_per_second=frames_per_second, start_s=start_s
        )
        if self._shape not in (None, shape):
            raise InputError("video quality", f"a clip of {shape} after {self._shape}", "score clips of one kind together")
        sides = [
            {each.metric: _samples(each, clip[first:, rows], shape) for each in self._extractors} for clip in (true, generated)
        ]
        # All or nothing: a clip that is too short for one network must not stay with the other.
        self._shape = shape
        for metric, pairs in self._pairs.items():
            pairs.append((sides[0][metric], sides[1][metric]))

    def results(self) -> tuple[VideoQualityResult, ...]:
        """Of every extractor: whole clips first, then stretch by stretch, where true halves hold two samples each or more.

        Raises:
            InputError: no clips, or too few samples in them.
        """
        if self._shape is None:
            raise InputError("video quality", "no clips", "add at least one")
        return tuple(result for extractor in self._extractors for result in self._results_of(extractor))

    def _results_of(self, extractor: Extractor) -> list[VideoQualityResult]:
        pairs = self._pairs[extractor.metric]
        # Rounding must not put a sample that begins at 10 s into the stretch before.
        stretch = np.floor(pairs[0][0].starts_s / self.config.bucket_s + 1e-9).astype(np.int64)
        found, counts = np.unique(stretch, return_counts=True)
        enough = [int(k) for k, count in zip(found, counts, strict=True) if _enough(int(count), len(pairs))]
        out = [self._result(extractor, np.ones(len(stretch), bool), None)]
        return out + [self._result(extractor, stretch == k, k) for k in enough]

    def _result(self, extractor: Extractor, chosen: NDArray[np.bool_], stretch: int | None) -> VideoQualityResult:
        true, generated = ([pair[side].features[chosen] for pair in self._pairs[extractor.metric]] for side in (0, 1))
        score = score_frechet(true, generated, np.random.default_rng(self.config.seed), self.config.resamples)
        start = None if stretch is None else stretch * self.config.bucket_s
        end = None if start is None else start + self.config.bucket_s
        card = self._card(extractor, score, start, end)
        return VideoQualityResult(metric=extractor.metric, start_s=start, end_s=end, score=score, card=card)

    def _card(self, extractor: Extractor, score: FrechetScore, start_s: float | None, end_s: float | None) -> ProtocolCard:
        config, shape = self.config, self._shape
        assert shape is not None
        given = "count" if config.count_given_frames else "are left out"
        notes = ["every camera a sample of its own" if config.views == "all" else "front camera only"]
        notes += [f"the {config.given_frames} given frames of a clip {given}", *extractor.notes]
        notes += [] if start_s is None else [f"samples that begin at {start_s:g} to {end_s:g} s"]
        return ProtocolCard(
            metric=extractor.metric, samples=score.clips, unit="clip", frames=shape.frames,
            frames_per_second=shape.frames_per_second, cameras=shape.cameras, image_hw=shape.image_hw, resize=extractor.resize,
            source=config.source, weights_sha256=extractor.sha256, seed=config.seed, interval=score.interval,
            notes=(*notes, *score.notes()),
        )  # fmt: skip


def _samples(extractor: Extractor, clip: Images, shape: _Shape) -> _Samples:
    """Of what counts of a clip, [T, V, H, W, 3]."""
    length, views = extractor.frames, clip.shape[1]
    count = len(clip) // length
    if not count:
        raise InputError(extractor.metric, f"{len(clip)} frames that count", f"give {length}, or ask for shorter samples")
    parts = rearrange(clip[: count * length], "(n t) v h w c -> (n v) t h w c", t=length)
    starts_s = shape.start_s + length * np.repeat(np.arange(count), views) / shape.frames_per_second
    return _Samples(features=extractor.features(parts), starts_s=starts_s)


def _enough(samples: int, clips: int) -> bool:
    """Whether true halves, by clip, hold two samples each or more; a single clip has no halves."""
    return samples * max(1, clips // 2) > 1


def _by(image_hw: tuple[int, int]) -> str:
    return f"{image_hw[0]}x{image_hw[1]}"
