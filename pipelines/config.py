"""The configuration of a generation run, as in ``conf/demo.yaml``."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from dwm.device import PRECISIONS
from dwm.errors import InputError
from dwm.rollout.config import MEMORY_MODES, STRATEGY_NAMES, RolloutConfig
from dwm.scenario.types import KEY_FRAME_HZ
from pipelines.atomic import canonical_json

EXECUTOR_NAMES = ("serial", "ray")
X264_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenesConfig:
    """Which logged scenes to start from."""

    dataroot: str = "out/world"  # folder of a nuScenes dataset or a built proving ground
    version: str = "v1.0-mini"  # table folder inside the dataroot
    names: list[str] = field(default_factory=list)  # scene names; empty: all of `split`
    split: str = ""  # nuScenes split, or one of the dataroot's splits.json; empty with no names: every scene


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbationConfig:
    """One change of the ego path. Parameters not given are sampled from severity and seed."""

    name: str = "baseline"
    severity: float = 0.5  # 0 to 1
    params: dict[str, float] = field(default_factory=dict)  # units in the names, e.g. offset_m


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyConfig:
    """One entry of the weighted list that a mix draws perturbations from."""

    name: str = "baseline"  # a family, or several joined by "+", e.g. hard_brake+night
    weight: float = 1.0  # share of the clips, relative to the other entries
    severity: list[float] = field(default_factory=lambda: [0.0, 1.0])  # drawn evenly from this range
    ranges: dict[str, list[float]] = field(default_factory=dict)  # parameter -> [low, high]; others as the family draws them


@dataclass(frozen=True, slots=True, kw_only=True)
class MixConfig:
    """Clips drawn from all scenes, rare stretches of the log first, so that tags reach their shares."""

    clips: int = 0
    families: list[FamilyConfig] = field(default_factory=lambda: [FamilyConfig()])
    shares: dict[str, float] = field(default_factory=dict)  # tag -> share of the clips that carry it, see dwm/scenario/tags.py
    max_repeats: int = 2  # clips that start from the same stretch
    temperature: float = 1.0  # stretches are drawn by rarity to this power where shares leave a choice; 0: all alike
    stride_s: float = 0.0  # time between the stretches of a scene [s]; 0: half a clip
    misses: str | None = None  # published version whose labels' support tells what the evaluator misses; none: unknown
    missed_below: float | None = None  # support that counts as missed; none: the operating score of evaluate.detector


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioConfig:
    """What is imagined: from each scene every listed perturbation with every seed, and a mix drawn over all scenes."""

    duration_s: float = 60.0
    fps: float = 12.0
    labels_hz: float = 2.0  # boxes: 2 Hz are the key frames alone; a higher rate must divide fps, fps itself labels every frame
    start_s: float = 0.0  # from the start of the scene; a mix chooses its own
    perturbations: list[PerturbationConfig] | None = None  # none: the baseline, or beside a mix nothing
    seeds: list[int] = field(default_factory=lambda: [0])  # each is added to the run's seed
    draws: int = 0  # how often open parameters are drawn, while planning, until a scenario is feasible; 0: once, untried
    mix: MixConfig | None = None

    @property
    def listed(self) -> list[PerturbationConfig]:
        """The perturbations that every scene gets."""
        if self.perturbations is None:
            return [PerturbationConfig()] if self.mix is None else []
        return self.perturbations


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Weights of the world model."""

    codec: str = "weights/codec.safetensors"  # an own file, or diffusers:<folder or hub id>[#subfolder]
    world_model: str = "weights/world_model.safetensors"
    fine_model: str | None = None  # for frames between key frames (hierarchical); none: the world model's own
    things: str | None = None  # how things look that no frame has shown yet; none: the world model makes them up
    text_encoder: str | None = None  # folder or hub id of the T5 whose features the world model reads; none: words of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoConfig:
    """How frames become mp4 files."""

    crf: float = 17.0  # libx264 constant rate factor; lower is better and larger
    preset: str = "medium"  # libx264 speed preset


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """How generated clips are scored."""

    detector: str | None = None  # weights of the 3D detector, or of VAD; none: no detection metrics
    ego_motion: str | None = None  # weights of the network that reads the ego's motion; none: it is not compared with the path
    every_s: float = 0.5  # time between scored frames
    counterfactual: bool = True  # compare with true video where the world can render it


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionConfig:
    """Where and how shards run. Nothing here changes a pixel."""

    executor: str = "serial"  # serial | ray
    workers: int = 1  # models held at once
    num_cpus: int = 0  # CPU cores of a local Ray; 0: all of this machine
    gpus_per_worker: float = 0.0
    address: str = ""  # Ray cluster to join, e.g. "auto"; empty: a local Ray for this run
    attempts: int = 3  # failed attempts before a shard is quarantined
    deadline_minutes: float = 120.0  # a Ray worker is replaced when one shard takes longer
    drain_minutes: float = 10.0  # how long running shards may finish after SIGTERM
    seconds_per_frame: float = 0.5  # used to predict a shard's minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One generation run. The same configuration and folder resume it."""

    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    scenario: ScenarioConfig = field(default_factory=ScenarioConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    gate: dict[str, float | None] = field(default_factory=dict)  # thresholds by name, null for none: evaluators/gate.py
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    out: str = "out/run"  # run folder, becomes the dataset
    seed: int = 0


# Settings that came after there were runs, with the value at which they change nothing.
_LATER: dict[str, dict[str, Any]] = {
    "scenario": {"mix": None},
    "model": {"text_encoder": None, "fine_model": None},
    "rollout": {"gaps_at_once": 4, "correct_anchors": True, "logged_frames": 1, "precision": "auto"},
    "evaluate": {"ego_motion": None},
}


def identity_of(section: str, settings: Any) -> dict[str, Any]:
    """What a section of the configuration counts as: older runs keep their identity when a setting is added."""
    later = _LATER.get(section, {})
    return {name: value for name, value in asdict(settings).items() if name not in later or value != later[name]}


def config_sha256(config: RunConfig) -> str:
    """Identity of a run: everything but the place it is written to and the machines it runs on."""
    fields: dict[str, Any] = asdict(config)
    del fields["execution"], fields["out"]
    fields |= {section: identity_of(section, getattr(config, section)) for section in _LATER}
    fields["scenario"]["perturbations"] = [asdict(entry) for entry in config.scenario.listed]
    return hashlib.sha256(canonical_json(fields)).hexdigest()


def check_config(config: RunConfig, where: str = "configuration") -> None:
    """Raises InputError for values no run can use."""
    scenario, execution = config.scenario, config.execution
    times = {
        "duration_s": scenario.duration_s,
        "fps": scenario.fps,
        "start_s": scenario.start_s,
        "labels_hz": scenario.labels_hz,
    }
    for name, value in times.items():
        _require(math.isfinite(value), where, f"scenario.{name} is {value}", "give a finite number")
    _require(scenario.duration_s > 0, where, f"scenario.duration_s is {scenario.duration_s}", "give a length in seconds")
    _require(scenario.fps > 0, where, f"scenario.fps is {scenario.fps}", "give a positive rate, e.g. 12")
    shortest = f"give at least one frame: {1 / scenario.fps:.3f} s at {scenario.fps:g} fps"
    problem = f"scenario.duration_s is {scenario.duration_s}: shorter than a frame"
    _require(round(scenario.duration_s * scenario.fps) >= 1, where, problem, shortest)
    _require(scenario.start_s >= 0, where, f"scenario.start_s is {scenario.start_s}", "start at 0 or later")
    _check_labels_hz(scenario, where)
    empty = not scenario.listed and scenario.mix is None
    _require(not empty, where, "scenario.perturbations is empty", "list at least one, e.g. {name: baseline}")
    _require(bool(scenario.seeds), where, "scenario.seeds is empty", "list at least one, e.g. [0]")
    _require(min(scenario.seeds, default=0) + config.seed >= 0, where, "a seed is negative", "use seeds of 0 or more")
    _require(scenario.draws >= 0, where, f"scenario.draws is {scenario.draws}", "use 0 or more, e.g. 8")
    for perturbation in scenario.listed:
        problem = f"severity of {perturbation.name} is {perturbation.severity}"
        _require(0 <= perturbation.severity <= 1, where, problem, "give a value from 0 to 1")
    names = " or ".join(EXECUTOR_NAMES)
    _require(execution.executor in EXECUTOR_NAMES, where, f"unknown executor '{execution.executor}'", f"use {names}")
    _require(execution.workers >= 1, where, f"execution.workers is {execution.workers}", "use at least 1")
    _require(execution.attempts >= 1, where, f"execution.attempts is {execution.attempts}", "use at least 1")
    _require(execution.deadline_minutes > 0, where, "execution.deadline_minutes is not positive", "give minutes per shard")
    rollout = config.rollout
    for name, value, known in (
        ("strategy", rollout.strategy, STRATEGY_NAMES),
        ("memory", rollout.memory, MEMORY_MODES),
        ("precision", rollout.precision, PRECISIONS),
    ):
        _require(value in known, where, f"unknown rollout.{name} '{value}'", f"use {' or '.join(known)}")
    _require(rollout.steps >= 1, where, f"rollout.steps is {rollout.steps}", "use at least 1")
    problem = f"rollout.condition_frames is {rollout.condition_frames} of a window of {rollout.window_frames}"
    split = 1 <= rollout.condition_frames < rollout.window_frames
    _require(split, where, problem, "keep at least one frame given and one to generate")
    total = round(scenario.duration_s * scenario.fps)
    problem = f"rollout.logged_frames is {rollout.logged_frames} of a video of {total} frames"
    some_left = 1 <= rollout.logged_frames <= max(total - 1, 1)
    _require(some_left, where, problem, "use at least 1, and leave at least one to generate")
    _require(rollout.anchor_fps > 0, where, f"rollout.anchor_fps is {rollout.anchor_fps}", "give a positive rate, e.g. 2")
    _require(rollout.gaps_at_once >= 1, where, f"rollout.gaps_at_once is {rollout.gaps_at_once}", "use at least 1")
    problem = f"rollout.anchor_error is {rollout.anchor_error} and rollout.anchor_noise is {rollout.anchor_noise}"
    correctable = 0 <= rollout.anchor_error < rollout.anchor_noise <= 1
    _require(correctable, where, problem, "keep 0 <= anchor_error < anchor_noise <= 1")
    problem = f"rollout.progressive_omega is {rollout.progressive_omega}"
    _require(0 <= rollout.progressive_omega <= math.pi / 2, where, problem, "use 0 (off) to pi/2")
    _require(config.evaluate.every_s > 0, where, f"evaluate.every_s is {config.evaluate.every_s}", "give seconds, e.g. 0.5")
    presets = ", ".join(X264_PRESETS)
    _require(config.video.preset in X264_PRESETS, where, f"video.preset is '{config.video.preset}'", f"use one of {presets}")
    _require(0 <= config.video.crf <= 51, where, f"video.crf is {config.video.crf}", "use 0 to 51, e.g. 17")
    if scenario.mix is not None:
        from pipelines.long_tail.check import check_mix

        check_mix(scenario.mix, where)
        _require(config.seed >= 0, where, f"seed is {config.seed}", "use 0 or more with a mix")


def _check_labels_hz(scenario: ScenarioConfig, where: str) -> None:
    rate = scenario.labels_hz
    whole = rate > 0 and abs(scenario.fps / rate - round(scenario.fps / rate)) < 1e-6
    problem = f"scenario.labels_hz is {rate:g}, which does not divide fps ({scenario.fps:g})"
    fix = f"use 2 (key frames), {scenario.fps:g} (every frame) or a rate between that divides it"
    _require(rate == KEY_FRAME_HZ or (rate > KEY_FRAME_HZ and whole), where, problem, fix)


def _require(condition: bool, where: str, problem: str, fix: str) -> None:
    if not condition:
        raise InputError(where, problem, fix)
