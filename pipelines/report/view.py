"""What the report shows, worked out from the tables of a dataset version: plain records, no markup decisions."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from numpy.typing import NDArray

from dwm.scenes.types import DETECTION_CLASSES
from pipelines import schema
from pipelines.report import figures

Array = NDArray[np.float64]
Row = dict[str, Any]

# Order and names of the curves people look at first; other metrics with buckets follow under their own name.
CURVE_TITLES = (
    ("psnr", "PSNR to the true video"),
    ("recall", "detector recall"),
    ("flicker", "temporal flicker"),
    ("sharpness", "sharpness"),
)
_SUMMARY = re.compile(r"(?:^|[/_.])(map|nds)(?:$|[/_.])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One line of a metric table; ``truth`` is the same metric on the true video, where there is one."""

    name: str
    channel: str
    detection_class: str
    value: str
    truth: str
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipView:
    """One clip as shown. Times in seconds; figures are SVG."""

    clip_id: str
    title: str
    facts: list[tuple[str, str]]
    description: str
    prompt: str
    keep: bool
    reasons: list[str]
    n_frames: int
    fps: float
    log_end_index: int
    sources: list[tuple[str, int, float]]  # label source, boxes, share
    videos: dict[str, str]  # channel -> data URI or relative link, or "" where the file is missing
    truth_videos: dict[str, str]  # the same drive rendered or recorded for real, where there is such a thing
    map_figure: Markup | None
    has_baseline: bool
    has_measured: bool
    curves: list[Markup]
    metrics: list[MetricRow]
    camera_metrics: list[MetricRow]
    detection: list[MetricRow]

    @property
    def duration_s(self) -> float:
        return self.n_frames / self.fps

    @property
    def log_end_s(self) -> float:
        return min(self.log_end_index, self.n_frames) / self.fps

    @property
    def log_percent(self) -> float:
        return 100.0 * self.log_end_s / self.duration_s


def read_table(version_dir: Path, name: str, columns: list[str] | None = None) -> pa.Table | None:
    """A table of the version, or some columns of it; None where the version has no such table."""
    files = sorted((version_dir / "tables" / name).glob("*.parquet"))
    return pa.concat_tables([schema.read_table(file, columns=columns) for file in files]) if files else None


def rows_of(table: pa.Table | None) -> list[Row]:
    return [] if table is None else table.to_pylist()


def of_clip(table: pa.Table | None, clip_id: str) -> pa.Table | None:
    return None if table is None else table.filter(pc.field("clip_id") == clip_id)


def count_sources(boxes: pa.Table | None) -> list[tuple[str, int, float]]:
    """Labels per source and their share, in the order of the legend. Detections are no labels and are left out."""
    if boxes is None:
        return []
    counted = Counter(boxes["label_source"].cast(pa.string()).to_pylist())
    counted.pop("detected", None)
    order = [*figures.SHARE_COLORS, *sorted(set(counted) - set(figures.SHARE_COLORS), key=str)]
    total = sum(counted.values())
    return [(str(name), counted[name], counted[name] / total) for name in order if name in counted]


def reasons_of(clip: Row) -> list[str]:
    """The gate's reasons in words, from ``verdict_reasons_json`` (sentences, or records with a ``sentence``)."""
    try:
        stored = json.loads(clip.get("verdict_reasons_json") or "[]")
    except json.JSONDecodeError:
        return [str(clip["verdict_reasons_json"])]
    stored = stored if isinstance(stored, list) else [stored]
    return [str(r.get("sentence") or r) if isinstance(r, dict) else str(r) for r in stored]


def format_value(value: float | None) -> str:
    """A number with as many digits as a reader uses."""
    if value is None or not math.isfinite(value):
        return "not measured"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 1000 else f"{value:.4g}"


def metric_rows(metrics: list[Row]) -> list[MetricRow]:
    """Whole-clip values, one line per metric, camera and class, with the value on the true video beside it."""
    pairs: dict[tuple[str, str, str, str], dict[str, float | None]] = {}
    for row in metrics:
        if row["bucket_start_s"] is None:
            key = (str(row["metric"]), str(row["channel"] or ""), str(row["detection_class"] or ""), str(row["unit"] or ""))
            pairs.setdefault(key, {})[str(row["source"] or "generated")] = row["value"]
    return [
        MetricRow(
            name=name, channel=channel, detection_class=detection_class, unit=unit,
            value=format_value(values["generated"]) if "generated" in values else "",
            truth=format_value(values["truth"]) if "truth" in values else "",
        )
        for (name, channel, detection_class, unit), values in sorted(pairs.items())
    ]  # fmt: skip


