"""MaskGWM (arXiv 2502.11663): a trunk of MM-DiT blocks that learns to reconstruct tokens it was not shown.

In training an encoder of all but the last blocks computes on visible tokens alone. Then ``Reconstruction`` puts something in
the place of the dropped ones, and the decoder works on the full grid (eq. 2). Without a mask the two are one stack of
blocks, and ``Reconstruction`` takes no part. The shell tells every token its place before the trunk, so packing loses none.

Shapes: B batch, T frames, V views, R rows and K columns of tokens, J columns once packed, C latent channels, h w latent
pixels, L text tokens, I images (B * T * V), D width.

Reading order: ``MaskGWM.trunk`` -> ``MaskGWMBlock.forward`` -> ``Reconstruction.forward``.
"""

from __future__ import annotations

import torch
from einops import parse_shape, rearrange, repeat
from torch import Tensor, nn

from dwm.errors import InputError
from dwm.models.axial import ALONG_ROWS, OVER_TIME, WITHIN_VIEW, AxialBlock
from dwm.models.dit import DiTConfig, MultiViewDiT, Told
from dwm.models.layers import PatchEmbedding
from dwm.models.masking import TokenMask
from dwm.models.mm_dit import JointBlock


class MaskGWMBlock(nn.Module):
    """One view of one frame with the text, then each place over time, then each row over all views."""

    def __init__(self, config: DiTConfig, *, last: bool) -> None:
        super().__init__()
        sizes = config.d_model, config.heads, config.mlp_ratio
        self.spatial = JointBlock(*sizes, last=last)
        self.temporal = AxialBlock(*sizes, OVER_TIME, reads_actions=True)
        self.views = AxialBlock(*sizes, ALONG_ROWS) if config.views > 1 else None

    def forward(
        self, tokens_BTVRKD: Tensor, text_ILD: Tensor, text_mask_IL: Tensor, frame_BTD: Tensor, actions_BTD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens and text of the same shapes; every image has its own copy of the text, as it reads it its own way."""
        shape = parse_shape(tokens_BTVRKD, "b t v r k d")
        per_image = repeat(frame_BTD, "b t d -> (b t v) d", v=shape["v"])
        x = rearrange(tokens_BTVRKD, "b t v r k d -> (b t v) (r k) d")
        x, text = self.spatial(x, text_ILD, per_image, text_mask_IL)
        tokens = rearrange(x, "(b t v) (r k) d -> b t v r k d", **shape)
        tokens = self.temporal(tokens, frame_BTD, actions_BTD)
        return tokens if self.views is None else self.views(tokens, frame_BTD), text


class Reconstruction(nn.Module):
    """Fills dropped places between encoder and decoder; visible tokens pass unchanged."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        sizes = config.d_model, config.heads, config.mlp_ratio
        # f_m of eq. 3. It sees its own token's noise only: a visible neighbour's would reveal that one's clean latents.
        self.noise = PatchEmbedding(config.latent_channels, config.d_model, config.patch)
        self.learned = nn.Parameter(torch.zeros(config.d_model))  # p of eq. 3
        self.spatial = AxialBlock(*sizes, WITHIN_VIEW)  # F_s of eq. 4
        self.temporal = AxialBlock(*sizes, OVER_TIME)  # F_t

    def forward(self, packed_BTVRJD: Tensor, mask: TokenMask, told: Told) -> Tensor:
        """The full grid [B, T, V, R, K, D]: F(E(z_v) ⊙ M + m_tau ⊙ (1 - M)) where tokens were dropped (eq. 2, 4)."""
        places = told.places_B1VRKD + told.frame_BTD[:, :, None, None, None]  # what the shell tells visible tokens
        fill = self.mask_tokens(mask.noise_BTVCHW, told.levels_BT) + places
        grid = mask.unpack(packed_BTVRJD, fill.to(packed_BTVRJD.dtype))
        over_time = mask.over_time_B[:, None, None, None, None, None]
        filled = torch.where(over_time, self.temporal(grid, told.frame_BTD), self.spatial(grid, told.frame_BTD))
        return torch.where(mask.dropped_BTVRK[..., None], filled, grid)

    def mask_tokens(self, noise_BTVCHW: Tensor, levels_BT: Tensor) -> Tensor:
        """m_tau = (1 - tau) f_m(eps) + tau p at every place [B, T, V, R, K, D] (eq. 3); tau is 1 - level."""
        batch, frames, views = noise_BTVCHW.shape[:3]
        told = self.noise(noise_BTVCHW.flatten(0, 2))
        told = rearrange(told, "(b t v) d r k -> b t v r k d", b=batch, t=frames, v=views)
        level = levels_BT[:, :, None, None, None, None]
        return level * told + (1 - level) * self.learned


class MaskGWM(MultiViewDiT):
    """``MultiViewDiT`` with MaskGWM's trunk; InputError where encoder or decoder would have no block."""

    def build_trunk(self, config: DiTConfig) -> None:
        if not 0 < config.decoder_depth < config.depth:
            fix = f"leave encoder and decoder some of the {config.depth} blocks"
            raise InputError("model.decoder_depth", f"a decoder of {config.decoder_depth} blocks", fix)
        self.blocks = nn.ModuleList(MaskGWMBlock(config, last=i == config.depth - 1) for i in range(config.depth))
        self.reconstruction = Reconstruction(config)

    def trunk(self, tokens_BTVRKD: Tensor, told: Told) -> Tensor:
        frames, views = tokens_BTVRKD.shape[1:3]
        text = repeat(told.text_BLD, "b l d -> (b t v) l d", t=frames, v=views)
        text_mask = repeat(told.text_mask_BL, "b l -> (b t v) l", t=frames, v=views)
        actions = self.frame.path(told.condition)
        tokens = tokens_BTVRKD if told.mask is None else told.mask.pack(tokens_BTVRKD)
        for i, block in enumerate(self.blocks):
            if told.mask is not None and i == self.config.depth - self.config.decoder_depth:
                tokens = self.reconstruction(tokens, told.mask, told)
            tokens, text = self.through(block, tokens, text, text_mask, told.frame_BTD, actions)
        return tokens
