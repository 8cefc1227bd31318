"""Labels against rendered truth: do boxes lie on their objects from a moved ego, and is what they call hidden hidden?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dwm.conditioning.things import GRID, Things
from dwm.geometry import apply, box_corners, invert, project, rotation_from_yaw
from dwm.scenario.build import build_scenario
from dwm.scenario.labels import Looker, near_agents
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.sight import visibility_level
from dwm.scenario.types import Perturbation, Scenario
from dwm.scenes.proving_ground.counterfactual import CounterfactualRenderer
from dwm.scenes.types import DETECTION_CLASSES, Scene
from evaluators.protocol import bootstrap_interval
from pipelines.bench.masks import MaskTruth, Shown

Array = NDArray[np.float64]
Worlds = list[tuple[Scene, CounterfactualRenderer]]
_MOVES = (
    Perturbation(name="lateral_offset", params={"offset_m": 1.0, "onset_s": 0.5, "ramp_s": 2.0}, severity=0.4),
    Perturbation(name="lateral_offset", params={"offset_m": -0.7, "onset_s": 0.5, "ramp_s": 2.0}, severity=0.3),
    Perturbation(name="hard_brake", params={"decel_mps2": 4.0, "onset_s": 0.5, "hold_s": 2.0}, severity=0.5),
)  # fmt: skip
_OVERLAP_HW, _LEAST_PX, _OVERLAP_RANGE_M, _MOVED_FRAMES = (450, 800), 20, 50.0, (30, 66)
_UNHIDDEN = 0.99  # of the pixels an object would have alone
_SIGHT_HW, _SIGHT_RANGE_M = (225, 400), 80.0
_LOG_FRAMES, _LATER_FRAMES = (0, 36), (96, 140, 190)  # at 12 Hz, of logs of about six seconds
_ASIDE_M = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Overlap:
    """One object in one image: IoU of rectangles around its projection and around its mask."""

    scene: str
    kind: str
    box: float  # rectangle of the eight corners
    shape: float  # of the class's learnt shape in the box
    turned: float  # the same with the box turned by 90 degrees
    aside: float  # the same with the box moved aside


def overlap_table(worlds: Worlds, things: Path) -> list[str]:
    """Mean IoU by class of objects that nothing hides, from moved egos."""
    shapes = Things.load(things)
    found = [o for scene, world in tqdm(worlds, desc="overlap", disable=None) for o in _overlaps(scene, world, shapes)]
    lines = [
        f"**Transformed boxes on rendered masks** (lateral offset and hard brake, {_OVERLAP_HW[0]}x{_OVERLAP_HW[1]}, objects of at least "
        f"{_LEAST_PX} px a side, whole in the image, {_UNHIDDEN:.0%} of their pixels unhidden; IoU of rectangles, mean)", "",
        f"| class | class shape | box hull | fault: turned 90° | fault: {_ASIDE_M} m aside | n |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for kind in [name for name in DETECTION_CLASSES if any(o.kind == name for o in found)]:
        lines.append(_overlap_row(kind, [o for o in found if o.kind == kind]))
    lines.append(_overlap_row("**all**", found))
    by_scene = [float(np.mean([o.shape for o in found if o.scene == name])) for name in sorted({o.scene for o in found})]
    spread = bootstrap_interval(np.array(by_scene), np.random.default_rng(0))
    return [
        *lines,
        "",
        f"All, class shape: 95 % interval of the mean over {len(by_scene)} scenes {spread.low:.3f} to {spread.high:.3f}.",
    ]


def _overlap_row(kind: str, found: list[_Overlap]) -> str:
    values = " | ".join(f"{np.mean([getattr(o, name) for o in found]):.3f}" for name in ("shape", "box", "turned", "aside"))
    return f"| {kind} | {values} | {len(found)} |"


def _overlaps(scene: Scene, world: CounterfactualRenderer, things: Things) -> Iterator[_Overlap]:
    truth = MaskTruth(world)
    for move in _MOVES:
        scenario = build_scenario(scene, move, 0, duration_s=_log_s(scene))
        if not isinstance(scenario, Scenario):
            continue
        for frame in (f for f in _MOVED_FRAMES if f < scenario.log_end_index):
            rows = near_agents(scenario, frame, _OVERLAP_RANGE_M).tolist()
            for shown in truth.shown(scenario, frame, rows, _OVERLAP_HW, whole_from_px=_LEAST_PX):
                if shown.visible.sum() < _UNHIDDEN * max(shown.alone.sum(), 1):
                    continue
                extents = shown.extents_px
                if (extents[2:] - extents[:2]).min() >= _LEAST_PX:
                    yield _overlap(scenario, frame, shown, extents, things)


def _overlap(scenario: Scenario, frame: int, shown: Shown, extents: Array, things: Things) -> _Overlap:
    agents, a = scenario.agents, shown.agent
    center, size, yaw = agents.centers_m[a, frame], agents.sizes_wlh_m[a], float(agents.yaws_rad[a, frame])
    kind = str(agents.detection_classes[a])
    cells = shape_points(things, DETECTION_CLASSES.index(kind))
    left = _ASIDE_M * np.array([-np.sin(yaw), np.cos(yaw), 0.0])

    def shape(center_m: Array, yaw_rad: float) -> float:
        points = (cells * size[[1, 0, 2]] / 2) @ rotation_from_yaw(yaw_rad).T + center_m
        return intersection_over_union(_rectangle(shown, points), extents)

    return _Overlap(
        scene=scenario.scene.name, kind=kind, box=intersection_over_union(_rectangle(shown, box_corners(center, size, yaw)), extents),
        shape=shape(center, yaw), turned=shape(center, yaw + np.pi / 2), aside=shape(center + left, yaw),
    )  # fmt: skip


def shape_points(things: Things, kind: int) -> Array:
    """Middles [P, 3] of the cells that a class fills, in half boxes; the box's corners for a class without a shape."""
    filled = np.argwhere(things.solid_KXYZ[kind])
    if not len(filled):
        return box_corners(np.zeros(3), np.full(3, 2.0), 0.0)
    return (filled + 0.5) * 2 / np.array(GRID) - 1


