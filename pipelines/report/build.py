"""Writes ``report.html`` beside a dataset version: one file that needs no network and no server."""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dwm.errors import InputError
from dwm.scenes.types import CAMERAS
from pipelines.atomic import naming_full_disk, write_atomic
from pipelines.report import figures, view
from pipelines.report.view import ClipView, Row

EMBED_LIMIT_BYTES = 80_000_000
# As a viewer looks around: the cameras ahead above, those behind below.
GRID = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
assert set(GRID) == set(CAMERAS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tables:
    """The tables the report reads, opened once."""

    clips: list[Row]
    videos: list[Row]
    runs: list[Row]
    metrics: list[Row]
    shards: list[Row]
    boxes: pa.Table | None
    ego_poses: pa.Table | None
    map_elements: pa.Table | None


def write_report(version_dir: Path, embed_limit_bytes: int = EMBED_LIMIT_BYTES) -> Path:
    """Builds ``<version_dir>/report.html`` and returns its path.

    Videos are embedded while all of them together stay within ``embed_limit_bytes``; beyond it they are linked, and the
    report says so. Raises InputError where the folder is no dataset version or a table cannot be read.
    """
    tables = _read_tables(version_dir)
    sizes = [p.stat().st_size for row in tables.videos if (p := _video_file(version_dir, row)).is_file()]
    embed = sum(sizes) <= embed_limit_bytes
    clips = [_clip_view(tables, version_dir, clip, embed) for clip in tables.clips]
    sources = view.count_sources(tables.boxes)
    detection, dataset_metrics = view.split_detection(view.metric_rows([m for m in tables.metrics if not m.get("clip_id")]))
    html = _environment().get_template("template.html.j2").render(
        version=version_dir.name, dataset=version_dir.resolve().parent.parent.name, clips=clips, grid=GRID,
        facts=_run_facts(tables, version_dir), config=next((r["config_yaml"] for r in tables.runs if r.get("config_yaml")), ""),
        tiles=_tiles(clips, tables), sources=sources, colors=figures.SHARE_COLORS,
        share_bar=figures.share_bar({name: n for name, n, _ in sources}),
        without_clip=_without_clip(tables), detection=detection, dataset_metrics=dataset_metrics,
        embed=embed, video_megabytes=sum(sizes) / 1e6,
    )  # fmt: skip
    target = version_dir / "report.html"
    with naming_full_disk(version_dir):
        write_atomic(target, html.encode())
    return target


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["camera_name"] = lambda channel: channel.removeprefix("CAM_").replace("_", " ").lower()
    return environment


def _read_tables(version_dir: Path) -> _Tables:
    clips = view.read_table(version_dir, "clips")
    if clips is None:
        raise InputError(
            version_dir, "no clips table", "give a version folder of a published dataset, e.g. out/run/versions/v-1234"
        )
    return _Tables(
        clips=sorted(clips.to_pylist(), key=lambda c: (not c.get("verdict_keep", True), str(c["clip_id"]))),
        videos=[v for v in view.rows_of(view.read_table(version_dir, "videos")) if v["stream"] in ("rgb", "truth")],
        runs=view.rows_of(view.read_table(version_dir, "runs")),
        metrics=view.rows_of(view.read_table(version_dir, "metrics")),
        shards=view.rows_of(view.read_table(version_dir, "shards")),
        boxes=view.read_table(version_dir, "boxes", ["clip_id", "label_source"]),
        ego_poses=view.read_table(version_dir, "ego_poses"),
        map_elements=view.read_table(version_dir, "map_elements"),
    )


def _video_file(version_dir: Path, video: Row) -> Path:
    """The mp4 of a videos row; its uri is relative to the dataset root and may not leave it."""
    uri = PurePosixPath(video["uri"])
    if uri.is_absolute() or ".." in uri.parts:
        raise InputError(version_dir / "tables/videos", f"uri '{uri}' leaves the dataset", "publish the dataset again")
    return version_dir.parent.parent / uri


def _video_source(version_dir: Path, video: Row, embed: bool) -> str:
    """A data URI, a link relative to the report, or nothing where the file is missing."""
    file = _video_file(version_dir, video)
    if not file.is_file():
        return ""
    if embed:
        return "data:video/mp4;base64," + base64.b64encode(file.read_bytes()).decode("ascii")
    return quote(f"../../{PurePosixPath(video['uri'])}")


def _clip_view(tables: _Tables, version_dir: Path, clip: Row, embed: bool) -> ClipView:
    clip_id = clip["clip_id"]
    n_frames, fps = max(int(clip["n_frames"]), 1), float(clip["fps"])
    log_end_index = n_frames if clip.get("log_end_index") is None else int(clip["log_end_index"])
    metrics = [m for m in tables.metrics if m.get("clip_id") == clip_id]
    detection, other = view.split_detection(view.metric_rows(metrics))
    poses = view.of_clip(tables.ego_poses, clip_id)
    track, baseline, measured = (view.track_of(poses, path) for path in ("commanded", "baseline", "measured"))
    polygons = view.drivable_polygons(tables.map_elements, clip_id)
    sources = {
        stream: {
            v["channel"]: _video_source(version_dir, v, embed)
            for v in tables.videos if v["clip_id"] == clip_id and v["stream"] == stream
        }
        for stream in ("rgb", "truth")
    }  # fmt: skip
    duration_s, log_end_s = n_frames / fps, min(log_end_index, n_frames) / fps
    deviation = [] if track is None or baseline is None else _deviation(track, baseline, fps, duration_s, log_end_s)
    return ClipView(
        clip_id=clip_id,
        title=f"{clip.get('perturbation') or 'baseline'} · severity {clip.get('severity') or 0.0:.2f}",
        facts=_clip_facts(clip), description=str(clip.get("description") or ""), prompt=str(clip.get("prompt") or ""),
        keep=bool(clip.get("verdict_keep", True)), reasons=view.reasons_of(clip), n_frames=n_frames, fps=fps,
        log_end_index=log_end_index, sources=view.count_sources(view.of_clip(tables.boxes, clip_id)),
        videos=sources["rgb"], truth_videos={c: s for c, s in sources["truth"].items() if s},
        map_figure=None if track is None else _map_figure(track, baseline, measured, log_end_index, fps, polygons),
        has_baseline=baseline is not None, has_measured=measured is not None,
        curves=deviation + view.bucket_curves(metrics, duration_s, log_end_s),
        metrics=[m for m in other if not m.channel], camera_metrics=[m for m in other if m.channel], detection=detection,
    )  # fmt: skip


def _clip_facts(clip: Row) -> list[tuple[str, str]]:
    names = (
        ("source scene", "source_scene_token"), ("scene name", "source_scene_name"), ("location", "location"),
        ("dataset", "source_dataset"), ("split", "split"), ("weather", "weather"),
        ("parameters", "perturbation_params_json"), ("seed", "seed"), ("shard", "shard_id"),
    )  # fmt: skip
    return [(label, str(clip[key])) for label, key in names if clip.get(key) not in (None, "")]


def _map_figure(
    track: view.Track, baseline: view.Track | None, measured: view.Track | None, log_end_index: int, fps: float,
    polygons: list[view.Array],
) -> Markup:  # fmt: skip
    def local(xy_m: view.Array) -> view.Array:
        return figures.path_in_start_frame(xy_m, track.xy_m[0], float(track.yaw_rad[0]))

    base, seen = (None if t is None else local(t.xy_m) for t in (baseline, measured))
    return figures.birds_eye(local(track.xy_m), base, log_end_index, fps, [local(p) for p in polygons], seen)


def _deviation(track: view.Track, baseline: view.Track, fps: float, duration_s: float, log_end_s: float) -> list[Markup]:
    """Curves of how far the commanded path lies from the baseline: a metre is invisible on a plot of half a kilometre."""
    n = min(len(track.xy_m), len(baseline.xy_m))
    forward, left = figures.deviation_from(track.xy_m[:n], baseline.xy_m[:n], baseline.yaw_rad[:n])
    times_s = np.arange(n) / fps
    return [
        figures.curve(title, "m", [figures.Series(name=title, times_s=times_s, values=v)], duration_s, log_end_s)
        for title, v in (("path left of baseline", left), ("path ahead of baseline", forward))
    ]


def _run_facts(tables: _Tables, version_dir: Path) -> list[tuple[str, str]]:
    names = (
        ("git commit", "git_commit"), ("model weights sha256", "weights_sha256_json"),
        ("generator version", "generator_version"),
        ("run", "run_id"), ("configuration sha256", "config_sha256"), ("seed policy", "seed_policy"),
        ("started", "started_us"), ("ended", "ended_us"),
    )  # fmt: skip
    seeds = sorted({c["seed"] for c in tables.clips if c["seed"] is not None})
    facts = [("version", version_dir.name), ("schema version", _schema_version(version_dir))]
    for label, key in names:
        values = dict.fromkeys(_run_fact(run, key) for run in tables.runs if run[key] not in (None, ""))
        facts.append((label, ", ".join(values) or "not recorded"))
    return [*facts, ("clip seeds", ", ".join(map(str, seeds)) or "not recorded")]


def _run_fact(run: Row, key: str) -> str:
    if key.endswith("_us"):
        return datetime.fromtimestamp(run[key] / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if key == "weights_sha256_json":
        return ", ".join(f"{name} {sha}" for name, sha in json.loads(run[key]).items()) or "none"
    return str(run[key]) + (" (with uncommitted changes)" if key == "git_commit" and run["dirty"] else "")


def _schema_version(version_dir: Path) -> str:
    file = min((version_dir / "tables" / "clips").glob("*.parquet"))
    return (pq.read_schema(file).metadata or {}).get(b"roadreel_schema_version", b"not recorded").decode()


def _without_clip(tables: _Tables) -> list[Row]:
    """Shards that ended without a clip, such as scenarios no car could drive, with their reason."""
    made = {c["shard_id"] for c in tables.clips}
    return [s for s in tables.shards if s["shard_id"] not in made]


def _tiles(clips: list[ClipView], tables: _Tables) -> list[tuple[str, str]]:
    kept = [c for c in clips if c.keep]
    minutes = sum(c.duration_s for c in kept) / 60
    beyond = sum(c.duration_s - c.log_end_s for c in kept) / 60
    perturbations = Counter(str(c.get("perturbation") or "baseline") for c in tables.clips)
    return [
        (f"{len(kept)} of {len(clips)}", "clips kept by the gate"),
        (f"{minutes:.1f} min", "kept drive time, six cameras"),
        (f"{beyond:.1f} min", "of it beyond the log"),
        (f"{sum(n for _, n, _ in view.count_sources(tables.boxes)):,}", "labelled boxes, all clips"),
        (str(len(perturbations)), "kinds of perturbation"),
    ]
