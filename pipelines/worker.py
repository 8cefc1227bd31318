"""One worker: holds the models, turns a shard into videos, labels, scores and a verdict."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from omegaconf import OmegaConf

from dwm.conditioning.build import ScenarioConditioner, images_to_tensor, tensor_to_images
from dwm.conditioning.relight import given_frames
from dwm.errors import InputError
from dwm.rollout.strategies import roll_out
from dwm.rollout.world_model import WorldModel
from dwm.scenario.build import ScenarioBuilder
from dwm.scenario.types import Rejection, Scenario
from dwm.scenes.nuscenes import read_scene, source_notes
from dwm.scenes.types import CAMERAS
from evaluators.gate import GateConfig, judge
from pipelines import clip_rows, clip_scores
from pipelines.attempt import ShardResult
from pipelines.clip_scores import ClipScores
from pipelines.config import RunConfig
from pipelines.events import report_progress
from pipelines.logged_frames import leading_images, led_by_log
from pipelines.plan import Shard, shard_seed
from pipelines.schema import write_table
from pipelines.video import VideoWriter, encode_psnr_db, video_row

Images = NDArray[np.uint8]
_KEPT_EVERY = 24  # one frame in so many is kept to measure what the video coding costs


@dataclass(slots=True)
class _Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class ShardWorker:
    """Loads every model once; ``run`` makes one shard after another."""

    def __init__(self, config_yaml: str) -> None:
        schema = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(yaml.safe_load(config_yaml)))
        self.config: RunConfig = OmegaConf.to_object(schema)  # type: ignore[assignment]
        model = self.config.model
        things, fine = (Path(name) if name else None for name in (model.things, model.fine_model))
        self.world = WorldModel.load(model.codec, Path(model.world_model), things, fine=fine, text_encoder=model.text_encoder)
        self.judges = clip_scores.Judges.load(self.config.evaluate)
        self.gate = _gate_config(self.config.gate)
        # A plan has the shards of one scene beside each other: they share its log and baseline.
        self._scenarios = lru_cache(maxsize=1)(self._open)

    def run(self, shard: Shard, attempt_dir: Path) -> ShardResult:
        """Generate, encode, score, judge; everything lands below ``attempt_dir``."""
        clock = _Clock()
        with clock.stage("scenario"):
            builder = self._scenarios(shard.scene_name, shard.seed, shard.duration_s, shard.fps, shard.start_s)
            scene, logged = builder.scene, self.config.rollout.logged_frames
            scenario = led_by_log(builder.build(shard.perturbation), logged)
        if isinstance(scenario, Rejection):
            detail = f"{scenario.reason}: {scenario.detail}"
            write_table(
                "clips", [clip_rows.rejected_clip(shard, scene, self.config, detail)], attempt_dir / "tables" / "clips.parquet"
            )
            return ShardResult(outcome="rejected", detail=detail, timings_s=clock.seconds)
        conditioner = self.world.conditioner(scenario)
        leading = given_frames(scenario, conditioner, leading_images(scenario, logged, self.world.image_hw))
        video_rows = self._film(shard, scenario, conditioner, leading, attempt_dir, clock)
        with clock.stage("score"):
            scores = clip_scores.score_clip(
                scenario, conditioner, attempt_dir, leading, self.world, self.judges, self.config.evaluate
            )
        with clock.stage("encode"):
            video_rows += self._film_truth(shard, scores, attempt_dir)
        verdict = judge(scores.for_gate, self.gate)
        with clock.stage("write"):
            clip_rows.write_clip(
                attempt_dir, shard, scenario, self.config, verdict=verdict, videos=video_rows, scores=scores,
                cameras=conditioner.cameras, notes=(*source_notes(scene), *scenario.notes, *conditioner.notes),
            )  # fmt: skip
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        facts = {"peak_memory_bytes": peak, "denoising_steps": self.config.rollout.steps, "verdict_keep": verdict.keep}
        return ShardResult(n_frames=len(scenario.timestamps_us), timings_s=clock.seconds, facts=facts)

    def _open(self, scene_name: str, seed: int, duration_s: float, fps: float, start_s: float) -> ScenarioBuilder:
        scene = read_scene(Path(self.config.scenes.dataroot), self.config.scenes.version, scene_name)
        return ScenarioBuilder(scene, seed, duration_s=duration_s, fps=fps, start_s=start_s)

    def _film(
        self,
        shard: Shard,
        scenario: Scenario,
        conditioner: ScenarioConditioner,
        leading: Images,
        attempt_dir: Path,
        clock: _Clock,
    ) -> list[dict]:
        """Roll out behind the leading frames [N, V, H, W, 3] into six mp4 files, chunk by chunk; rows of ``videos``."""
        total, video = len(scenario.timestamps_us), self.config.video
        kept: dict[int, Images] = {}
        height, width = self.world.image_hw
        with ExitStack() as stack:
            writers = {
                channel: stack.enter_context(
                    VideoWriter(attempt_dir / f"{channel}.mp4", width, height, shard.fps, video.crf, video.preset)
                )
                for channel in CAMERAS
            }
            _write(writers, leading, 0, kept)
            chunks = roll_out(
                self.world,
                conditioner,
                images_to_tensor(leading, self.world.device),
                self.config.rollout,
                shard_seed(shard.shard_id),
            )
            while True:
                with clock.stage("generate"):
                    chunk = next(chunks, None)
                if chunk is None:
                    break
                _check_finite(chunk.images_NV3HW, chunk.first_frame)
                with clock.stage("encode"):
                    _write(writers, tensor_to_images(chunk.images_NV3HW), chunk.first_frame, kept)
                report_progress(attempt_dir, chunk.first_frame + len(chunk.images_NV3HW), total)
        with clock.stage("encode"):
            loss = clip_scores.encode_loss_db(attempt_dir, kept)
        return [video_row(w, shard.shard_id, channel, "rgb", loss[channel]) for channel, w in writers.items()]

    def _film_truth(self, shard: Shard, scores: ClipScores, attempt_dir: Path) -> list[dict]:
        """What the scored frames truly look like, as mp4 files beside the clip's; nothing where that is unknown."""
        if scores.truth is None:
            return []
        first, *later = scores.scored_frames
        shown = range(first, scores.scored_frames[-1] + 1, later[0] - first if later else 1)
        rows = []
        for images, channel in zip(scores.truth.swapaxes(0, 1), CAMERAS, strict=True):
            height, width = images.shape[1:3]
            writer = VideoWriter(
                attempt_dir / f"{channel}.truth.mp4", width, height, shard.fps / shown.step, self.config.video.crf,
                self.config.video.preset,
            )  # fmt: skip
            with writer:
                for image in images:
                    writer.write(image)
            rows.append(video_row(writer, shard.shard_id, channel, "truth", encode_psnr_db(writer.path, images), shown))
        return rows


def _write(writers: dict[str, VideoWriter], frames: Images, first: int, kept: dict[int, Images]) -> None:
    """Append frames [N, V, H, W, 3], the first of them number ``first``, and keep some."""
    for number, frame in enumerate(frames, start=first):
        for image, writer in zip(frame, writers.values(), strict=True):
            writer.write(image)
        if number % _KEPT_EVERY == 0:
            kept[number] = frame


def _check_finite(images: torch.Tensor, frame: int) -> None:
    if not bool(torch.isfinite(images).all()):
        raise FloatingPointError(f"the world model produced NaN or infinite pixels at frame {frame}")


def _gate_config(thresholds: dict[str, float | None]) -> GateConfig:
    known = GateConfig.__dataclass_fields__
    for name, limit in thresholds.items():
        if name not in known:
            raise InputError("gate", f"unknown threshold '{name}'", f"choose from {', '.join(known)}")
        if limit is None and "None" not in str(known[name].type):
            raise InputError("gate", f"{name} is null", "give a number; min_relative_recall=null switches the criterion off")
    return replace(GateConfig(), **thresholds)