def _rectangle(shown: Shown, points_m: Array) -> Array:
    uv, _ = project(apply(invert(shown.camera_to_global), points_m), shown.camera.intrinsics)
    return np.concatenate([uv.min(0), uv.max(0)])


def intersection_over_union(a: Array, b: Array) -> float:
    """Of two rectangles left, top, right, bottom."""
    both = np.prod((np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(min=0))
    return float(both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """One agent at one frame: visible share in truth, without and with the wall."""

    later: bool  # beyond the log
    truth: float
    boxes: float
    wall: float


def confusion_tables(worlds: Worlds) -> list[str]:
    """Visibility levels against rendered ones, in the log and beyond it, without and with the imagined wall."""
    found = [s for scene, world in tqdm(worlds, desc="visibility", disable=None) for s in _sights(scene, world)]
    lines = [f"**Visibility levels against masks** ({_SIGHT_HW[0]}x{_SIGHT_HW[1]}, agents within {_SIGHT_RANGE_M:.0f} m)", ""]
    lines += [
        "| frames | occluders | same level | within one | mean error of the visible share | never-seen agents called seen | seen agents called unseen | n |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    tables = []
    for later, frames in ((False, "in the log"), (True, "beyond it")):
        some = [s for s in found if s.later == later]
        truth = np.array([s.truth for s in some])
        for name, occluders in (("boxes", "boxes"), ("wall", "boxes and wall")):
            own = np.array([getattr(s, name) for s in some])
            lines.append(f"| {frames} | {occluders} | {_agreement(truth, own)} | {len(some)} |")
            tables += ["", f"{frames}, {occluders} (rows: truth, columns: label)", "", *_confusion(truth, own)]
    return [*lines, *tables]


def _agreement(truth: Array, own: Array) -> str:
    steps = np.abs(visibility_level(truth).astype(int) - visibility_level(own))
    hidden, seen = truth == 0, truth > 0
    missed = f"{int((own[hidden] > 0).sum())} of {int(hidden.sum())} | {int((own[seen] == 0).sum())} of {int(seen.sum())}"
    return f"{np.mean(steps == 0):.1%} | {np.mean(steps <= 1):.1%} | {np.abs(own - truth).mean():.3f} | {missed}"


def _confusion(truth: Array, own: Array) -> list[str]:
    counts = np.zeros((4, 4), int)
    np.add.at(counts, (visibility_level(truth) - 1, visibility_level(own) - 1), 1)
    rows = [f"| **{i + 1}** | " + " | ".join(str(n) for n in row) + " |" for i, row in enumerate(counts)]
    return ["| | 1 | 2 | 3 | 4 |", "|---|---|---|---|---|", *rows]


def _sights(scene: Scene, world: CounterfactualRenderer) -> Iterator[_Seen]:
    scenario = build_scenario(scene, BASELINE, 0, duration_s=(max(_LATER_FRAMES) + 1) / 12)
    if not isinstance(scenario, Scenario):
        return
    truth, looker = MaskTruth(world), Looker(scenario)
    for frame in (*_LOG_FRAMES, *_LATER_FRAMES):
        rows = near_agents(scenario, frame, _SIGHT_RANGE_M)
        visible, alone = np.zeros(len(scenario.agents.yaws_rad)), np.zeros(len(scenario.agents.yaws_rad))
        for shown in truth.shown(scenario, frame, rows.tolist(), _SIGHT_HW):
            visible[shown.agent] += shown.visible.sum()
            alone[shown.agent] += shown.alone.sum()
        boxes, wall = (looker.sight(frame, rows, wall=wall).visible for wall in (False, True))
        for k, a in enumerate(rows.tolist()):
            # Less than a pixel alone: nothing to judge.
            if alone[a] >= 1:
                yield _Seen(
                    later=frame >= scenario.log_end_index,
                    truth=float(visible[a] / alone[a]),
                    boxes=float(boxes[k]),
                    wall=float(wall[k]),
                )


def _log_s(scene: Scene) -> float:
    return float(scene.key_timestamps_us[-1] - scene.key_timestamps_us[0]) * 1e-6
