"""The weights of Open-Sora 1.1 (STDiT2-XL/2) as the start of a MiLA, as the paper does (MiLA, supplement B).

A model with ``DiTConfig.open_sora`` computes what STDiT2 computes, for one view and the same vector per frame. Two things are
taken for a start and no more. Open-Sora 1.1 predicts noise under a variance-preserving diffusion; here the output is the
velocity of a rectified flow, clean minus noise, so the last layer changes its sign. And its temporal attention reads
another vector than the rest (length and frame rate instead of picture size and aspect); here one vector serves both.

Facts: github.com/hpcaitech/Open-Sora, ``stdit2.py`` and ``blocks.py`` of version 1.1.
Shapes: D width, K text features, C latent channels, p pixels along a side of a patch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dwm.errors import InputError
from dwm.models.dit import DiTConfig, MultiViewDiT
from dwm.models.layers import FourierEmbedder, fourier_features
from dwm.models.positions import geometric_frequencies
from dwm.models.weights import load_tensors

_REQUIRED: dict[str, object] = {  # of a configuration that computes what STDiT2 computes
    "system": "mila", "local_widths": (), "stem_patch": 2, "preconditioned": False, "text_every": 1,
    "spatial_positions": True, "rotary_time": True, "open_sora": True,
}  # fmt: skip
_SAME = {  # theirs -> ours, as they are
    "y_embedder.y_proj.fc1": "text.layers.0",
    "y_embedder.y_proj.fc2": "text.layers.2",
}
_SAME_IN_BLOCK = {
    "attn.qkv": "spatial.key_value", "attn.proj": "spatial.out",
    "attn_temp.qkv": "temporal.key_value", "attn_temp.proj": "temporal.out",
    "cross_attn.q_linear": "text.query", "cross_attn.kv_linear": "text.key_value", "cross_attn.proj": "text.out",
    "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2",
}  # fmt: skip
_SCALES_IN_BLOCK = {
    "attn.q_norm.weight": "spatial.query_scale", "attn.k_norm.weight": "spatial.key_scale",
    "attn_temp.q_norm.weight": "temporal.query_scale", "attn_temp.k_norm.weight": "temporal.key_scale",
}  # fmt: skip
_LEFT = {  # pattern -> why
    r"(blocks\.\d+\.attn_temp\.)?(rope|rotary_emb)\.freqs": "computed here (dwm.models.positions)",
    r"pos_embed(\..*)?": "computed here (dwm.models.positions)",
    r"csize_embedder\.mlp\..*": "one picture size: nothing to tell apart",
    r"ar_embedder\.mlp\..*": "one aspect ratio: nothing to tell apart",
    r"fl_embedder\.mlp\..*": "a frame knows its time; the length of the clip is not told",
    r"fps_embedder\.mlp\..*": "moves only the temporal attention there, the whole frame here; starts at zero instead",
}
_SILENT = {  # what a frame is told here and not there; the last layers start at zero
    "rays.layers.2": "rays of the cameras",
    "frame.waypoints.layers.2": "waypoints",
    "frame.time.layers.2": "times",
    "frame.fps.layers.2": "frame rate",
}
_DIFFUSION_STEPS, _FIRST_BETA, _LAST_BETA = 1000, 1e-4, 0.02  # linear schedule of Open-Sora 1.1 (IDDPM)
_SINUSOIDS = 128  # frequencies of its timestep embedding


@dataclass(slots=True, kw_only=True)
class OpenSoraReport:
    """What became of every tensor of the checkpoint, and of every parameter that it did not fill."""

    taken: dict[str, str] = field(default_factory=dict)  # theirs -> ours, as it is
    reshaped: dict[str, str] = field(default_factory=dict)  # theirs -> into what, and how
    left: dict[str, str] = field(default_factory=dict)  # theirs -> why
    new: dict[str, str] = field(default_factory=dict)  # ours -> how it starts
    level_error: float = 0.0  # relative error of the noise-level embedding that was fitted to theirs


@torch.no_grad()
def initialise_from_open_sora(model: MultiViewDiT, path: Path) -> OpenSoraReport:
    """Fill ``model`` from a safetensors file; tensors of blocks beyond its depth are left.

    Raises InputError for a model that is not wired like STDiT2, and for a file that lacks a tensor, holds one of another
    shape, or one that no STDiT2 has.
    """
    _check_config(model.config)
    return _Transfer(model, load_tensors(path)[0], path).run()


class _Transfer:
    """One checkpoint on its way into one model."""

    def __init__(self, model: MultiViewDiT, theirs: Mapping[str, Tensor], path: Path) -> None:
        self.model, self.theirs, self.path = model, theirs, path
        self.ours = dict(model.named_parameters())
        self.filled: set[str] = set()
        self.report = OpenSoraReport()

    def run(self) -> OpenSoraReport:
        for theirs, ours in _SAME.items():
            self._same_layer(theirs, ours)
        self._patches()
        self._modulation()
        for number in range(self.model.config.depth):
            self._block(number)
        self._head()
        self._null_text()
        self._levels()
        self._leave_the_rest()
        self._start_the_rest()
        return self.report

    def _patches(self) -> None:
        """The patch embedding reads the noisy latents; what else a latent pixel carries starts at zero."""
        weight = self._their("x_embedder.proj.weight", "stem.weight: its noisy latents; zeros for all other inputs")
        stem = torch.zeros_like(self.ours["stem.weight"])
        channels = self.model.config.latent_channels
        stem[:, :channels] = self._shaped(weight.squeeze(2), stem[:, :channels], "x_embedder.proj.weight")
        self._fill("stem.weight", stem, "x_embedder.proj.weight")
        self._same("x_embedder.proj.bias", "stem.bias")

    def _modulation(self) -> None:
        """Theirs come as six (spatial, MLP) and three (temporal); ours are spatial, temporal, MLP."""
        for part in ("weight", "bias"):
            target = f"modulation.1.{part}"
            six = self._their(f"t_block.1.{part}", f"{target}: thirds 1 (spatial) and 3 (MLP)")
            three = self._their(f"t_block_temp.1.{part}", f"{target}: third 2 (temporal)")
            self._fill(target, _nine(six, three), f"t_block.1.{part} with t_block_temp.1.{part}")

    def _block(self, number: int) -> None:
        theirs, ours = f"blocks.{number}.", f"blocks.{number}."
        for name, target in _SAME_IN_BLOCK.items():
            self._same_layer(theirs + name, ours + target)
        for name, target in _SCALES_IN_BLOCK.items():
            self._same(theirs + name, ours + target)
        six = self._their(theirs + "scale_shift_table", f"{ours}offset: rows 0-2 (spatial) and 6-8 (MLP)")
        three = self._their(theirs + "scale_shift_table_temporal", f"{ours}offset: rows 3-5 (temporal)")
        self._fill(ours + "offset", _nine(six, three), theirs + "scale_shift_table with scale_shift_table_temporal")
        self._begin(ours + "text_gate", 1.0, "ones: STDiT2 adds its text attention as it is")

    def _head(self) -> None:
        """Half of their outputs are the noise, half its variance; only the noise is wanted, with the sign turned."""
        table = self._their("final_layer.scale_shift_table", "head_modulation.1.bias")
        self._fill("head_modulation.1.bias", table.flatten(), "final_layer.scale_shift_table")
        eye = torch.eye(self.model.config.d_model)
        self._fill("head_modulation.1.weight", torch.cat([eye, eye]), "identity")
        self.report.new["head_modulation.1.weight"] = "twice the identity: STDiT2 adds the frame's vector itself"
        for part in ("weight", "bias"):
            name = f"final_layer.linear.{part}"
            how = f"head.{part}: the half that predicts noise, negated, pixels of a patch after channels"
            value = noise_half(self._their(name, how), self.model.config.latent_channels, self.model.config.stem_patch)
            target = self.ours[f"head.{part}"]
            self._fill(f"head.{part}", -value.view(*value.shape, *[1] * (target.ndim - value.ndim)), name)

    def _null_text(self) -> None:
        name = "y_embedder.y_embedding"
        embedding = self._their(name, "text.null: mean of its tokens behind the two text layers")
        if embedding.shape[-1] != self.model.config.text_features:
            raise self._misfit(name, embedding.shape, (len(embedding), self.model.config.text_features))
        self._fill("text.null", self.model.get_submodule("text.layers")(embedding.to(self.ours["text.null"])).mean(0), name)

    def _levels(self) -> None:
        """Our noise-level embedding, last layer solved, so that it gives what theirs gives at the same signal-to-noise."""
        how = "frame.level.layers.2: least squares over all noise levels"
        names = [f"mlp.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")]
        parts = {name: self._their(f"t_embedder.{name}", how) for name in names}
        levels, vectors = timestep_vectors(parts)
        self.report.level_error = fit_last_layer(self.model.frame.level, levels[:, None], vectors)
        self.filled |= {"frame.level.layers.2.weight", "frame.level.layers.2.bias"}

    def _leave_the_rest(self) -> None:
        for name in self.theirs.keys() - self.report.taken.keys() - self.report.reshaped.keys():
            beyond = re.match(r"blocks\.(\d+)\.", name)
            if beyond and int(beyond[1]) >= self.model.config.depth:
                self.report.left[name] = f"the model has {self.model.config.depth} blocks"
                continue
            why = next((why for pattern, why in _LEFT.items() if re.fullmatch(pattern, name)), None)
            if why is None:
                raise InputError(self.path, f"tensor '{name}' is not part of STDiT2", "give weights of Open-Sora 1.1")
            self.report.left[name] = why
        self.report.left = dict(sorted(self.report.left.items()))

    def _start_the_rest(self) -> None:
        for name, what in _SILENT.items():
            for part in ("weight", "bias"):
                self._begin(f"{name}.{part}", 0.0, f"zeros: {what} are told here and not there")
        for name in ("frame.no_waypoints", "frame.no_layout", "frame.no_memory"):
            self._begin(name, 0.0, "zeros: nothing is absent there")
        for name in self.ours.keys() - self.filled:
            self.report.new[name] = "as drawn"
        self.report.new = dict(sorted(self.report.new.items()))

    def _same_layer(self, theirs: str, ours: str) -> None:
        for part in ("weight", "bias"):
            self._same(f"{theirs}.{part}", f"{ours}.{part}")

    def _same(self, theirs: str, ours: str) -> None:
        self._fill(ours, self._read(theirs), theirs)
        self.report.taken[theirs] = ours

    def _their(self, name: str, how: str) -> Tensor:
        self.report.reshaped[name] = how
        return self._read(name)

    def _read(self, name: str) -> Tensor:
        if name not in self.theirs:
            raise InputError(self.path, f"tensor '{name}' is missing", "give the STDiT2 weights of Open-Sora 1.1")
        return self.theirs[name]

    def _fill(self, ours: str, value: Tensor, theirs: str) -> None:
        self.ours[ours].copy_(self._shaped(value, self.ours[ours], theirs))
        self.filled.add(ours)

    def _begin(self, ours: str, value: float, why: str) -> None:
        self.ours[ours].fill_(value)
        self.filled.add(ours)
        self.report.new[ours] = why

    def _shaped(self, value: Tensor, like: Tensor, theirs: str) -> Tensor:
        if value.shape != like.shape:
            raise self._misfit(theirs, value.shape, like.shape)
        return value

    def _misfit(self, theirs: str, found: torch.Size, wanted: tuple[int, ...]) -> InputError:
        shapes = f"{list(found)} in the file, {list(wanted)} in the model"
        return InputError(
            self.path, f"tensor '{theirs}' has another shape: {shapes}", "use the sizes of conf/model/mila_700m.yaml"
        )


def noise_half(value: Tensor, channels: int, patch: int) -> Tensor:
    """Rows (p p 2C) of their last layer, variance dropped, in the order (C p p) that pixel shuffle reads."""
    rows = value.unflatten(0, (patch, patch, -1))[:, :, :channels]
    return rearrange(rows, "p q c ... -> (c p q) ...")


def timestep_vectors(embedder: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(levels [S], vectors [S, D]) of Open-Sora's timestep embedding, given its two layers as ``mlp.0.*`` and ``mlp.2.*``.

    Step s has signal √ā and noise √(1 - ā), as the rectified flow has at level √ā / (√ā + √(1 - ā)). Pure noise counts as
    the last step; a given frame counts as step 0, as in Open-Sora.
    """
    signal = (1 - torch.linspace(_FIRST_BETA, _LAST_BETA, _DIFFUSION_STEPS, dtype=torch.float64)).cumprod(0)
    levels = signal.sqrt() / (signal.sqrt() + (1 - signal).sqrt())
    steps = torch.arange(_DIFFUSION_STEPS, dtype=torch.float64)
    levels, steps = torch.cat([levels, torch.tensor([1.0, 0.0])]), torch.cat([steps, steps[[0, -1]]])
    angles = steps[:, None] * geometric_frequencies(_SINUSOIDS)
    hidden = torch.cat([angles.cos(), angles.sin()], dim=-1)
    layers = {name: tensor.double() for name, tensor in embedder.items()}
    hidden = F.silu(F.linear(hidden, layers["mlp.0.weight"], layers["mlp.0.bias"]))
    return levels, F.linear(hidden, layers["mlp.2.weight"], layers["mlp.2.bias"])


