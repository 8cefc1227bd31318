"""Text features of a T5, on a tiny random one, and how the world model reads them."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dwm.errors import InputError
from dwm.models.conditioning import TextFeatureEmbedder
from dwm.models.dit import DiTConfig, MultiViewDiT
from dwm.models.text_encoder import load_text_encoder
from tests.dwm.outside_models import save_text_encoder
from tests.dwm.test_dit_model import TINY, make_condition, make_input

PROMPTS = ["a car at night", "a car"]
FEATURES = DiTConfig(**{f: getattr(TINY, f) for f in TINY.__slots__} | {"text_features": 12})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_text_encoder(tmp_path)


def test_features_are_those_of_each_prompt_alone_and_zeros_behind_it(folder):
    encoder = load_text_encoder(str(folder), length=6)
    features, tokens = encoder.encode(PROMPTS)
    assert (encoder.features, features.shape) == (12, (2, 6, 12))
    assert tokens.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert features[1, 2:].abs().max() == 0
    for i, words in enumerate(([3, 4, 5, 6], [3, 4])):
        with torch.no_grad():
            alone = encoder.encoder(input_ids=torch.tensor([words])).last_hidden_state[0]
        torch.testing.assert_close(features[i, : len(words)], alone, atol=1e-5, rtol=1e-5)
    assert load_text_encoder(str(folder), length=3).encode(PROMPTS)[1].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_other_folders_and_models_are_input_errors(folder, tmp_path):
    import transformers

    with pytest.raises(InputError, match="no text encoder of transformers"):
        load_text_encoder(str(tmp_path / "none"))
    transformers.BertConfig(hidden_size=8).save_pretrained(folder)
    with pytest.raises(InputError, match="type 'bert'"):
        load_text_encoder(str(folder))


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'roadreel\[full-scale\]'"):
        load_text_encoder("anywhere")


@torch.no_grad()
def test_features_pass_two_layers_and_the_null_prompt_stands_in_where_there_is_none():
    torch.manual_seed(0)
    embedder = TextFeatureEmbedder(12, 16)
    condition = replace(make_condition(), text_features_BLK=torch.randn(2, 3, 12), has_text_B=torch.tensor([True, False]))
    tokens, mask = embedder(condition)
    assert mask.tolist() == [[False, True, True, False], [True, False, False, False]]
    first, _, second = embedder.layers
    hidden = torch.nn.functional.gelu(first(condition.text_features_BLK[0]), approximate="tanh")
    torch.testing.assert_close(tokens[0, 1:], second(hidden))
    assert torch.equal(tokens[1, 0], embedder.null)
    tokens, mask = embedder(replace(condition, text_features_BLK=None))
    assert torch.equal(tokens, embedder.null.expand(2, 1, 16))
    assert mask.tolist() == [[True], [True]]


@torch.no_grad()
def test_the_model_hears_features_unless_text_is_off():
    torch.manual_seed(1)
    model = MultiViewDiT(FEATURES).eval()
    for parameter in model.parameters():
        parameter += 0.2 * torch.randn(parameter.shape)
    latents, levels = make_input()
    one, other = (replace(make_condition(), text_features_BLK=torch.randn(2, 3, 12)) for _ in range(2))
    assert (model(latents, levels, one) - model(latents, levels, other)).abs().max() > 1e-3
    silent = model(latents, levels, one.without("text"))
    assert torch.equal(model(latents, levels, other.without("text")), silent)
    torch.testing.assert_close(model(latents, levels, replace(one, text_features_BLK=None)), silent)
