"""The joint block of MM-DiT: text and image attend to each other, each with its own weights (Esser et al., "Scaling Rectified
Flow Transformers for High-Resolution Image Synthesis", ICML 2024, section 4 and figure 2b; the blocks of SD3).

Shapes: I images, N image tokens, L text tokens, A heads, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dwm.models.layers import mlp, modulate, rms_norm, start_at_zero


class Stream(nn.Module):
    """The weights of one kind of token in a joint block; ``ends``: it is only looked at, and not changed."""

    def __init__(self, width: int, heads: int, hidden: int, *, ends: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, (2 if ends else 6) * width)
        start_at_zero(self.modulation)
        self.query_key_value = nn.Linear(width, (2 if ends else 3) * width)
        self.key_scale = nn.Parameter(torch.ones(width // heads))
        if not ends:
            self.query_scale = nn.Parameter(torch.ones(width // heads))
            self.out = nn.Linear(width, width)
            self.mlp = mlp(width, hidden, width)

    def told(self, frame_ID: Tensor) -> list[Tensor]:
        """Shift and scale before attention; then, if the stream goes on, its gate and the three of the MLP. [I, 1, D] each."""
        parts = self.modulation(F.silu(frame_ID))
        return list(parts.unsqueeze(1).split(frame_ID.shape[-1], dim=-1))

    def ask(self, tokens_IND: Tensor, shift: Tensor, scale: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Queries (none where the stream ends), keys and values, [I, A, N, D / A] each."""
        parts = self.query_key_value(modulate(tokens_IND, shift, scale)).split(tokens_IND.shape[-1], dim=-1)
        *query, key, value = (rearrange(part, "i n (a d) -> i a n d", a=self.heads) for part in parts)
        return [rms_norm(q, self.query_scale) for q in query], rms_norm(key, self.key_scale), value

    def take(self, tokens_IND: Tensor, mixed_IND: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, gate_m: Tensor) -> Tensor:
        """The tokens [I, N, D] after what attention brought them, and their MLP."""
        tokens = torch.addcmul(tokens_IND, gate, self.out(mixed_IND))
        return torch.addcmul(tokens, gate_m, self.mlp(modulate(tokens, shift, scale)))


class JointBlock(nn.Module):
    """One attention over the tokens of a text and an image. In the ``last`` block of a model the text is only read.

    Queries and keys are RMS-normalised, as the paper advises for mixed precision (section 5.3.2). All gates start at zero.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, last: bool) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.image = Stream(width, heads, hidden)
        self.text = Stream(width, heads, hidden, ends=last)
        self.last = last

    def forward(self, image_IND: Tensor, text_ILD: Tensor, frame_ID: Tensor, text_mask_IL: Tensor) -> tuple[Tensor, Tensor]:
        """Image and text tokens, changed; ``text_mask_IL`` is True where there is text."""
        of_image, of_text = self.image.told(frame_ID), self.text.told(frame_ID)
        image_query, image_key, image_value = self.image.ask(image_IND, *of_image[:2])
        text_query, text_key, text_value = self.text.ask(text_ILD, *of_text[:2])
        value = torch.cat([text_value, image_value], dim=2)
        # Under autocast the norm comes back wider than the values.
        query = torch.cat(text_query + image_query, dim=2).to(value.dtype)
        key = torch.cat([text_key, image_key], dim=2).to(value.dtype)
        seen = F.pad(text_mask_IL, (0, image_IND.shape[1]), value=True)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None])
        mixed = rearrange(mixed, "i a n d -> i n (a d)")
        image = self.image.take(image_IND, mixed[:, -image_IND.shape[1] :], *of_image[2:])
        if self.last:
            return image, text_ILD
        return image, self.text.take(text_ILD, mixed[:, : text_ILD.shape[1]], *of_text[2:])
