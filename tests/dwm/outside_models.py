"""Tiny random models in the formats of diffusers and transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

WORDS = ("a", "car", "at", "night")


def save_image_codec(folder: Path, levels: int = 3) -> Path:
    """An AutoencoderKL of four latent channels and 2 ** (levels - 1) pixels a latent."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels, latent_channels=4, norm_num_groups=4, scaling_factor=0.5, shift_factor=0.3,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_text_encoder(folder: Path) -> Path:
    """A T5 of twelve features with the vocabulary <pad>, </s>, <unk>, WORDS."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "</s>", "<unk>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=len(words), d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    transformers.T5EncoderModel(config).save_pretrained(folder)
    return folder
