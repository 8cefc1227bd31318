"""The world model: a multi-view diffusion transformer with a noise level per frame.

Shapes: B batch, T frames, V views, C latent channels, h w latent pixels, N patches of one view in R rows and K columns,
D width, L text tokens, I images (B * T * V).
Noise levels t lie in [0, 1]: 0 is pure noise, 1 is a clean frame (rectified flow, MiLA eq. 4-5).

Everything around the tokens is here: inputs, embeddings, output. What happens between tokens is the *trunk*. The one here
is MiLA's; other systems put theirs in its place (``dwm.models.maskgwm``, ``dwm.models.longdwm``).

Reading order: ``MultiViewDiT.forward`` -> ``Block.forward`` -> ``local.LocalBlock`` -> ``conditioning.FrameEmbedder``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dwm.models.conditioning import DenoiseCondition, FrameEmbedder, TextEmbedder, TextFeatureEmbedder, camera_rays
from dwm.models.layers import Attention, FourierEmbedder, mlp, modulate, start_at_zero
from dwm.models.local import LocalDown, LocalUp
from dwm.models.masking import TokenMask
from dwm.models.positions import SpatialPositions

LAYOUT_FINER = 2  # layout pixels along each side of a latent pixel
IMAGE_HW = (128, 224)  # of the models that ship


@dataclass(frozen=True, slots=True, kw_only=True)
class DiTConfig:
    """Sizes and kinds of a ``MultiViewDiT``."""

    system: str = "mila"  # whose trunk: see dwm.models.systems
    d_model: int = 256  # width of a token
    depth: int = 8  # blocks
    heads: int = 4  # attention heads; divides d_model
    mlp_ratio: float = 3.0  # hidden width of a block's MLP, in units of d_model
    latent_channels: int = 16  # channels of the codec's latents
    local_widths: tuple[int, ...] = (
        64,
        128,
    )  # channels of the convolutional levels, finest first; each halves the grid; may be none
    stem_patch: int = 1  # latent pixels, along each side, that the first layer joins (the papers' patch embedding: 2)
    preconditioned: bool = True  # learn the change of a linear guess (``_guess``); False: learn the velocity, as the papers do
    views: int = 6  # cameras, in ring order
    image_hw: tuple[int, int] = IMAGE_HW  # height and width of the images it is made for [px]
    layout_channels: int = 24  # layers of the layout maps (dwm.conditioning.layout.LAYOUT_CHANNELS)
    text_vocabulary: int = 256  # size of the text token table
    text_every: int = 4  # every so many blocks one looks at the text
    decoder_depth: int = 2  # maskgwm: last blocks, which see dropped tokens again (paper size: 5 of 24)
    modulation_width: int = 128  # longdwm: width of the vector that the blocks read a frame's modulation from
    injected_depth: int = 2  # longdwm: last blocks that the given frames' clean latents are injected into
    injection: str = "first"  # longdwm: the "first" given frame goes to all frames (coarse), or each to its "own" slot (fine)
    text_features: int = 0  # width of an outside encoder's text features (T5-XXL: 4096); 0: an own token table
    spatial_positions: bool = False  # a patch's place in its view is added to its token, besides its ray
    rotary_time: bool = False  # attention over time knows the frames' order (RoPE), besides their times
    open_sora: bool = False  # wired as STDiT2, whose weights it can take over: see dwm.models.open_sora

    @property
    def patch(self) -> int:
        """Latent pixels per token, along each side."""
        return self.stem_patch * 2 ** len(self.local_widths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a trunk knows besides the tokens."""

    frame_BTD: Tensor  # noise level, time, frame rate, waypoints and the text's mean
    text_BLD: Tensor
    text_mask_BL: Tensor  # True where there is text
    latents_BTVCHW: Tensor  # as the model got them: those of frames at level 1 are clean
    levels_BT: Tensor
    places_B1VRKD: Tensor  # each token's camera ray, already added to it
    condition: DenoiseCondition
    mask: TokenMask | None  # tokens that are not seen


