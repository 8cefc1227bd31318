"""Inline SVG figures of the report: bird's-eye plots, curves over time, share bars. Pure functions from numbers to markup."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Meaning is never carried by colour alone: the baseline is dashed, the simulated part is labelled.
LOG_COLOR, SIMULATED_COLOR, BASELINE_COLOR = "#2f6690", "#c7772b", "#8b95a1"
SHARE_COLORS = {
    "log": "#2f6690", "interpolated": "#7fa8c9", "transformed": "#5b8e7d", "simulated": "#c7772b", "detected": "#8c6bb1",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a curve. ``times_s`` and ``values`` [N] are in time order; NaN values leave a gap."""

    name: str
    times_s: Array
    values: Array
    reference: bool = False  # drawn dashed and grey, e.g. the true video


def path_in_start_frame(xy_m: Array, start_xy_m: Array, start_yaw_rad: float) -> Array:
    """Global points [N, 2] in the frame of the start pose: columns forward and left, metres."""
    c, s = math.cos(start_yaw_rad), math.sin(start_yaw_rad)
    return (xy_m - start_xy_m) @ np.array([[c, -s], [s, c]])


def deviation_from(path_xy_m: Array, baseline_xy_m: Array, baseline_yaw_rad: Array) -> tuple[Array, Array]:
    """Forward and left distances [N] of a path from the baseline's pose at the same time, metres."""
    delta = path_xy_m - baseline_xy_m
    c, s = np.cos(baseline_yaw_rad), np.sin(baseline_yaw_rad)
    return delta[:, 0] * c + delta[:, 1] * s, -delta[:, 0] * s + delta[:, 1] * c


@dataclass(frozen=True, slots=True, kw_only=True)
class _Canvas:
    """Maps (forward, left) metres to pixels, forward up, with one scale on both axes."""

    width: float
    height: float
    scale: float
    left_max_m: float
    forward_max_m: float
    margin: float

    def points(self, forward_left_m: Array) -> Array:
        x = self.margin + (self.left_max_m - forward_left_m[:, 1]) * self.scale
        y = self.margin + (self.forward_max_m - forward_left_m[:, 0]) * self.scale
        return np.stack([x, y], axis=-1)


def _canvas(points: Array, width: float, height: float, margin: float = 24.0, least_span_m: float = 30.0) -> _Canvas:
    low, high = points.min(axis=0), points.max(axis=0)
    span = np.maximum(high - low, least_span_m)
    middle = (low + high) / 2
    scale = min((height - 2 * margin) / span[0], (width - 2 * margin) / span[1])
    half = np.array([(height - 2 * margin) / scale, (width - 2 * margin) / scale]) / 2
    return _Canvas(
        width=width, height=height, scale=scale, margin=margin,
        left_max_m=float(middle[1] + half[1]), forward_max_m=float(middle[0] + half[0]),
    )  # fmt: skip


def _path_data(points: Array) -> str:
    return "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(x: float, y: float, text: str, anchor: str = "start", css: str = "tick") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'


def _scale_bar(canvas: _Canvas) -> str:
    length_m = next(m for m in (200, 100, 50, 20, 10, 5) if m * canvas.scale < canvas.width / 3 or m == 5)
    x, y = canvas.margin / 2, canvas.height - 8
    line = f'<path d="M{x:.1f},{y - 4:.1f} V{y:.1f} H{x + length_m * canvas.scale:.1f} V{y - 4:.1f}" class="axis"/>'
    return line + _text(x + length_m * canvas.scale + 5, y, f"{length_m} m")


def birds_eye(
    path: Array,
    baseline: Array | None,
    log_end_index: int,
    fps: float,
    polygons: list[Array] | None = None,
    measured: Array | None = None,
    size: tuple[int, int] = (340, 340),
) -> Markup:
    """The commanded path [N, 2] over the baseline [M, 2] and drivable polygons, all (forward, left) metres, forward up.

    ``measured`` [K, 2] is the path re-estimated from the video. Frames from ``log_end_index`` on are drawn in the simulated
    colour; a tick stands every 10 s; the player moves the circle of class ``ego`` along its ``data-path``.
    """
    width, height = size
    canvas = _canvas(np.concatenate([path] if baseline is None else [path, baseline]), width, height)
    pixels = canvas.points(path)
    parts = [f'<path d="{_path_data(canvas.points(p))}Z" class="drivable"/>' for p in polygons or []]
    if baseline is not None:
        parts.append(f'<path d="{_path_data(canvas.points(baseline))}" class="line reference"/>')
    cut = min(max(log_end_index, 1), len(pixels))
    parts.append(f'<path d="{_path_data(pixels[:cut])}" class="line" stroke="{LOG_COLOR}"/>')
    if cut < len(pixels):
        parts.append(f'<path d="{_path_data(pixels[cut - 1 :])}" class="line" stroke="{SIMULATED_COLOR}"/>')
    if measured is not None:
        parts.append(f'<path d="{_path_data(canvas.points(measured))}" class="line measured"/>')
    for second in range(10, int(len(pixels) / fps) + 1, 10):
        x, y = pixels[min(int(second * fps), len(pixels) - 1)]
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" class="mark"/>' + _text(x + 6, y + 4, f"{second} s"))
    track = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
    parts.append(f'<circle class="ego" r="5" cx="{pixels[0, 0]:.1f}" cy="{pixels[0, 1]:.1f}" data-path="{track}"/>')
    parts.append(_scale_bar(canvas))
    return _svg(width, height, parts, "ego path seen from above, driving direction at the start pointing up")