def fit_last_layer(embedder: FourierEmbedder, values: Tensor, targets: Tensor) -> float:
    """Solve the last layer of a ``FourierEmbedder`` for targets [S, D] at values [S, K]; the relative error that is left."""
    last = embedder.layers[2]
    assert isinstance(last, nn.Linear)
    hidden = embedder.layers[:2](fourier_features(values.to(last.weight), embedder.frequencies)).double().cpu()
    inputs = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)
    ridge = 1e-6 * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets)
    last.weight.copy_(solution[:-1].T)
    last.bias.copy_(solution[-1])
    return float((inputs @ solution - targets).norm() / targets.norm())


def _nine(six: Tensor, three: Tensor) -> Tensor:
    """Shift, scale, gate of spatial attention and MLP, and of temporal attention -> spatial, temporal, MLP."""
    spatial, mlp = six.chunk(2)
    return torch.cat([spatial, three, mlp])


def _check_config(config: DiTConfig) -> None:
    for name, wanted in _REQUIRED.items():
        found = getattr(config, name)
        if found != wanted:
            raise InputError(
                f"world.model.{name}", f"{found} is not how STDiT2 is wired", f"set {wanted} (conf/model/mila_700m.yaml)"
            )
    if not config.text_features:
        raise InputError("world.model.text_features", "0 has no place for STDiT2's text layers", "set 4096 (T5 v1.1 XXL)")