def split_detection(rows: list[MetricRow]) -> tuple[list[MetricRow], list[MetricRow]]:
    """Detection scores (mAP and NDS, then each metric per class in the devkit's order) and everything else."""

    def rank(row: MetricRow) -> tuple[int, str, int]:
        known = row.detection_class in DETECTION_CLASSES
        return int(bool(row.detection_class)), row.name, DETECTION_CLASSES.index(row.detection_class) if known else 99

    detection = [row for row in rows if row.detection_class or _SUMMARY.search(row.name)]
    return sorted(detection, key=rank), [row for row in rows if row not in detection]


def bucket_curves(metrics: list[Row], duration_s: float, log_end_s: float) -> list[Markup]:
    """One figure per metric that was measured in time buckets; points stand at the buckets' middles."""
    names = {str(r["metric"]): str(r.get("unit") or "") for r in metrics if _is_bucket(r)}

    def order(name: str) -> tuple[int, str]:
        return next((i for i, (word, _) in enumerate(CURVE_TITLES) if word in name.lower()), len(CURVE_TITLES)), name

    known = [n for n in names if order(n)[0] < len(CURVE_TITLES)]
    drawn = []
    for name in sorted(names, key=order):
        rank = order(name)[0]
        unique = rank < len(CURVE_TITLES) and sum(order(n)[0] == rank for n in known) == 1
        series = [s for source in ("generated", "truth") if (s := _series(metrics, name, source))]
        title = CURVE_TITLES[rank][1] if unique else name
        drawn.append(figures.curve(title, names[name], series, duration_s, log_end_s))
    return drawn


def _is_bucket(row: Row) -> bool:
    """Whether a row is a value over a span of time, over all cameras and classes."""
    return row["bucket_start_s"] is not None and not row["channel"] and not row["detection_class"]


def _series(metrics: list[Row], name: str, source: str) -> figures.Series | None:
    rows = [
        r for r in metrics
        if r["metric"] == name and _is_bucket(r) and str(r["source"] or "generated") == source
    ]  # fmt: skip
    if not rows:
        return None
    rows.sort(key=lambda r: r["bucket_start_s"])
    values = np.array([math.nan if r["value"] is None else r["value"] for r in rows], dtype=np.float64)
    middles = np.array([(r["bucket_start_s"] + r["bucket_end_s"]) / 2 for r in rows])
    return figures.Series(name=source, times_s=middles, values=values, reference=source == "truth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """A planar path: positions [N, 2] metres and headings [N] radians, global frame."""

    xy_m: Array
    yaw_rad: Array


def track_of(poses: pa.Table | None, path: str) -> Track | None:
    """The rows of ``ego_poses`` of one path (commanded, baseline or measured), in time order; None without any."""
    if poses is None:
        return None
    ordered = poses.filter(pc.field("path").cast(pa.string()) == path).sort_by("timestamp_us")
    if not ordered.num_rows:
        return None
    x, y, qw, qx, qy, qz = (ordered[c].to_numpy() for c in ("x", "y", "qw", "qx", "qy", "qz"))
    yaw = np.arctan2(2 * (qw * qz + qx * qy), 1 - 2 * (qy * qy + qz * qz))
    return Track(xy_m=np.stack([x, y], axis=-1), yaw_rad=yaw)


def drivable_polygons(map_elements: pa.Table | None, clip_id: str) -> list[Array]:
    """Drivable polygons of a clip, each [K, 2] global metres; [] where the version has no map vectors."""
    rows = rows_of(of_clip(map_elements, clip_id))
    flat = [np.asarray(r["points_xy_m"], dtype=np.float64) for r in rows if r["kind"] == "drivable" and r["is_polygon"]]
    return [points.reshape(-1, 2) for points in flat if len(points) >= 6]