def _svg(width: float, height: float, parts: list[str], label: str) -> Markup:
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(parts) + "</svg>")


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    if math.isclose(low, high, rel_tol=1e-6, abs_tol=1e-9):
        pad = max(abs(low) * 0.1, 0.1)
        low, high = low - pad, high + pad
    return [float(t) for t in MaxNLocator(nbins=count, min_n_ticks=2).tick_values(low, high)]


def _number(value: float) -> str:
    return f"{value:.6g}" if abs(value) < 1e5 else f"{value:.2e}"


def _segments(xs: Array, ys: Array) -> list[Array]:
    """Runs of finite points, so that a missing value leaves a gap."""
    points, finite = np.stack([xs, ys], axis=-1), np.isfinite(ys)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], finite, [False]]).astype(int)))
    return [points[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]


def curve(
    title: str, unit: str, series: list[Series], duration_s: float, log_end_s: float, size: tuple[int, int] = (340, 170)
) -> Markup:
    """Lines over clip time; the part beyond the log is shaded and named. Markers only where points are few."""
    width, height = size
    left, right, top, bottom = 46.0, width - 18.0, 26.0, height - 24.0
    values = np.concatenate([s.values[np.isfinite(s.values)] for s in series] or [np.zeros(0)])
    ticks = _ticks(float(values.min()), float(values.max())) if len(values) else [0.0, 1.0]

    def x_of(time_s: Array) -> Array:
        return left + time_s / max(duration_s, 1e-9) * (right - left)

    def y_of(value: Array) -> Array:
        return bottom - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (bottom - top)

    parts: list[str] = []
    if log_end_s < duration_s:
        x = float(x_of(np.float64(log_end_s)))  # type: ignore[arg-type]
        parts.append(f'<rect x="{x:.1f}" y="{top}" width="{right - x:.1f}" height="{bottom - top}" class="beyond"/>')
        parts.append(_text(right, 14, "simulated", "end", css="tick beyond-label"))
    for tick in ticks:
        y = bottom - (tick - ticks[0]) / (ticks[-1] - ticks[0]) * (bottom - top)
        parts.append(f'<path d="M{left},{y:.1f} H{right}" class="grid"/>' + _text(left - 5, y + 3.5, _number(tick), "end"))
    for second in _ticks(0.0, duration_s, 6):
        if 0 <= second <= duration_s + 1e-6:
            parts.append(_text(float(left + second / duration_s * (right - left)), bottom + 14, f"{second:g} s", "middle"))
    for line in sorted(series, key=lambda s: not s.reference):
        css, style = ("line reference", "") if line.reference else ("line", f'stroke="{LOG_COLOR}"')
        for segment in _segments(x_of(line.times_s), y_of(line.values)):
            parts.append(f'<path d="{_path_data(segment)}" class="{css}" {style}/>')
            if len(line.values) <= 24:
                color = BASELINE_COLOR if line.reference else LOG_COLOR
                parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in segment]
    parts.append(_text(left - 40, 14, f"{title} [{unit}]" if unit else title, css="figure-title"))
    parts.append(f'<path class="now" d="M0,{top} V{bottom}" data-x0="{left}" data-x1="{right}"/>')
    return _svg(width, height, parts, title)


def share_bar(counts: dict[str, int], size: tuple[int, int] = (640, 18)) -> Markup:
    """A stacked bar of counts, in the given order; empty when nothing was counted."""
    total = sum(counts.values())
    width, height = size
    edges = np.cumsum([0, *counts.values()]) / max(total, 1) * width
    parts = [
        f'<rect x="{a:.1f}" y="0" width="{b - a:.1f}" height="{height}" fill="{SHARE_COLORS.get(name, "#999")}"/>'
        for name, (a, b) in zip(counts, pairwise(edges), strict=True)
    ]
    return _svg(width, height, parts, "shares of label sources")
