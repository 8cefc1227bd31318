"""FID and FVD between true and generated clips, each with the protocol it holds under (``evaluators/frechet.py`` for the distance).

What has been seen to change these figures, and is therefore settled here or written on the card: the number of clips and of frames
in a sample, which cameras, whether the given frames count, the resizing (true and generated clips must come in one size), the
network's file. Figures with another card are other figures.

Of 2048 features, moments take 32 MB a clip and side, and an interval of 200 draws hours on one core: lower ``resamples`` there.
Shapes: T frames, V cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from dwm.errors import InputError
from evaluators.buckets import BUCKET_S
from evaluators.frechet import FrechetScore, score_frechet
from evaluators.protocol import ProtocolCard
from evaluators.public_networks import I3dFeatures, Images, InceptionFeatures

Array = NDArray[np.float64]
FRONT = "CAM_FRONT"


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoQualityConfig:
    """Everything but the networks that decides the figures."""

    views: Literal["all", "front"] = "all"  # every camera's video as a sample of its own, or the front camera's alone
    clip_frames: int = 16  # successive frames of an FVD sample; figures of other lengths are on another scale
    given_frames: int = 1  # at the start of each clip, given to the generator
    count_given_frames: bool = False
    bucket_s: float = BUCKET_S  # length of the stretches that are also scored alone
    resamples: int = 200  # bootstrap draws behind the interval
    seed: int = 0
    source: str = "decoded video"


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoQualityResult:
    """One distance: of whole clips, or of the samples that begin within a stretch."""

    metric: str  # FID or FVD
    start_s: float | None  # None for whole clips
    end_s: float | None
    score: FrechetScore  # with interval and floor
    card: ProtocolCard


@dataclass(frozen=True, slots=True, kw_only=True)
class _Samples:
    """Features of one clip by one network."""

    features: Array  # [N, D]
    starts_s: Array  # [N] when each begins, from the clip's first frame


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What all clips share."""

    frames: int
    cameras: tuple[str, ...]
    image_hw: tuple[int, int]
    frames_per_second: float


class VideoQuality:
    """Takes clips one after the other and keeps their features alone."""

    def __init__(
        self, config: VideoQualityConfig, inception: InceptionFeatures | None = None, i3d: I3dFeatures | None = None
    ) -> None:
        self.config = config
        self._networks = {"FID": inception, "FVD": i3d}
        self._pairs: dict[str, list[tuple[_Samples, _Samples]]] = {"FID": [], "FVD": []}  # (true, generated) by clip
        self._shape: _Shape | None = None

    def add(self, true: Images, generated: Images, *, cameras: Sequence[str], frames_per_second: float) -> None:
        """One clip, both of it uint8 [T, V, H, W, 3] and of the same moments.

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
        shape = _Shape(frames=frames, cameras=tuple(used), image_hw=(h, w), frames_per_second=frames_per_second)
        if self._shape not in (None, shape):
            raise InputError("video quality", f"a clip of {shape} after {self._shape}", "score clips of one kind together")
        asked = [metric for metric, network in self._networks.items() if network is not None]
        start_s = first / frames_per_second
        sides = [
            {metric: self._samples(metric, clip[first:, rows], start_s, frames_per_second) for metric in asked}
            for clip in (true, generated)
        ]
        # All or nothing: a clip that is too short for one network must not stay with the other.
        self._shape = shape
        for metric in asked:
            self._pairs[metric].append((sides[0][metric], sides[1][metric]))

    def results(self) -> tuple[VideoQualityResult, ...]:
        """Of every network: whole clips first, then stretch by stretch, where true halves hold two samples each or more.

        Raises:
            InputError: no clips, or too few samples in them.
        """
        if self._shape is None:
            raise InputError("video quality", "no clips", "add at least one")
        return tuple(result for metric, pairs in self._pairs.items() if pairs for result in self._results_of(metric, pairs))

    def _results_of(self, metric: str, pairs: list[tuple[_Samples, _Samples]]) -> list[VideoQualityResult]:
        # Rounding must not put a sample that begins at 10 s into the stretch before.
        stretch = np.floor(pairs[0][0].starts_s / self.config.bucket_s + 1e-9).astype(np.int64)
        found, counts = np.unique(stretch, return_counts=True)
        enough = found[counts * max(1, len(pairs) // 2) > 1]
        out = [self._result(metric, pairs, np.ones(len(stretch), bool), None)]
        return out + [self._result(metric, pairs, stretch == k, int(k)) for k in enough]

    def _result(
        self, metric: str, pairs: list[tuple[_Samples, _Samples]], chosen: NDArray[np.bool_], stretch: int | None
    ) -> VideoQualityResult:
        true, generated = ([pair[side].features[chosen] for pair in pairs] for side in (0, 1))
        score = score_frechet(true, generated, np.random.default_rng(self.config.seed), self.config.resamples)
        start = None if stretch is None else stretch * self.config.bucket_s
        end = None if start is None else start + self.config.bucket_s
        card = self._card(metric, score, start, end)
        return VideoQualityResult(metric=metric, start_s=start, end_s=end, score=score, card=card)

    def _samples(self, metric: str, clip: Images, start_s: float, rate: float) -> _Samples:
        """Of what counts of a clip, [T, V, H, W, 3], its first frame at ``start_s``."""
        network, views = self._networks[metric], clip.shape[1]
        if isinstance(network, InceptionFeatures):
            starts_s = start_s + np.repeat(np.arange(len(clip)), views) / rate
            return _Samples(features=network.of_images(rearrange(clip, "t v h w c -> (t v) h w c")), starts_s=starts_s)
        assert isinstance(network, I3dFeatures)
        length = self.config.clip_frames
        count = len(clip) // length
        if not count:
            raise InputError("FVD", f"{len(clip)} frames that count", f"give {length}, or lower clip_frames")
        parts = rearrange(clip[: count * length], "(n t) v h w c -> (n v) t h w c", t=length)
        starts_s = start_s + length * np.repeat(np.arange(count), views) / rate
        return _Samples(features=network.of_clips(parts), starts_s=starts_s)

    def _card(self, metric: str, score: FrechetScore, start_s: float | None, end_s: float | None) -> ProtocolCard:
        config, shape, network = self.config, self._shape, self._networks[metric]
        assert shape is not None and network is not None
        given = "count" if config.count_given_frames else "are left out"
        notes = ["every camera a sample of its own" if config.views == "all" else "front camera only"]
        notes += [f"the {config.given_frames} given frames of a clip {given}"]
        notes += [f"{config.clip_frames} successive frames to a sample"] if metric == "FVD" else []
        notes += [] if start_s is None else [f"samples that begin at {start_s:g} to {end_s:g} s"]
        return ProtocolCard(
            metric=metric, samples=score.clips, unit="clip", frames=shape.frames, frames_per_second=shape.frames_per_second,
            cameras=shape.cameras, image_hw=shape.image_hw, resize=network.resize, source=config.source,
            weights_sha256=network.sha256, seed=config.seed, interval=score.interval, notes=(*notes, *score.notes()),
        )  # fmt: skip
