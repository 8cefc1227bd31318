"""What a world model costs: parameters, FLOPs and bytes of a forward pass and of a training step, without running it.

The model is built and run on fake tensors, which have shapes and no contents, so the largest one fits on a laptop. FLOPs are
matrix products and convolutions (two per multiply-add); the fused attention's backward pass counts the scores that it
computes again. Bytes are an estimate: what autograd keeps under bfloat16 autocast as on a CPU, without the allocator's
fragments, workspaces, and the transients of a layer.

Shapes: B batch, T frames, V views, L text tokens, K a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from dwm.models.conditioning import CAMERA_SIZE, WAYPOINT_SIZE, DenoiseCondition
from dwm.models.dit import DiTConfig, MultiViewDiT
from dwm.models.systems import build_denoiser

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_WEIGHT_BYTES, _GRADIENT_BYTES, _MOMENTS_BYTES, _AVERAGE_BYTES = 4, 4, 8, 4  # per parameter: float32, AdamW, moving average


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """What one forward pass looks at."""

    batch: int = 1
    frames: int = 16
    height_px: int = 360
    width_px: int = 640
    downsample: int = 8  # image pixels per latent pixel, along each side
    text_tokens: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """Costs of one model on one clip. Bytes are estimates."""

    parameters: dict[str, int]  # by part of the model
    tokens: int  # of the clip, in the trunk
    forward_flops: int
    step_flops: int  # forward and backward
    step_flops_recomputed: int  # the same with gradient checkpointing
    state_bytes: int  # weights, gradients, AdamW's moments, moving average
    activation_bytes: int  # kept between forward and backward
    activation_bytes_recomputed: int  # the same with gradient checkpointing: blocks' inputs, and one block at work

    @property
    def total_parameters(self) -> int:
        """All parts together."""
        return sum(self.parameters.values())

    @property
    def forward_bytes(self) -> int:
        """Of inference: the weights, and at most what one block keeps in training."""
        return _WEIGHT_BYTES * self.total_parameters + self.activation_bytes_recomputed

    def step_bytes(self, *, recomputed: bool) -> int:
        """Of a training step."""
        return self.state_bytes + (self.activation_bytes_recomputed if recomputed else self.activation_bytes)


def account(config: DiTConfig, clip: Clip = Clip()) -> Accounts:
    """Costs of a model; InputError for an unknown system."""
    with torch.device("meta"):
        model = build_denoiser(config)
    with FakeTensorMode():
        _make_fake(model)
        blocks = _Blocks(model)
        forward, backward, kept = _step(model, clip)
        depth = blocks.passed
        model.recompute = True
        _, backward_recomputed, kept_outside = _step(model, clip)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    parameters["other"] = sum(p.numel() for p in model.parameters(recurse=False))
    state = _WEIGHT_BYTES + _GRADIENT_BYTES + _MOMENTS_BYTES + _AVERAGE_BYTES
    return Accounts(
        parameters={name: count for name, count in parameters.items() if count},
        tokens=blocks.tokens,
        forward_flops=forward,
        step_flops=forward + backward,
        step_flops_recomputed=forward + backward_recomputed,
        state_bytes=state * sum(parameters.values()),
        activation_bytes=kept,
        activation_bytes_recomputed=kept_outside + (kept - kept_outside) // depth,
    )


def kept_bytes(function: Callable[[], Any], parameters: list[nn.Parameter]) -> tuple[Any, int]:
    """The function's result, and the bytes of all tensors but the parameters that autograd keeps for its backward pass."""
    storages: dict[int, Any] = {}
    known = {p.untyped_storage()._cdata for p in parameters}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            storages[storage._cdata] = storage  # held, so that no other storage gets its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return result, sum(storage.nbytes() for storage in storages.values())


def _make_fake(model: nn.Module) -> None:
    """Exchange meta tensors for fake CPU ones: meta has neither autocast nor fused attention."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape))


class _Blocks:
    """Counts the trunk's blocks and their tokens as they pass."""

    def __init__(self, model: MultiViewDiT) -> None:
        self.passed = self.tokens = 0
        through = model.through

        def watched(block: nn.Module, tokens: Tensor, *inputs: Tensor) -> Tensor:
            self.passed += 1
            self.tokens = tokens.numel() // tokens.shape[-1]
            return through(block, tokens, *inputs)

        model.through = watched  # type: ignore[method-assign]


def _step(model: MultiViewDiT, clip: Clip) -> tuple[int, int, int]:
    """FLOPs of the forward and of the backward pass, and the bytes kept between them."""
    with _flop_counter() as ahead, torch.autocast("cpu", torch.bfloat16):
        predicted, kept = kept_bytes(lambda: model(*blank_inputs(model.config, clip)), list(model.parameters()))
    with _flop_counter() as back:
        predicted.sum().backward()
    return ahead.get_total_flops(), back.get_total_flops(), kept


def blank_inputs(config: DiTConfig, clip: Clip) -> tuple[Tensor, Tensor, DenoiseCondition]:
    """Inputs without layout, memory and appearance: the network reads zeros for them at the same cost."""
    batch, frames, views = clip.batch, clip.frames, config.views
    latents = (clip.height_px // clip.downsample, clip.width_px // clip.downsample)
    yes = torch.ones(batch, dtype=torch.bool)
    condition = DenoiseCondition(
        waypoints_BTK=torch.zeros(batch, frames, WAYPOINT_SIZE), cameras_BVK=torch.ones(batch, views, CAMERA_SIZE),
        times_BT=torch.zeros(batch, frames), fps_B=torch.ones(batch),
        text_BL=torch.ones(batch, clip.text_tokens, dtype=torch.int64),
        text_features_BLK=torch.zeros(batch, clip.text_tokens, config.text_features) if config.text_features else None,
        has_text_B=yes, has_waypoints_B=yes, has_layout_B=~yes, has_memory_B=~yes, has_appearance_B=~yes,
    )  # fmt: skip
    return torch.zeros(batch, frames, views, config.latent_channels, *latents), torch.zeros(batch, frames), condition


def _flop_counter() -> FlopCounterMode:
    mapping = {_ATTENTION: _attention_flops, _ATTENTION_BACKWARD: _attention_backward_flops}
    return FlopCounterMode(display=False, custom_mapping=mapping)  # type: ignore[arg-type]


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)
