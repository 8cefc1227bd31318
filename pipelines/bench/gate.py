"""Does the gate keep what is true and reject what is broken, each for its own reason?

True video of held-out moments (as driven, 2 m aside, braking hard) goes through the scores and the gate as generated video does, as it is
and with each planted fault of ``evaluators.corruptions``. Beside the table of verdicts stands how each metric of the gate is distributed,
which is what its limits are chosen by (on other scenes than these).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dwm.rollout.world_model import WorldModel
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from evaluators.box_finder import load_box_finder
from evaluators.corruptions import IN_PICTURES, IN_WHAT_IS_FILMED
from evaluators.ego_motion.inference import EgoMotionReader
from evaluators.gate import GATED, RECALL, REFERENCE_RECALL, REFERENCE_UNLABELLED, UNLABELLED, GateConfig, Verdict, judge
from pipelines.bench.rollouts import (
    ASIDE,
    HARD_BRAKE,
    LOGGED_S,
    Images,
    Moment,
    first_feasible,
    rejections,
    size,
    starting_moments,
    true_frames,
)
from pipelines.clip_scores import ClipScorer
from pipelines.config import EvaluateConfig
from pipelines.metric_table import Judges

TRUTH = "true video"
# What each planted fault is to be rejected for, one of these metrics at least.
EXPECTED = {
    "swapped cameras": ("cross_view.worst_pair",), "frozen video": ("motion.frozen_fraction",),
    "noise": ("sharpness.ratio_last", "flicker.mean"), "left-right mirrored": ("cross_view.worst_pair",),
    "time-reversed": ("ego_motion.agreed_ade_m",), "wrong path": ("ego_motion.agreed_ade_m",),
    "missing agents": ("detection.materialised",), "hallucinated agents": ("detection.unlabelled",),
}  # fmt: skip
_REFERENCES = {RECALL: REFERENCE_RECALL, UNLABELLED: REFERENCE_UNLABELLED}
_MOVES = ((BASELINE,), ASIDE, (HARD_BRAKE,))
_QUANTILES = (0.025, 0.5, 0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One clip, true or with a fault."""

    kind: str  # TRUTH, or a fault's name
    metrics: dict[str, float]
    verdict: Verdict

    @property
    def rightly(self) -> bool:
        """Kept if true; else rejected, among others for what is wrong."""
        if self.kind == TRUTH:
            return self.verdict.keep
        measured = [reason for reason in self.verdict.reasons if np.isfinite(reason.value)]
        return any(reason.metric in EXPECTED[self.kind] for reason in measured)


def bench_gate(
    dataroot: Path, version: str, codec: Path, weights: Path, things: Path, detector: Path, ego_motion: Path, cases: int,
    duration_s: float,
) -> str:  # fmt: skip
    """The tables as Markdown; ``cases`` starting moments, three paths each."""
    world, gate, rejected = WorldModel.load(codec, weights, things), GateConfig(), Counter[str]()
    judges = Judges(detector=load_box_finder(detector), ego_motion=EgoMotionReader.load(ego_motion))
    moments = starting_moments(dataroot, version, cases, LOGGED_S)
    tried = [
        clip
        for moment in tqdm(moments, desc="moments", disable=None)
        for moves in _MOVES
        if (scenario := first_feasible(moment, moves, duration_s, rejected, moves[0].name))
        for clip in _try(world, judges, moment, scenario, gate)
    ]
    scenes = len({moment.scene.name for moment in moments})
    head = f"{len(moments)} starting moments of {scenes} scenes, clips of {duration_s:g} s, six cameras, {size(world.image_hw)}"
    return "\n".join([head, *verdict_table(tried), *metric_table(tried), *rejections(rejected)])


def _try(world: WorldModel, judges: Judges, moment: Moment, scenario: Scenario, gate: GateConfig) -> Iterator[Tried]:
    """The true clip, then each fault that can be told from it."""
    frames, given = range(len(scenario.timestamps_us)), 1
    truth = true_frames(moment, scenario, frames, world.image_hw)
    scorer = ClipScorer(
        scenario, world.conditioner(scenario), truth[:given], world, judges, EvaluateConfig(), lambda asked: truth[asked]
    )

    def scored(kind: str, video: Images) -> Tried:
        metrics = scorer.score(video).for_gate
        return Tried(kind=kind, metrics=metrics, verdict=judge(metrics, gate))

    true_clip = scored(TRUTH, truth)
    yield true_clip
    for name, fault in IN_PICTURES.items():
        yield scored(name, fault(truth, scenario.fps, given))
    for name, change in IN_WHAT_IS_FILMED.items():
        other = change(scenario)
        if name == "wrong path" and np.array_equal(other.ego_to_global, scenario.ego_to_global):
            continue
        if name == "missing agents" and not true_clip.metrics.get(REFERENCE_RECALL, 0.0) > gate.min_reference_recall:
            continue  # nothing to be missed
        if name == "hallucinated agents" and len(other.agents.instance_tokens) == len(scenario.agents.instance_tokens):
            continue  # no room for a stranger
        filmed = true_frames(moment, other, frames[given:], world.image_hw)
        yield scored(name, np.concatenate([truth[:given], filmed]))


def verdict_table(tried: list[Tried]) -> list[str]:
    """Verdicts by kind of clip."""
    lines = ["", "| clips | n | kept | rejected | rightly | reasons |", "|---|---|---|---|---|---|"]
    for kind in dict.fromkeys(clip.kind for clip in tried):
        own = [clip for clip in tried if clip.kind == kind]
        kept = sum(clip.verdict.keep for clip in own)
        reasons = Counter(reason.metric for clip in own for reason in clip.verdict.reasons)
        named = ", ".join(f"{metric} {count / len(own):.0%}" for metric, count in reasons.most_common(4))
        rightly = sum(clip.rightly for clip in own) / len(own)
        lines.append(f"| {kind} | {len(own)} | {kept / len(own):.0%} | {1 - kept / len(own):.0%} | {rightly:.0%} | {named} |")
    return lines


def metric_table(tried: list[Tried]) -> list[str]:
    """Quantiles of every metric that the gate looks at, by kind of clip; ratios and differences as the gate forms them."""
    kinds = list(dict.fromkeys(clip.kind for clip in tried))
    lines = ["", "| metric (2.5 %, median, 97.5 %) | " + " | ".join(kinds) + " |", "|---" * (1 + len(kinds)) + "|"]
    for metric in GATED:
        cells = []
        for kind in kinds:
            values = np.array([gated_value(clip.metrics, metric) for clip in tried if clip.kind == kind])
            known = values[np.isfinite(values)]
            cells.append(", ".join(f"{q:.2f}" for q in np.quantile(known, _QUANTILES)) if len(known) else "")
        lines.append(f"| {metric} | " + " | ".join(cells) + " |")
    return lines


def gated_value(metrics: dict[str, float], metric: str) -> float:
    """A metric as the gate compares it with its limit."""
    value, reference = metrics.get(metric, np.nan), metrics.get(_REFERENCES.get(metric, ""), np.nan)
    if metric == RECALL:
        return value / reference if reference else np.nan
    return value - reference if metric in _REFERENCES else value
