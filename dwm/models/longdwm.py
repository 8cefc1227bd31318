"""LongDWM's trunk: the transformer of CogVideoX, with the given frames injected into its last blocks.

Text and video are one sequence in which every token looks at every other (Yang et al., CogVideoX, arXiv 2408.06072); each
stream has its own modulation, both share one MLP. Injection: LongDWM, arXiv 2506.01546, as in its authors' training code.

Shapes: B batch, T frames, V views, R rows and K columns of tokens, D width, L text tokens, N all video tokens of a clip,
E width of the modulation, S source frames (given frames that are injected), C latent channels, h w latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dwm.errors import InputError
from dwm.models.dit import DiTConfig, MultiViewDiT, Told
from dwm.models.layers import PatchEmbedding, mlp, normalise, start_at_zero

INJECTIONS = ("first", "own")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Clean latents of given frames as tokens, and the frames that each goes to."""

    tokens_SVDRK: Tensor
    chosen_BT: Tensor  # int64: 1 + the source of a frame; 0 where it has none

    def to_frames(self, layer: nn.Module) -> Tensor:
        """What a layer makes of every view of the source of each frame [B, T, V, R, K, D]; zeros without a source."""
        maps = layer(self.tokens_SVDRK.flatten(0, 1)).unflatten(0, self.tokens_SVDRK.shape[:2])
        none = maps.new_zeros(1, *maps.shape[1:])
        return rearrange(torch.cat([none, maps])[self.chosen_BT], "b t v d r k -> b t v r k d")


class Injection(nn.Module):
    """h + LN(h) * gamma + beta, with gamma and beta of the given frames; begins as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        start_at_zero(self.gamma, self.beta)

    def forward(self, h_BTVRKD: Tensor, sources: Sources) -> Tensor:
        """The same shape."""
        return h_BTVRKD + normalise(h_BTVRKD) * sources.to_frames(self.gamma) + sources.to_frames(self.beta)


class JointNorm(nn.Module):
    """One layer norm for both streams; each has its own shift, scale and gate, the video's frame by frame."""

    def __init__(self, width: int, modulation_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.video, self.text = nn.Linear(modulation_width, 3 * width), nn.Linear(modulation_width, 3 * width)
        start_at_zero(self.video, self.text)

    def forward(self, video_BTVRKD: Tensor, text_BLD: Tensor, modulation_BTE: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normed video and text, then the gates of what is made of them."""
        shift_v, scale_v, gate_v = self.video(modulation_BTE)[:, :, None, None, None].chunk(3, dim=-1)
        # Text belongs to no frame, so it takes the mean frame's.
        shift_t, scale_t, gate_t = self.text(modulation_BTE.mean(1, keepdim=True)).chunk(3, dim=-1)
        video = torch.addcmul(shift_v, self.norm(video_BTVRKD), 1 + scale_v)
        return video, torch.addcmul(shift_t, self.norm(text_BLD), 1 + scale_t), gate_v, gate_t


class JointAttention(nn.Module):
    """Multi-head attention over one sequence, queries and keys layer-normed per head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.query_norm, self.key_norm = nn.LayerNorm(width // heads, eps=1e-6), nn.LayerNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(self, tokens_BND: Tensor, seen_BN: Tensor) -> Tensor:
        """[B, N, D]; ``seen_BN`` is True where a token may be looked at."""
        query, key, value = rearrange(self.query_key_value(tokens_BND), "b n (p a d) -> p b a n d", p=3, a=self.heads)
        # Under autocast the norms come back wider than the values.
        query, key = self.query_norm(query).to(value.dtype), self.key_norm(key).to(value.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen_BN[:, None, None])
        return self.out(rearrange(mixed, "b a n d -> b n (a d)"))


class JointBlock(nn.Module):
    """Attention over text and video together, then one MLP for both."""

    def __init__(self, config: DiTConfig, *, injected: bool) -> None:
        super().__init__()
        width = config.d_model
        self.before_attention = JointNorm(width, config.modulation_width)
        self.attention = JointAttention(width, config.heads)
        self.before_mlp = JointNorm(width, config.modulation_width)
        self.mlp = mlp(width, int(width * config.mlp_ratio), width)
        self.injection = Injection(width) if injected else None

    def forward(
        self, video_BTVRKD: Tensor, text_BLD: Tensor, modulation_BTE: Tensor, seen_BN: Tensor, sources: Sources
    ) -> tuple[Tensor, Tensor]:
        """Video and text, in their shapes; ``seen_BN`` counts text first."""
        words = text_BLD.shape[1]
        video, text, gate_v, gate_t = self.before_attention(video_BTVRKD, text_BLD, modulation_BTE)
        if self.injection is not None:
            video = self.injection(video, sources)
        mixed = self.attention(torch.cat([text, video.flatten(1, 4)], dim=1), seen_BN)
        video = torch.addcmul(video_BTVRKD, gate_v, mixed[:, words:].view_as(video))
        text = torch.addcmul(text_BLD, gate_t, mixed[:, :words])

        normed_video, normed_text, gate_v, gate_t = self.before_mlp(video, text, modulation_BTE)
        video = torch.addcmul(video, gate_v, self.mlp(normed_video))
        return video, torch.addcmul(text, gate_t, self.mlp(normed_text))


class LongDWM(MultiViewDiT):
    """The coarse model (``injection`` "first") and the bidirectional fine one ("own") of LongDWM."""

    def build_trunk(self, config: DiTConfig) -> None:
        """Raises InputError for an unknown ``injection`` or one deeper than the model."""
        if config.injection not in INJECTIONS:
            raise InputError("model.injection", f"'{config.injection}' is unknown", f"choose one of {', '.join(INJECTIONS)}")
        if not 0 <= config.injected_depth <= config.depth:
            raise InputError(
                "model.injected_depth", f"{config.injected_depth} of {config.depth} blocks", "give 0 to model.depth"
            )
        width, narrow = config.d_model, config.modulation_width
        self.modulation = nn.Sequential(nn.Linear(width, narrow), nn.SiLU(), nn.Linear(narrow, narrow), nn.SiLU())
        self.source_patches = PatchEmbedding(config.latent_channels, width, config.patch)
        first_injected = config.depth - config.injected_depth
        self.blocks = nn.ModuleList(JointBlock(config, injected=i >= first_injected) for i in range(config.depth))

    def trunk(self, tokens_BTVRKD: Tensor, told: Told) -> Tensor:
        """What the tokens become by looking at each other and at the text; the same shape."""
        modulation, sources = self.modulation(told.frame_BTD), self._sources(told)
        video_seen = torch.ones_like(tokens_BTVRKD[..., 0], dtype=torch.bool).flatten(1)
        seen = torch.cat([told.text_mask_BL, video_seen], dim=1)
        video, text = tokens_BTVRKD, told.text_BLD
        for block in self.blocks:
            video, text = self.through(block, video, text, modulation, seen, sources)
        return video

    def _sources(self, told: Told) -> Sources:
        """The first given frame for all frames of its clip, or each given frame for itself."""
        given = told.levels_BT >= 1
        if self.config.injection == "own":
            clean, chosen = told.latents_BTVCHW[given], given.flatten().cumsum(0).view_as(given) * given
        else:
            clips = torch.arange(len(given), device=given.device)
            clean = told.latents_BTVCHW[clips, given.int().argmax(1)]
            chosen = ((clips + 1) * given.any(1))[:, None].expand(given.shape)
        tokens = self.source_patches(clean.flatten(0, 1)).unflatten(0, clean.shape[:2])
        return Sources(tokens_SVDRK=tokens, chosen_BT=chosen)