class Block(nn.Module):
    """Attention over all views of a frame, attention of each place over time, optional look at the text, MLP."""

    def __init__(self, config: DiTConfig, *, reads_text: bool) -> None:
        super().__init__()
        width = config.d_model
        self.spatial = Attention(width, config.heads)
        self.temporal = Attention(width, config.heads, rotary=config.rotary_time)
        self.text = Attention(width, config.heads, cross=True, normed=not config.open_sora) if reads_text else None
        self.text_gate = nn.Parameter(torch.zeros(width)) if reads_text else None
        self.mlp = mlp(width, int(width * config.mlp_ratio), width)
        # adaLN-single (PixArt): the frame's nine vectors are shared by all blocks, each adds its own offset.
        self.offset = nn.Parameter(torch.zeros(9, width))

    def forward(self, tokens_BTND: Tensor, frame_BT9D: Tensor, text_BLD: Tensor, text_mask_BL: Tensor) -> Tensor:
        """[B, T, V * N, D]; here the tokens of all views of a frame stand in one row."""
        batch = len(tokens_BTND)
        parts = (frame_BT9D + self.offset).unsqueeze(3).unbind(2)  # nine times [B, T, 1, D]
        shift_s, scale_s, gate_s, shift_t, scale_t, gate_t, shift_m, scale_m, gate_m = parts

        x = modulate(tokens_BTND, shift_s, scale_s)
        x = self.spatial(rearrange(x, "b t n d -> (b t) n d"))
        tokens = torch.addcmul(tokens_BTND, gate_s, rearrange(x, "(b t) n d -> b t n d", b=batch))

        x = modulate(tokens, shift_t, scale_t)
        x = self.temporal(rearrange(x, "b t n d -> (b n) t d"))
        tokens = torch.addcmul(tokens, gate_t, rearrange(x, "(b n) t d -> b t n d", b=batch))

        if self.text is not None and self.text_gate is not None:
            x = self.text(rearrange(tokens, "b t n d -> b (t n) d"), text_BLD, text_mask_BL)
            tokens = torch.addcmul(tokens, self.text_gate, x.view_as(tokens))

        return torch.addcmul(tokens, gate_m, self.mlp(modulate(tokens, shift_m, scale_m)))


