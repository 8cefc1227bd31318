"""Does the layout put objects where the labels say, and for how long? Recall of the detector in generated frames over its recall
in true frames of the same moments.

Roll-outs of held-out moments, as driven and up to 2 m aside, with the layout and, for contrast, without it. Asked for are the boxes
within 30 m that the layout's rays meet first, in the detector's own class and at its operating score, in true and
generated frames alike. A ratio is that of all boxes together; its interval resamples starting moments, with both paths
and all frames of each.

Shapes: M moments, S stretches of time, G groups of classes; counts hold (found in generated, found in true, boxes).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dwm.errors import InputError
from dwm.rollout.config import RolloutConfig
from dwm.rollout.world_model import WorldModel
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Perturbation, Scenario
from evaluators.boxes import Boxes
from evaluators.clip_detection import ClipMatchConfig, score_clip_detections
from evaluators.detector.inference import Detector
from evaluators.protocol import bootstrap_interval
from pipelines.bench.rollouts import (
    Images,
    Moment,
    first_feasible,
    frames_between,
    generate,
    rejections,
    size,
    starting_moments,
    true_frames,
)
from pipelines.clip_labels import detect_frames, matching, visible_labels

Array = NDArray[np.float64]
_KEY_FRAMES = 6  # the detector looks twice a second
_LOG_S = 0.5  # the traffic takes over where the log ends, so any log will do
STRETCHES_S = ((1.0, 3.0), (9.5, 10.5), (58.0, 60.0))
GROUPS = ("car", "all classes")
_ASIDE = tuple(
    Perturbation(name="lateral_offset", params={"offset_m": offset_m, "onset_s": 0.0, "ramp_s": 2.5}, severity=0.6)
    for offset_m in (2.0, -2.0, 1.0, -1.0)
)
WITH_LAYOUT = "layout, appearance and memory"
MODES = {
    WITH_LAYOUT: RolloutConfig(),
    "memory alone": RolloutConfig(layout=False, appearance=False),
    "none of them": RolloutConfig(layout=False, appearance=False, memory="none"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """One row of the table."""

    generated: float
    true: float
    boxes: int
    ratio: float
    low: float
    high: float


def bench_layout(
    dataroot: Path, version: str, codec: Path, weights: Path, things: Path, detector: Path, cases: int, duration_s: float,
    contrast_s: float, steps: int,
) -> str:  # fmt: skip
    """The tables as Markdown: ``cases`` moments, roll-outs of ``duration_s`` with the layout and ``contrast_s`` without."""
    lasting = {name: duration_s if name == WITH_LAYOUT else contrast_s for name in MODES}
    if not stretches_within(duration_s):
        raise InputError(
            "--duration", f"{duration_s:g} s", f"give {STRETCHES_S[0][1]:g} or more: scored from {STRETCHES_S[0][0]:g} s on"
        )
    world, judge, rejected = WorldModel.load(codec, weights, things), Detector.load(detector), Counter[str]()
    found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in MODES}
    costs: dict[str, list[float]] = {name: [] for name in MODES}
    clips = 0
    moments = starting_moments(dataroot, version, cases, _LOG_S)
    for moment in tqdm(moments, desc="moments", disable=None):
        counted = {name: np.zeros((len(STRETCHES_S), len(GROUPS), 3), np.int64) for name in MODES}
        for what, moves in (("as driven", (BASELINE,)), ("aside", _ASIDE)):
            scenario = first_feasible(moment, moves, duration_s, rejected, what)
            if scenario is None:
                continue
            clips += 1
            clip = _Clip(moment, scenario, judge, duration_s, world)
            for name, mode in MODES.items():
                if frames := clip.frames_until(lasting[name]):
                    made = generate(world, clip.conditioner, replace(mode, steps=steps), frames)
                    counted[name] += clip.counts(made.images, frames)
                    costs[name].append(made.seconds_per_frame)
        for name in MODES:
            found[name].append(counted[name])
    lines = [
        f"{clips} clips of {len(moments)} starting moments, as driven and aside; {steps} denoising steps, six cameras, "
        f"{size(world.image_hw)}; boxes within {ClipMatchConfig().max_range_m:g} m, detections from score "
        f"{matching(judge).min_score:.3f} on, detector {judge.sha256[:12]}",
    ]  # fmt: skip
    for name in MODES:
        lines += _mode_table(name, np.stack(found[name]), costs[name])
    return "\n".join([*lines, *rejections(rejected)])


def stretches_within(duration_s: float) -> list[int]:
    """Indices of the stretches that a clip of this length holds whole."""
    return [s for s, (_, end_s) in enumerate(STRETCHES_S) if end_s <= duration_s + 1e-9]


def recall_of(counts_M3: NDArray[np.int64], rng: np.random.Generator) -> Recall:
    """Recalls over all boxes and their ratio, with its interval over moments that have any; NaN where nothing was found in truth."""

    def ratio(rows: Array) -> float:
        made, true, _ = rows.sum(0)
        return float(made / true) if true else float("nan")

    made, true, boxes = (int(c) for c in counts_M3.sum(0))
    told = counts_M3[counts_M3[:, 2] > 0]
    interval = bootstrap_interval((told if len(told) else counts_M3).astype(np.float64), rng, statistic=ratio)
    share = [count / boxes if boxes else float("nan") for count in (made, true)]
    return Recall(
        generated=share[0], true=share[1], boxes=boxes, ratio=interval.value, low=interval.low, high=interval.high
    )  # fmt: skip


class _Clip:
    """One scenario with what it asks for and what the detector finds in its true frames, for every mode the same."""

    def __init__(
        self, moment: Moment, scenario: Scenario, detector: Detector, duration_s: float, world: WorldModel
    ) -> None:  # fmt: skip
        self.scenario, self.detector = scenario, detector
        self.conditioner = world.conditioner(scenario)
        frames = [f for s in stretches_within(duration_s) for f in frames_between(*STRETCHES_S[s], every=_KEY_FRAMES)]
        self._labels = {f: visible_labels(scenario, self.conditioner, f)[1] for f in frames}
        self._seen = self._detected(true_frames(moment, scenario, frames, world.image_hw), frames)

    def frames_until(self, end_s: float) -> list[int]:
        """Scored frames of the stretches that end by then."""
        within = [frames_between(*STRETCHES_S[s], every=_KEY_FRAMES) for s in stretches_within(end_s)]
        return [f for frames in within for f in frames if f in self._labels]

    def counts(self, images: Images, frames: Sequence[int]) -> NDArray[np.int64]:
        """Counts [S, G, 3] of generated frames."""
        made = self._detected(images, frames)
        out = np.zeros((len(STRETCHES_S), len(GROUPS), 3), np.int64)
        for s, stretch in enumerate(STRETCHES_S):
            scored = [f for f in frames_between(*stretch, every=_KEY_FRAMES) if f in made]
            if scored:
                labels = [self._labels[f] for f in scored]
                out[s] = group_counts(
                    labels, [made[f] for f in scored], [self._seen[f] for f in scored], matching(self.detector)
                )
        return out

    def _detected(self, images: Images, frames: Sequence[int]) -> dict[int, Boxes]:
        return dict(zip(frames, detect_frames(self.detector, self.conditioner, self.scenario, images, frames), strict=True))


def group_counts(
    labels: list[Boxes], made: list[Boxes], seen: list[Boxes], config: ClipMatchConfig
) -> NDArray[np.int64]:  # fmt: skip
    """(found in generated, found in true, boxes) [G, 3] of frames."""
    by_source = [score_clip_detections(labels, found, config) for found in (made, seen)]
    rows = []
    for group in GROUPS:
        scores = [score.classes.get(group, score.total) for score in by_source]
        rows.append([*(round(s.recall * s.boxes) if s.boxes else 0 for s in scores), scores[0].boxes])
    return np.array(rows, np.int64)


def _mode_table(name: str, counts_MSG3: NDArray[np.int64], costs: list[float]) -> list[str]:
    if not costs:
        return []
    rng = np.random.default_rng(0)
    lines = ["", f"**{name}** ({np.mean(costs):.2f} s a frame)", ""]
    lines += ["| time | boxes | n | recall generated | recall true | ratio | 95 % interval |", "|---|---|---|---|---|---|---|"]
    for s, (start_s, end_s) in enumerate(STRETCHES_S):
        for g, group in enumerate(GROUPS):
            row = recall_of(counts_MSG3[:, s, g], rng)
            if row.boxes:
                share = f"{row.generated:.0%} | {row.true:.0%} | {row.ratio:.2f} | {row.low:.2f} to {row.high:.2f}"
                lines.append(f"| {start_s:g}-{end_s:g} s | {group} | {row.boxes} | {share} |")
    return lines
