"""Prompts as the features of a frozen T5 encoder (Raffel et al. 2020), as MiLA reads them.

Shapes: B prompts, L tokens, K features of a token (4096 in T5 v1.1 XXL).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dwm.errors import InputError
from dwm.extras import optional_package
from dwm.models.conditioning import PAD_TOKEN

MAX_TOKENS = 64  # the template fills about forty


class TextEncoder:
    """A tokenizer and the encoder half of a T5, in evaluation; see ``load_text_encoder``."""

    def __init__(self, tokenizer: Any, encoder: Any, length: int = MAX_TOKENS) -> None:
        self.tokenizer, self.encoder, self.length = tokenizer, encoder.eval().requires_grad_(False), length

    @property
    def features(self) -> int:
        """K, for ``DiTConfig.text_features``."""
        return self.encoder.config.d_model

    def to(self, device: torch.device | str) -> TextEncoder:
        """The same encoder, moved to a device."""
        self.encoder.to(device)
        return self

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """``text_features_BLK`` (zeros behind a prompt's end) and ``text_BL`` (1 where text is, else PAD_TOKEN) of a condition.

        Prompts are cut after ``length`` tokens.
        """
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.encoder.device)
        mask = tokens["attention_mask"]
        features = self.encoder(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state.float()
        return features * mask[..., None], torch.where(mask.bool(), 1, PAD_TOKEN)


def load_text_encoder(source: str, length: int = MAX_TOKENS, dtype: torch.dtype = torch.float32) -> TextEncoder:
    """The T5 in a local folder or of a hub id, e.g. ``DeepFloyd/t5-v1_1-xxl``.

    Raises InputError without transformers, and for a source that holds no T5.
    """
    transformers = optional_package("transformers", "full-scale")
    try:
        kind = transformers.AutoConfig.from_pretrained(source).model_type
        if kind != "t5":
            raise InputError(source, f"holds a model of type '{kind}'", "give a T5, e.g. DeepFloyd/t5-v1_1-xxl")
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        encoder = transformers.T5EncoderModel.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        first = str(error).strip().splitlines()[0]
        raise InputError(
            source, f"no text encoder of transformers ({first})", "give its folder, or an id of the hub"
        ) from error
    return TextEncoder(tokenizer, encoder, length)