class MultiViewDiT(nn.Module):
    """Predicts the clean latents of every frame from noisy ones, each frame at its own noise level."""

    recompute = False  # in training: keep a block's input only, and compute the block again for its gradients

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, channels, levels = config.d_model, config.latent_channels, config.local_widths
        # Per latent pixel: noisy latents, memory and its share, appearance and its share, whether the frame is clean.
        inside = 3 * channels + 3 + LAYOUT_FINER**2 * config.layout_channels
        outside = levels[0] if levels else width
        self.stem = nn.Conv2d(inside, outside, config.stem_patch, stride=config.stem_patch)
        steps = list(zip(levels, (*levels[1:], width), strict=True)) if levels else []
        self.down = nn.ModuleList(LocalDown(at, after, width) for at, after in steps)
        self.up = nn.ModuleList(LocalUp(after, at, width) for at, after in reversed(steps))
        self.rays = FourierEmbedder(8, width, octaves=(-1, 4))
        self.frame = FrameEmbedder(width)
        self.positions = SpatialPositions(width) if config.spatial_positions else None
        features, vocabulary = config.text_features, config.text_vocabulary
        self.text = TextFeatureEmbedder(features, width) if features else TextEmbedder(vocabulary, width)
        self.build_trunk(config)
        # STDiT2's last layer is moved by the frame's vector itself.
        activation = nn.Identity() if config.open_sora else nn.SiLU()
        self.head_modulation = nn.Sequential(activation, nn.Linear(width, 2 * width))
        kernel = 3 if levels else 1
        self.head = nn.Conv2d(outside, channels * config.stem_patch**2, kernel, padding=kernel // 2)
        start_at_zero(self.head_modulation[1], self.head)
        if config.preconditioned:
            # What is linear needs no network: see dwm.training.shortcut.
            self.shortcut = nn.Conv2d(inside, channels, 3, padding=1)
            start_at_zero(self.shortcut)
            # How far a clean latent lies from the appearance where no memory covers it, and from the memory where one does.
            self.prior_log_variance = nn.Parameter(torch.tensor([0.0, -1.5])[:, None].repeat(1, channels))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def build_trunk(self, config: DiTConfig) -> None:
        """Make the layers that ``trunk`` uses."""
        width = config.d_model
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 9 * width))
        start_at_zero(self.modulation[1])
        self.blocks = nn.ModuleList(
            Block(config, reads_text=i % config.text_every == config.text_every - 1) for i in range(config.depth)
        )

    def trunk(self, tokens_BTVRKD: Tensor, told: Told) -> Tensor:
        """What the tokens become by looking at each other; the same shape."""
        shape = tokens_BTVRKD.shape
        modulation = rearrange(self.modulation(told.frame_BTD), "b t (k d) -> b t k d", k=9)
        tokens = tokens_BTVRKD.flatten(2, 4)
        for block in self.blocks:
            tokens = self.through(block, tokens, modulation, told.text_BLD, told.text_mask_BL)
        return tokens.view(shape)

    def through(self, block: nn.Module, *inputs: Any) -> Any:
        """A block's output; with ``recompute``, gradient checkpointing (Chen et al., 2016)."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return block(*inputs)

    def forward(
        self, latents_BTVCHW: Tensor, levels_BT: Tensor, condition: DenoiseCondition, mask: TokenMask | None = None
    ) -> Tensor:
        """Predicted clean latents [B, T, V, C, h, w]; before any training the linear guess, or the noisy latents themselves.

        ``mask`` hides tokens, in training only.
        """
        memory, valid = _dense(latents_BTVCHW, condition.memory_BTVCHW, condition.memory_valid_BTV1HW, condition.has_memory_B)
        colours, known = _dense(
            latents_BTVCHW, condition.appearance_BTVCHW, condition.appearance_known_BTV1HW, condition.has_appearance_B
        )
        batch, frames, views = latents_BTVCHW.shape[:3]
        height, width = latents_BTVCHW.shape[-2:]
        patch = self.config.patch

        frame = self.frame(levels_BT, condition)  # [B, T, D]
        text, text_mask = self.text(condition)
        if not self.config.open_sora:  # there text enters by attention alone
            frame = frame + _masked_mean(text, text_mask)[:, None]
        per_image = frame[:, :, None].expand(-1, -1, views, -1).flatten(0, 2)  # [I, D]

        seen = latents_BTVCHW if mask is None else mask.hide(latents_BTVCHW)
        pixels = self._pixels(seen, levels_BT, [memory, valid, colours, known], condition)
        x = self.stem(_whole_patches(pixels, patch))
        skips: list[Tensor] = []
        for level in self.down:
            x, skip = level(x, per_image)
            skips.append(skip)
        tokens = rearrange(x, "(b t v) d r k -> b t v r k d", b=batch, t=frames)
        rays = self.rays(camera_rays(condition.cameras_BVK, height / patch, width / patch))
        places = rearrange(rays, "b v (r k) d -> b 1 v r k d", r=tokens.shape[3])
        if self.positions is not None:
            places = places + self.positions(height, width, patch)
        fused = self.frame.path(condition) if self.config.open_sora else frame
        tokens = tokens + places + fused[:, :, None, None, None]  # h_fuse, MiLA eq. 2
        told = Told(
            frame_BTD=frame, text_BLD=text, text_mask_BL=text_mask, latents_BTVCHW=seen, levels_BT=levels_BT, places_B1VRKD=places,
            condition=condition, mask=mask,
        )  # fmt: skip
        tokens = self.trunk(tokens, told)

        shift, scale = self.head_modulation(frame)[:, :, None, None, None].chunk(2, dim=-1)
        x = rearrange(modulate(tokens, shift, scale), "b t v r k d -> (b t v) d r k")
        for level in self.up:
            x = level(x, skips.pop(), per_image)
        out = F.pixel_shuffle(self.head(F.silu(x) if self.up else x), self.config.stem_patch)[..., :height, :width]
        if not self.config.preconditioned:
            velocity = out.reshape(latents_BTVCHW.shape).float()
            return latents_BTVCHW + (1 - levels_BT)[:, :, None, None, None, None] * velocity
        change = (out + self.shortcut(pixels)).view(latents_BTVCHW.shape)
        guess, spread = self._guess(latents_BTVCHW, levels_BT, memory * valid + colours * (1 - valid), valid)
        return guess + spread * change.float()

    def _guess(self, latents: Tensor, levels_BT: Tensor, prior: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of x_1 given x_t = t x_1 + (1 - t) noise when x_1 ~ N(prior, s^2): the Wiener estimate.

        It plays the part of EDM's preconditioning (Karras et al., 2022), with the carried memory as the prior's mean: pure
        noise leaves the memory, a nearly clean frame leaves itself, and the network only learns what is between.
        """
        variance = self._variance(valid)
        t = levels_BT[:, :, None, None, None, None]
        total = (t.square() * variance + (1 - t).square()).clamp_min(1e-8)
        guess = prior + t * variance / total * (latents - t * prior)
        return guess, ((1 - t).square() * variance / total).clamp_min(1e-8).sqrt()

    def spread_at_noise(self, pixels_ICHW: Tensor) -> Tensor:
        """What the learned change is multiplied by at level 0 [I, C, h, w], for pixels as ``_pixels`` stacks them."""
        c = self.config.latent_channels
        return self._variance(pixels_ICHW[:, 2 * c : 2 * c + 1]).sqrt()

    def _variance(self, valid: Tensor) -> Tensor:
        """The prior's, per channel, for the share [..., 1, h, w] that the memory covers."""
        alone, carried = self.prior_log_variance.exp()[:, :, None, None]
        return carried * valid + alone * (1 - valid)

    def _pixels(self, latents: Tensor, levels_BT: Tensor, dense: list[Tensor], condition: DenoiseCondition) -> Tensor:
        """Everything known per latent pixel [I, C', h, w]; ``dense`` is memory, its share, appearance, its share."""
        t = levels_BT.to(latents.dtype)[:, :, None, None, None, None]
        memory, valid, colours, known = dense
        clean = (t >= 1).to(latents.dtype).expand_as(valid)
        # Weighed by what it tells about the frame: pure noise tells nothing and enters as zeros. A velocity needs it, though.
        told = t * (t.square() + (1 - t).square()).rsqrt() if self.config.preconditioned else torch.ones_like(t)
        stack = torch.cat([told * latents, memory * valid, valid, colours, known, clean], dim=3).flatten(0, 2)
        layout = self._layout(stack, condition)
        return torch.cat([stack, layout], dim=1).contiguous(memory_format=torch.channels_last)

    def _layout(self, stack: Tensor, condition: DenoiseCondition) -> Tensor:
        """Layout maps with the pixels of one latent pixel as channels [I, C', h, w]; zeros where a clip has none.

        A model of no layout channels looks at no layout, whatever a clip has.
        """
        layout = condition.layout_BTVCHW
        if layout is None or not self.config.layout_channels:
            return stack.new_zeros(len(stack), LAYOUT_FINER**2 * self.config.layout_channels, *stack.shape[-2:])
        kept = layout * condition.has_layout_B[:, None, None, None, None, None]
        return F.pixel_unshuffle(kept.flatten(0, 2), LAYOUT_FINER)


def _dense(like: Tensor, latents: Tensor | None, share: Tensor | None, has_B: Tensor) -> tuple[Tensor, Tensor]:
    """An optional dense input and its share [B, T, V, 1, h, w]; zeros where a clip has none."""
    if latents is None or share is None:
        return torch.zeros_like(like), torch.zeros_like(like[:, :, :, :1])
    keep = has_B[:, None, None, None, None, None]
    return latents * keep, share * keep


def _whole_patches(pixels_ICHW: Tensor, patch: int) -> Tensor:
    """Zeros to the right and below, up to whole patches, as Open-Sora's patch embedding adds them."""
    height, width = pixels_ICHW.shape[-2:]
    if height % patch == width % patch == 0:
        return pixels_ICHW
    return F.pad(pixels_ICHW, (0, -width % patch, 0, -height % patch))


def _masked_mean(tokens_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    weights = mask_BL[..., None].to(tokens_BLD.dtype)
    return (tokens_BLD * weights).sum(1) / weights.sum(1)
