"""Training the world model on cached clips.

Shapes: B batch, T frames, V views, C channels, h w latent pixels.
"""

from __future__ import annotations

import fnmatch
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dwm.codec.load import load_codec
from dwm.errors import InputError
from dwm.flow.rectified import flow_loss, interpolate, sample_training_noise_levels
from dwm.flow.sampler import denoise
from dwm.models.conditioning import DenoiseCondition
from dwm.models.dit import MultiViewDiT
from dwm.models.masking import TokenMask, draw_mask
from dwm.models.open_sora import initialise_from_open_sora
from dwm.models.systems import build_denoiser
from dwm.models.weights import fit_shared, fit_tensors, load_tensors
from dwm.training.adversary import Duel, critic_loss, persuasion, pulled
from dwm.training.clips import ClipBatch, ClipSource, TrainingClip, collate
from dwm.training.codec_trainer import psnr_db, to_pixels
from dwm.training.config import TrainConfig, WorldTraining
from dwm.training.faith import draw_faith
from dwm.training.parallel import join_crew
from dwm.training.shortcut import fit_shortcut
from dwm.training.wear import Wear, draw_wear

logger = logging.getLogger(__name__)
STRIP_VIEWS = (0, 4)  # cameras shown in image strips: front and back left


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What chance decides about a batch, all on the CPU."""

    levels_BT: Tensor  # noise level per frame, 1 where it is given clean
    has_text_B: Tensor
    has_waypoints_B: Tensor
    has_layout_B: Tensor
    has_memory_B: Tensor
    has_appearance_B: Tensor


def draw(generator: torch.Generator, given_B: Tensor, frames: int, config: WorldTraining) -> Draw:
    """How noisy each frame is and what the model is not told; ``given_B`` leading frames of each clip are given."""
    batch = len(given_B)
    levels = torch.stack([_draw_levels(generator, given, frames, config) for given in given_B.tolist()])

    def told(drop: float) -> Tensor:
        return torch.rand(batch, generator=generator) >= drop

    text, waypoints, layout = told(config.drop_text), told(config.drop_waypoints), told(config.drop_layout)
    memory, appearance, more = told(config.drop_memory), told(config.drop_appearance), told(config.papers_inputs_share)
    return Draw(
        levels_BT=levels, has_text_B=text, has_waypoints_B=waypoints, has_layout_B=layout & more, has_memory_B=memory & more,
        has_appearance_B=appearance & more,
    )  # fmt: skip


def _draw_levels(generator: torch.Generator, leading: int, frames: int, config: WorldTraining) -> Tensor:
    """Levels [T] of one clip."""
    anchored, order, dirtied, corrected = torch.rand(4, generator=generator).tolist()
    given = (torch.arange(frames) < leading)[None]
    given[0, -1] |= anchored < config.anchor_share and leading < frames - 1  # something is left to learn
    anchor = torch.zeros_like(given)
    anchor[0, -1] = corrected < config.noisy_anchor_share and not given[0, -1]
    kind = "shared"
    if order < config.progressive_share:
        kind = "progressive"
    elif order < config.progressive_share + config.independent_share:
        kind = "independent"
    levels = sample_training_noise_levels(generator, given, kind=kind, config=config.noise, anchor_mask_BT=anchor)
    if dirtied < config.dirty_condition_share:
        low = config.dirty_condition_level
        dirty = low + (1 - low) * torch.rand(1, frames, generator=generator)
        levels = torch.where(given, dirty, levels)
    return levels[0]


def condition_of(batch: ClipBatch, drawn: Draw | None = None) -> DenoiseCondition:
    """The condition of a batch; inputs that no clip keeps are left out. None keeps everything."""
    device = batch.latents_BTVCHW.device
    everything = torch.ones(len(batch.fps_B), dtype=torch.bool)
    text, path, layout, memory, appearance = (
        (drawn.has_text_B, drawn.has_waypoints_B, drawn.has_layout_B, drawn.has_memory_B, drawn.has_appearance_B)
        if drawn
        else [everything] * 5
    )
    appearance = appearance & layout  # it is painted over the layout
    return DenoiseCondition(
        waypoints_BTK=batch.waypoints_BTK, cameras_BVK=batch.cameras_BVK, times_BT=batch.times_BT, fps_B=batch.fps_B,
        text_BL=batch.text_BL, text_features_BLK=batch.text_features_BLK, has_text_B=text, has_waypoints_B=path, has_layout_B=layout, has_memory_B=memory,
        has_appearance_B=appearance,
        layout_BTVCHW=batch.layout_BTVCHW if layout.any() else None,
        memory_BTVCHW=batch.memory_BTVCHW if memory.any() else None,
        memory_valid_BTV1HW=batch.memory_valid_BTV1HW if memory.any() else None,
        appearance_BTVCHW=batch.appearance_BTVCHW if appearance.any() else None,
        appearance_known_BTV1HW=batch.appearance_known_BTV1HW if appearance.any() else None,
    ).to(device)  # fmt: skip


def _given(batch: ClipBatch) -> Tensor:
    """Which frames are given, bool [B, T]."""
    frames = torch.arange(batch.latents_BTVCHW.shape[1], device=batch.given_B.device)
    return frames < batch.given_B[:, None]


def _denoiser(model: nn.Module) -> MultiViewDiT:
    return model.denoiser if isinstance(model, Duel) else model  # type: ignore[return-value]


def _freeze(model: nn.Module, trainable: tuple[str, ...]) -> None:
    """Only parameters of these patterns learn; InputError for a pattern of none."""
    if not trainable:
        return
    names = [name for name, _ in model.named_parameters()]
    for pattern in trainable:
        if not fnmatch.filter(names, pattern):
            raise InputError("world.trainable", f"no parameter is named '{pattern}'", f"names look like {names[0]}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatch(name, pattern) for pattern in trainable))


def _check(config: WorldTraining) -> None:
    """InputError for settings that mean nothing."""
    if not 0 <= config.mask_ratio < 1:
        raise InputError("world.mask_ratio", f"{config.mask_ratio} of the tokens cannot be dropped", "give 0 or more, below 1")
    if not 0 <= config.mask_time_share <= 1:
        raise InputError("world.mask_time_share", f"{config.mask_time_share} is not a probability", "give 0 to 1")
    if config.shortcut_clips and not config.model.preconditioned:
        fix = "set it to 0: the shortcut is part of preconditioned models"
        raise InputError("world.shortcut_clips", f"{config.shortcut_clips} of a model without a shortcut", fix)
    if config.most_given < 0:
        raise InputError("world.most_given", f"{config.most_given} frames cannot be given", "give 0 or more")


def _check_fit(config: TrainConfig, clip: TrainingClip) -> None:
    """InputError unless the model reads what the clips were encoded with."""
    model, features = config.world.model, clip.text_features_LK
    facts = (
        ("latent channels", clip.latents_TVCHW.shape[2], model.latent_channels, "codec"),
        ("text features", 0 if features is None else features.shape[-1], model.text_features, "text encoder"),
    )
    for what, found, wanted, by in facts:
        if found != wanted:
            problem = f"the clips have {found} {what}, the model reads {wanted}"
            raise InputError(
                config.data, problem, f"encode clips with the {by} that the model is meant for, or correct world.model"
            )
    rows, columns = clip.latents_TVCHW.shape[-2:]
    height, width = model.image_hw
    if height % rows or height * columns != width * rows:
        problem = f"the clips have {rows}x{columns} latents a view, the model's images {height}x{width} px"
        raise InputError(config.data, problem, "give world.model.image_hw the size that the clips were encoded at")


class WorldTask:
    """Trains a world model; see ``dwm.training.loop.Task``."""

    def __init__(self, config: TrainConfig, clips: ClipSource) -> None:
        self.config, self.clips = config, clips
        if len(clips) <= config.world.held_out:
            raise InputError(config.data, f"only {len(clips)} clips", f"give more than the {config.world.held_out} held out")
        if config.loop.shard and config.world.adversary:
            raise InputError("loop.shard", "true beside world.adversary", "train against a critic with a copy in each process")
        _check(config.world)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.loop.seed)
            self.model: nn.Module = (Duel if config.world.adversary else build_denoiser)(config.world.model)
        if config.initial_shell:
            path = Path(config.initial_shell)
            shared = fit_shared(_denoiser(self.model), load_tensors(path)[0], path)
            logger.info("%d tensors of the model start as in %s", len(shared), path)
        if config.initial_weights and config.initial_open_sora:
            raise InputError("initial_open_sora", "initial_weights is given too", "start from one of them")
        _denoiser(self.model).recompute = config.world.recompute_blocks
        if config.initial_weights:
            path = Path(config.initial_weights)
            fit_tensors(_denoiser(self.model), load_tensors(path)[0], path)
        _freeze(self.model, config.world.trainable)
        _check_fit(config, clips.get(0, np.random.default_rng(0)))
        self.codec = load_codec(config.world.codec_weights) if config.world.codec_weights else None

    @property
    def fingerprint(self) -> str:
        world = self.config.world
        extra = {**({"critic": True} if world.adversary else {}), **({"trainable": world.trainable} if world.trainable else {})}
        return json.dumps({"world": {**asdict(world.model), **extra}}, sort_keys=True)

    @property
    def metadata(self) -> dict[str, str]:
        return {"trained_on": self.config.trained_on, "clips": str(len(self))}

    def prepare(self, device: torch.device) -> None:
        """Take over the weights of Open-Sora, or solve the linear shortcut on some clips, where asked for."""
        if self.config.initial_open_sora:
            self._take_over(Path(self.config.initial_open_sora))
        if self.config.world.shortcut_clips:
            fit_shortcut(_denoiser(self.model), self._examples(device))

    def _take_over(self, path: Path) -> None:
        """Fill the model, and say in ``open_sora.json`` beside the checkpoints what became of every tensor."""
        report = initialise_from_open_sora(_denoiser(self.model), path)
        if join_crew().leads:
            (Path(self.config.loop.out) / "open_sora.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
        logger.info(
            "%s: %d tensors taken, %d reshaped, %d left", path, len(report.taken), len(report.reshaped), len(report.left)
        )

    def _examples(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor, DenoiseCondition]]:
        """Clips at pure noise, told as much as in training."""
        generator, chance = torch.Generator().manual_seed(0), np.random.default_rng(0)
        for index in chance.permutation(len(self))[: self.config.world.shortcut_clips]:
            batch = self.load([int(index)], chance).to(device)
            yield batch.latents_BTVCHW, _given(batch).float(), self._told(batch, generator)[2]

    def __len__(self) -> int:
        return len(self.clips) - self.config.world.held_out

    def load(self, indices: list[int], generator: np.random.Generator) -> ClipBatch:
        return collate([self._varied(self.clips.get(index, generator), generator) for index in indices])

    def _varied(self, clip: TrainingClip, generator: np.random.Generator) -> TrainingClip:
        """A clip with as many frames, and as many of them given, as the settings ask for."""
        most, total = self.config.world.most_given, len(clip.latents_TVCHW)
        frames = min(self.config.world.frames_per_clip or total, total)
        if most:
            clip = clip.giving(int(generator.integers(min(most, frames - 1) + 1)))  # one is left to learn
        return clip.thinned(frames, generator)

    def loss(self, model: Any, batch: ClipBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow loss of a batch; also the plain squared error of the predicted clean latents."""
        clean, given = batch.latents_BTVCHW, _given(batch)
        views = clean.shape[2]
        drawn, wear, condition = self._told(batch, generator)
        levels = drawn.levels_BT.to(clean.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        seen = interpolate(torch.where(given[:, :, None, None, None, None], wear(clean), clean), noise, levels)
        predicted = model(seen, levels, condition, self._mask(noise, levels, generator)).float()
        # What is given comes back untouched from a roll-out, however worn: nothing is to be learnt there.
        counted = torch.where(given, 1.0, levels)
        weighing = self.config.world.noise
        loss = flow_loss(predicted, clean, counted, weighing.weight_cap, weighing.robust)
        figures = {"clean_error": flow_loss(predicted.detach(), clean, counted, 1.0)}
        if not isinstance(self.model, Duel) or not (counted == 0).any():
            return loss, figures
        judged = (counted == 0)[:, :, None].expand(-1, -1, views)  # one-step samples: what a roll-out shows
        real, made, layout = clean[judged], predicted[judged], batch.layout_BTVCHW[judged]
        pull = torch.zeros_like(predicted).index_put((judged,), persuasion(self.model.critic, made, layout))
        doubt = critic_loss(self.model.critic, real, made, layout)
        return pulled(loss, predicted, pull, self.config.world.adversary) + doubt, {**figures, "critic_loss": doubt}

    def _mask(self, noise: Tensor, levels_BT: Tensor, generator: torch.Generator) -> TokenMask | None:
        """Tokens that the model must do without; a frame at level 1 carries no noise that mask tokens could tell of."""
        world = self.config.world
        if world.model.system != "maskgwm" or world.mask_ratio == 0:
            return None
        noise = noise * (levels_BT < 1)[:, :, None, None, None, None]
        return draw_mask(generator, noise, world.model.patch, ratio=world.mask_ratio, time_share=world.mask_time_share)

    def _told(self, batch: ClipBatch, generator: torch.Generator) -> tuple[Draw, Wear, DenoiseCondition]:
        """What chance decides about a batch, and what is left for the model to read."""
        clips, frames, views, channels = batch.latents_BTVCHW.shape[:4]
        drawn = draw(generator, batch.given_B, frames, self.config.world)
        wear = draw_wear(generator, clips, views, channels, self.config.world.wear)
        kept = wear.kept_BV[:, None, :, None, None, None].to(batch.latents_BTVCHW)
        valid = batch.memory_valid_BTV1HW * kept
        covered = valid * drawn.has_memory_B.to(valid)[:, None, None, None, None, None]
        told = draw_faith(generator, clips, views, channels, self.config.world.faith)(batch, covered)
        worn = replace(told, memory_BTVCHW=wear(told.memory_BTVCHW) * kept, memory_valid_BTV1HW=valid)
        return drawn, wear, condition_of(worn, drawn)

    def evaluate(self, model: Any, device: torch.device) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
        """Held-out clips, all told that is ever told, first frames given: errors from one step and from sampling, and a strip."""
        if not self.config.world.held_out:
            return {}, None
        generator, chance = torch.Generator().manual_seed(0), np.random.default_rng(0)
        errors: dict[str, list[float]] = {"one_step": [], "sampled": [], "memory": []}
        first: tuple[ClipBatch, Tensor] | None = None
        for index in range(len(self), len(self.clips)):
            batch = collate([self.clips.get(index, chance)]).to(device)
            sampled, figures = self._try(model, batch, generator)
            first = first or (batch, sampled)
            for key, value in figures.items():
                errors[key].append(value)
        named = {f"held_out_{key}_error": float(np.mean(values)) for key, values in errors.items()}
        if self.codec is None or first is None:
            return named, None
        strip, quality = self._strip(*first)
        return {**named, **quality}, strip

    def finish(self, model: Any, device: torch.device) -> nn.Module:
        """The denoiser alone."""
        return _denoiser(model)

    def _try(self, model: Any, batch: ClipBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        clean, world = batch.latents_BTVCHW, self.config.world
        inputs = ("text", "waypoints", "layout", "memory", "appearance")
        condition = condition_of(batch).without(*(name for name in inputs if getattr(world, f"drop_{name}") >= 1))
        given = _given(batch)
        given[:, -1] |= world.anchor_share >= 1  # a model that always gets the last frame is judged with it
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        levels = given.float()
        one_step = model(interpolate(clean, noise, levels), levels, condition)
        sampled = denoise(model, noise, clean, given, condition, world.sample_steps, schedule=world.schedule)
        memory = batch.memory_BTVCHW * batch.memory_valid_BTV1HW
        candidates = {"one_step": one_step, "sampled": sampled, "memory": memory}
        return sampled, {key: float((value - clean)[~given].square().mean()) for key, value in candidates.items()}

    def _strip(self, batch: ClipBatch, sampled: Tensor) -> tuple[NDArray[np.uint8], dict[str, float]]:
        """Per shown view three rows of frames: truth, memory, sample (all through the codec); and their PSNR."""
        assert self.codec is not None
        codec = self.codec.to(sampled.device)
        rows, images, quality = [], {}, {}
        for view in [v for v in STRIP_VIEWS if v < sampled.shape[2]]:
            for name, latents in (("truth", batch.latents_BTVCHW), ("memory", batch.memory_BTVCHW), ("sample", sampled)):
                images[name] = to_pixels(codec.decode(latents[0, :, view].float()).float())
                rows.append(np.concatenate(list(images[name].cpu().numpy()), axis=1))
            if view == STRIP_VIEWS[0]:
                new = slice(int(batch.given_B[0]), None)
                quality = {
                    f"held_out_front_{name}_psnr_db": psnr_db(images[name][new], images["truth"][new])
                    for name in ("memory", "sample")
                }
        return np.concatenate(rows), quality
