"""Metrics of one clip as rows of the ``metrics`` table, each with its protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dwm.scenario.types import Scenario
from dwm.scenes.clips import named_resize
from dwm.scenes.types import CAMERAS
from evaluators.box_finder import BoxFinder, load_box_finder
from evaluators.buckets import BUCKET_S, bucket_means
from evaluators.clip_detection import ClipDetectionScore
from evaluators.detection import DetectionReport
from evaluators.ego_motion.inference import EgoMotionReader
from evaluators.flicker import AppearanceScore
from evaluators.protocol import ProtocolCard
from pipelines.config import EvaluateConfig

Array = NDArray[np.float64]
# Of those that have one; the others of ego motion end in theirs.
_UNITS = {"image.min_spread": "grey levels", "sharpness.mean": "grey levels per pixel"}
_ENDINGS = {"_db": "dB", "_m": "m", "_rad": "rad", "_mps": "m/s"}
_PICTURES = {"generated": "decoded video", "truth": "rendered frames", "log": "logged images"}  # by source of a metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """The networks that look at finished video; an absent one leaves its metrics out."""

    detector: BoxFinder | None = None
    ego_motion: EgoMotionReader | None = None

    @staticmethod
    def load(config: EvaluateConfig) -> Judges:
        """Raises InputError for broken or foreign weights."""
        return Judges(
            detector=load_box_finder(Path(config.detector)) if config.detector else None,
            ego_motion=EgoMotionReader.load(Path(config.ego_motion)) if config.ego_motion else None,
        )


class MetricTable:
    """Rows of the ``metrics`` table with their protocol."""

    def __init__(self, scenario: Scenario, judges: Judges, image_hw: tuple[int, int]) -> None:
        self.rows: list[dict[str, Any]] = []
        self.scenario, self._image_hw, self._judges = scenario, image_hw, judges

    def add(self, metric: str, value: float, unit: str, *, source: str = "generated", samples: int = 1, **columns: Any) -> None:
        weights, scored_hw = self._judge_of(metric)
        card = ProtocolCard(
            metric=metric, samples=samples, unit="frame", frames=len(self.scenario.timestamps_us),
            frames_per_second=self.scenario.fps, cameras=CAMERAS, image_hw=scored_hw,
            resize=named_resize(self._image_hw, scored_hw), source=_PICTURES[source],
            weights_sha256=weights, seed=self.scenario.seed,
        )  # fmt: skip
        self.rows.append({"metric": metric, "value": float(value), "unit": unit, "source": source, "card": card, **columns})

    def _judge_of(self, metric: str) -> tuple[str | None, tuple[int, int]]:
        """Weights behind a metric, and the size that their network looks at."""
        detector, reader = self._judges.detector, self._judges.ego_motion
        if metric.startswith("detection") and detector is not None:
            return detector.sha256, detector.image_hw
        if metric.startswith("ego_motion") and "odometry" not in metric and reader is not None:
            return reader.sha256, reader.model.config.image_hw
        return None, self._image_hw

    def add_buckets(self, metric: str, values: Array, rate_hz: float, unit: str, source: str = "generated") -> None:
        end_s = len(self.scenario.timestamps_us) / self.scenario.fps
        for k, mean in enumerate(bucket_means(values, rate_hz)):
            until_s = min((k + 1) * BUCKET_S, end_s)
            self.add(metric, mean, unit, source=source, bucket_start_s=k * BUCKET_S, bucket_end_s=until_s)


def add_flat(table: MetricTable, metrics: dict[str, float], source: str, samples: int) -> None:
    for name, value in metrics.items():
        unit = next((unit for ending, unit in _ENDINGS.items() if name.endswith(ending)), "")
        table.add(name, value, unit, source=source, samples=samples)


def add_appearance(table: MetricTable, score: AppearanceScore) -> None:
    for name, value in score.metrics().items():
        if not name.endswith("s"):  # the stretches follow as buckets
            table.add(name, value, _UNITS.get(name, ""))
    table.add_buckets("flicker", score.judged(1 - score.change.mean(1) / 255), score.fps, "")
    table.add_buckets("sharpness", score.judged(score.sharpness.mean(1)), score.fps, "grey levels per pixel")


def add_counterfactual(table: MetricTable, psnr: Array, similarity: Array, frames: Sequence[int]) -> None:
    table.add("counterfactual.psnr_db", float(psnr.mean()), "dB", samples=psnr.size)
    table.add("counterfactual.ssim", float(similarity.mean()), "", samples=similarity.size)
    for channel, value in zip(CAMERAS, psnr.mean(0), strict=True):
        table.add("counterfactual.psnr_db", float(value), "dB", channel=channel, samples=len(psnr))
    rate = 1 / max((frames[1] - frames[0]) / table.scenario.fps, 1e-9) if len(frames) > 1 else 1.0
    table.add_buckets("counterfactual.psnr_db", psnr.mean(1), rate, "dB")


def add_detection(
    table: MetricTable, clip: ClipDetectionScore, report: DetectionReport, frames: Sequence[int], source: str
) -> None:
    n = len(frames)
    for name, value in clip.metrics().items():
        if ".recall." not in name:
            table.add(name, value, "", source=source, samples=n)
    for name, score in clip.classes.items():
        if score.boxes:
            table.add("detection.recall", score.recall, "", source=source, samples=n, detection_class=name)
    table.add("detection.map", report.mean_ap, "", source=source, samples=n)
    table.add("detection.nds", report.nds, "", source=source, samples=n)
    table.add("detection.map_with_truth", report.mean_ap_with_truth, "", source=source, samples=n)
    for name, value in report.class_ap.items():
        if report.truth_counts[name]:
            table.add("detection.ap", value, "", source=source, samples=n, detection_class=name)
    rate = table.scenario.fps / (frames[1] - frames[0]) if n > 1 else 1.0
    by_time = np.pad(clip.recall_by_frame, (round(frames[0] / table.scenario.fps * rate), 0), constant_values=math.nan)
    table.add_buckets("detection.recall_by_time", by_time, rate, "", source)
