"""Ways to a minute of video side by side: strategies, systems and their ablations, on held-out scenes where truth is known.

Every variant of ``conf/bench/systems.yaml`` continues the same starting moments along the logged path. In the last seconds of every
10 s the frames are held against the true video: FVD-pg and FID-pg (``evaluators.frechet_features``), PSNR, and the detector's mAP
relative to its mAP on true frames. Beside them stand time and passes through the network. Intervals resample starting moments.
What is done is kept below ``--out``: the same command goes on. ``fronts.png`` there shows the first moment in every variant.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from dwm.conditioning.build import ScenarioConditioner
from dwm.config import load_config
from dwm.errors import InputError
from dwm.models.weights import load_config_of, weights_sha256
from dwm.processes import one_thread_pool
from dwm.rollout.config import RolloutConfig
from dwm.rollout.strategies import Chunk
from dwm.rollout.world_model import WorldModel
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from dwm.scenes.types import CAMERAS
from evaluators.buckets import BUCKET_S
from evaluators.counterfactual import psnr_db
from evaluators.detector.inference import Detector
from evaluators.frechet_features import CLIP_FRAMES, FrechetFeatures
from pipelines.bench.rollouts import (
    FPS,
    LOGGED_S,
    Images,
    Moment,
    first_feasible,
    generate,
    rejections,
    size,
    starting_moments,
    true_frames,
)
from pipelines.bench.systems_figure import draw_fronts
from pipelines.bench.systems_run import Cost, Counted, Run, Scored, Stopwatch, load_run, save_run
from pipelines.bench.systems_table import systems_table
from pipelines.clip_labels import detect_frames, visible_labels
from pipelines.config import identity_of

_DETECTED_EVERY = 6  # frames
_BETWEEN_KEY_FRAMES = ("divide_and_conquer", "hierarchical")  # strategies whose new frames no later chunk waits for


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A system with a strategy; what is not said is the command's or the file's."""

    name: str = ""
    world_model: str = ""
    fine_model: str = ""
    rollout: dict[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0  # at most; 0 is the command's
    cases: int = 0  # the first starting moments alone; 0 is the command's


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemsConfig:
    """What is compared."""

    scored_s: float = 4.0  # [s] at the end of every 10 s
    rollout: dict[str, Any] = field(default_factory=dict)  # RolloutConfig of all variants
    variants: list[Variant] = field(default_factory=list)
    comparisons: list[list[str]] = field(default_factory=list)  # pairs of variants: FVD-pg of the first over that of the second


def bench_systems(
    dataroot: Path, version: str, codec: Path, weights: Path, things: Path, detector: Path, cases: int, duration_s: float,
    systems: Path, out: Path | None, processes: int = 1,
) -> str:  # fmt: skip
    """The table as Markdown; ``cases`` starting moments, ``duration_s`` long, buckets of 10 s that fit into it.

    Of several ``processes`` each makes a part of the clips on one thread.
    """
    config = load_config(SystemsConfig, systems)
    _check(config, systems, duration_s)
    if processes < 1:
        raise InputError("--processes", f"{processes}", "give 1 or more")
    order = _Order(
        config=config, dataroot=dataroot, version=version, codec=codec, weights=weights, things=things, detector=detector,
        cases=cases, duration_s=duration_s, folder=out or Path("out/bench/systems"),
    )  # fmt: skip
    if processes > 1:
        with one_thread_pool(processes) as pool:
            for part in [pool.submit(_make, order, part, processes) for part in range(processes)]:
                part.result()
    scenes, runs, rejected = _make(order)
    draw_fronts(runs, order.folder / "fronts.png")
    size_px, judge = size(load_config_of(weights, "multi_view_dit").image_hw), weights_sha256(detector)[:12]
    lines = [
        f"{len(scenes)} starting moments of {len(set(scenes))} scenes, as driven; scored: the last {config.scored_s:g} s of every "
        f"{BUCKET_S:g} s; six cameras, {size_px}; detector {judge}; {processes} at a time"
    ]  # fmt: skip
    return "\n".join([*lines, *systems_table(runs, [tuple(pair) for pair in config.comparisons]), *rejections(rejected)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What is to be made, as every process gets it."""

    config: SystemsConfig
    dataroot: Path
    version: str
    codec: Path
    weights: Path
    things: Path
    detector: Path
    cases: int
    duration_s: float
    folder: Path


def _make(order: _Order, part: int = 0, of: int = 1) -> tuple[list[str], dict[str, list[Run]], Counter[str]]:
    """Every ``of``-th clip from ``part`` on, made or found: names of their scenes, runs by variant, what could not be driven."""
    config, rejected, runs = order.config, Counter[str](), dict[str, list[Run]]()
    judge = Detector.load(order.detector)
    moments = list(enumerate(starting_moments(order.dataroot, order.version, order.cases, LOGGED_S)))[part::of]
    held = [(n, m, s) for n, m in moments if (s := first_feasible(m, (BASELINE,), order.duration_s, rejected, "as driven"))]
    bench = _Bench(config, order.codec, order.weights, order.things, judge, order.folder)
    image_hw = load_config_of(order.weights, "multi_view_dit").image_hw
    with tqdm(total=len(held) * (1 + len(config.variants)), desc="clips", disable=True if part else None) as bar:
        for number, moment, scenario in held:
            clip = _Clip(moment, scenario, judge, config.scored_s, order.duration_s, image_hw)
            for name, run in bench.of(clip, order.duration_s, number):
                runs.setdefault(name, []).append(run)
                bar.update()
    return [moment.scene.name for _, moment, _ in held], runs, rejected


def rollout_of(config: SystemsConfig, variant: Variant, where: Path) -> RolloutConfig:
    """The file's settings with the variant's over them; InputError for unknown ones."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RolloutConfig), config.rollout, variant.rollout)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise InputError(where, f"variant '{variant.name}': {first}", "see the fields of RolloutConfig") from error


def _check(config: SystemsConfig, where: Path, duration_s: float) -> None:
    names = [variant.name for variant in config.variants]
    if not names or len(set(names)) < len(names) or "" in names or "truth" in names:
        raise InputError(where, f"variants named {names}", "give each a name of its own, other than 'truth'")
    for pair in config.comparisons:
        if len(pair) != 2 or not set(pair) <= set(names):
            raise InputError(where, f"comparison {pair}", f"name two of {', '.join(names)}")
    for variant in config.variants:
        rollout_of(config, variant, where)
        for weights in filter(None, (variant.world_model, variant.fine_model)):
            load_config_of(Path(weights), "multi_view_dit")  # or its InputError, before hours of work
    if duration_s < BUCKET_S:
        raise InputError("--duration", f"{duration_s:g} s", f"give {BUCKET_S:g} or more: scored in buckets of {BUCKET_S:g} s")
    if not CLIP_FRAMES / FPS <= config.scored_s <= BUCKET_S:
        raise InputError(where, f"scored_s {config.scored_s:g}", f"give {CLIP_FRAMES / FPS:.2f} to {BUCKET_S:g}")


class _Clip:
    """One starting moment: frames to be scored, their labels, true pictures as they are asked for."""

    def __init__(
        self, moment: Moment, scenario: Scenario, detector: Detector, scored_s: float, duration_s: float,
        image_hw: tuple[int, int],
    ) -> None:  # fmt: skip
        self.moment, self.scenario, self._detector, self.image_hw = moment, scenario, detector, image_hw
        self.conditioner = ScenarioConditioner(scenario, image_hw=image_hw)
        ends = np.arange(1, int(duration_s // BUCKET_S) + 1) * BUCKET_S
        self.buckets = [list(range(round((end - scored_s) * FPS) + 1, round(end * FPS) + 1)) for end in ends]
        self.name = f"{moment.scene.name}-{moment.start_s:.1f}-{scenario.seed}"
        self._truth: list[Images] | None = None

    @property
    def truth(self) -> list[Images]:
        """By bucket; rendered once."""
        if self._truth is None:
            self._truth = [true_frames(self.moment, self.scenario, frames, self.image_hw) for frames in self.buckets]
        return self._truth

    def scored(self, images: Images, b: int, features: FrechetFeatures) -> Scored:
        """What frames of bucket ``b`` show."""
        chosen = list(range(len(images) - 1, -1, -_DETECTED_EVERY))[::-1]
        frames = [self.buckets[b][i] for i in chosen]
        return Scored(
            psnr_db=psnr_db(images, self.truth[b]).mean(1), image_features=features.of_images(images),
            video_features=features.of_video(images),
            detections=tuple(detect_frames(self._detector, self.conditioner, self.scenario, images[chosen], frames)),
            labels=tuple(visible_labels(self.scenario, self.conditioner, f)[1] for f in frames),
            front_HW3=images[-1, CAMERAS.index("CAM_FRONT")],
        )  # fmt: skip


class _Bench:
    """Variants at a clip: from disk, or made and kept."""

    def __init__(self, config: SystemsConfig, codec: Path, weights: Path, things: Path, judge: Detector, folder: Path) -> None:
        self._config, self._folder, self._features = config, folder, FrechetFeatures(judge)
        self._codec, self._weights, self._things = codec, weights, things
        self._worlds: dict[tuple[str, str], WorldModel] = {}

    def of(self, clip: _Clip, duration_s: float, number: int) -> list[tuple[str, Run]]:
        """The truth and every variant that goes as far as this ``number``."""
        return [("truth", self._kept("truth", clip, {}, lambda: self._true(clip)))] + [
            (variant.name, self._variant(variant, clip, duration_s))
            for variant in self._config.variants
            if not variant.cases or number < variant.cases
        ]

    def _variant(self, variant: Variant, clip: _Clip, duration_s: float) -> Run:
        rollout = rollout_of(self._config, variant, Path("systems"))
        buckets = int(min(duration_s, variant.duration_s or duration_s) // BUCKET_S)
        world, fine = Path(variant.world_model or self._weights), variant.fine_model
        files = [self._codec, world, self._things, *([Path(fine)] if fine else [])]
        key = {
            "rollout": identity_of("rollout", rollout),
            "buckets": buckets,
            "weights": [weights_sha256(file) for file in files],
        }
        return self._kept(variant.name, clip, key, lambda: self._made(self._world(world, fine), rollout, clip, buckets))

    def _kept(self, name: str, clip: _Clip, key: dict[str, Any], make: Any) -> Run:
        about = {**key, "detector": self._features.sha256, "scored_s": self._config.scored_s, "last": clip.buckets[-1][-1]}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        path = self._folder / name.replace(" ", "_") / f"{clip.name}-{digest}.npz"
        if not path.is_file():
            save_run(make(), path)
        return load_run(path)

    def _world(self, world: Path, fine: str) -> WorldModel:
        key = (str(world), fine)
        if key not in self._worlds:
            self._worlds[key] = WorldModel.load(self._codec, world, self._things, fine=Path(fine) if fine else None)
        return self._worlds[key]

    def _true(self, clip: _Clip) -> Run:
        scored = tuple(clip.scored(images, b, self._features) for b, images in enumerate(clip.truth))
        return Run(buckets=scored, cost=Cost(seconds=0.0, seconds_side_by_side=0.0, passes=0, frames=0))

    def _made(self, world: WorldModel, rollout: RolloutConfig, clip: _Clip, buckets: int) -> Run:
        if world.image_hw != clip.image_hw:
            problem = f"a variant's images are {size(world.image_hw)}, the others' {size(clip.image_hw)}"
            raise InputError("systems", problem, "compare models of one image size")
        counted = Counted(world.denoiser)
        fine = None if world.fine is None else Counted(world.fine)
        watch = Stopwatch()

        def on_chunk(chunk: Chunk) -> None:
            watch.chunk(waited_for=rollout.strategy not in _BETWEEN_KEY_FRAMES or not len(chunk.images_NV3HW))

        # A fresh conditioner: what another variant has computed must not be this one's head start.
        conditioner, frames = world.conditioner(clip.scenario), [f for bucket in clip.buckets[:buckets] for f in bucket]
        made = generate(replace(world, denoiser=counted, fine=fine), conditioner, rollout, frames, on_chunk=on_chunk)
        cost = Cost(
            seconds=watch.seconds, seconds_side_by_side=watch.seconds_side_by_side, passes=counted.windows + (fine.windows if fine else 0),
            frames=made.frames,
        )  # fmt: skip
        parts = np.split(made.images, buckets)
        return Run(buckets=tuple(clip.scored(images, b, self._features) for b, images in enumerate(parts)), cost=cost)
