"""LongDWM's transformer against a slow twin, and where the given frames get to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwm.config import load_config
from dwm.errors import InputError
from dwm.models.dit import DiTConfig
from dwm.models.longdwm import Injection, JointBlock, LongDWM, Sources
from dwm.models.systems import build_denoiser
from dwm.models.weights import load_model, save_model
from tests.dwm.test_dit_model import (
    TINY,
    B,
    T,
    V,
    make_condition,
    make_input,
    reach,
)

MODELS = Path(__file__).parents[2] / "conf" / "model"
LONG = replace(TINY, system="longdwm", modulation_width=6, injected_depth=1)
D, L = TINY.d_model, 4
GIVEN = torch.tensor([[False, True, False], [True, False, True]])


def shaken(model: nn.Module) -> nn.Module:
    """With weights under which every zero-initialised part matters."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model.eval()


def make_long(**fields) -> LongDWM:
    torch.manual_seed(1)
    model = shaken(build_denoiser(replace(LONG, **fields)))
    assert isinstance(model, LongDWM)
    return model


def silence(model: LongDWM) -> None:
    """Injections as they are before training."""
    for block in model.blocks:
        for parameter in block.injection.parameters() if block.injection else ():
            parameter.data.zero_()


def no_sources(batch: int, frames: int) -> Sources:
    return Sources(tokens_SVDRK=torch.zeros(0, V, D, 2, 3), chosen_BT=torch.zeros(batch, frames, dtype=torch.int64))


def block_input() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(4)
    video, text = torch.randn(B, T, V, 2, 3, D, generator=g), torch.randn(B, L, D, generator=g)
    seen = torch.ones(B, L + T * V * 6, dtype=torch.bool)
    seen[0, :2] = False
    return video, text, torch.randn(B, T, 6, generator=g), seen


def slow_block(block: JointBlock, video: Tensor, text: Tensor, modulation: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """One clip, token by token, query by query, head by head; every token carries its own shift, scale and gate."""
    words, width, heads = len(text), text.shape[-1], block.attention.heads
    per_frame = video[0].numel() // width
    tokens = torch.cat([text, video.reshape(-1, width)])

    def modulated(norm, tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        out, gates = [], []
        for i, token in enumerate(tokens):
            if i < words:
                shift, scale, gate = norm.text(modulation.mean(0)).chunk(3)
            else:
                shift, scale, gate = norm.video(modulation[(i - words) // per_frame]).chunk(3)
            out.append(norm.norm(token) * (1 + scale) + shift)
            gates.append(gate)
        return out, gates

    normed, gates = modulated(block.before_attention, tokens)
    query, key, value = torch.stack([block.attention.query_key_value(t) for t in normed]).chunk(3, dim=-1)
    mixed = torch.zeros_like(tokens)
    for head in torch.arange(width).chunk(heads):
        queries, keys = block.attention.query_norm(query[:, head]), block.attention.key_norm(key[:, head])
        for i in range(len(tokens)):
            others = [j for j in range(len(tokens)) if seen[j]]
            scores = torch.stack([queries[i] @ keys[j] / len(head) ** 0.5 for j in others]).softmax(0)
            mixed[i, head] = sum(s * value[j, head] for s, j in zip(scores, others, strict=True))  # type: ignore[arg-type]
    tokens = torch.stack([t + g * block.attention.out(m) for t, g, m in zip(tokens, gates, mixed, strict=True)])
    normed, gates = modulated(block.before_mlp, tokens)
    tokens = torch.stack([t + g * block.mlp(n) for t, g, n in zip(tokens, gates, normed, strict=True)])
    return tokens[words:].view_as(video), tokens[:words]


@torch.no_grad()
def test_a_block_equals_a_loop_over_queries_and_heads_with_each_stream_modulated_by_itself():
    block = shaken(JointBlock(LONG, injected=False))
    video, text, modulation, seen = block_input()
    fast = block(video, text, modulation, seen, no_sources(B, T))
    for clip in range(B):
        slow = slow_block(block, video[clip], text[clip], modulation[clip], seen[clip])  # type: ignore[arg-type]
        torch.testing.assert_close(fast[0][clip], slow[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(fast[1][clip], slow[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_with_one_level_for_all_frames_a_block_is_the_public_one():
    cogvideox = pytest.importorskip("diffusers.models.transformers.cogvideox_transformer_3d")
    theirs = shaken(cogvideox.CogVideoXBlock(D, LONG.heads, D // LONG.heads, 6, attention_bias=True))
    ours, public = JointBlock(replace(LONG, mlp_ratio=4), injected=False).eval(), theirs.state_dict()
    weights = {}
    for kind in ("weight", "bias"):
        for name, other in (("before_attention", "norm1"), ("before_mlp", "norm2")):
            weights[f"{name}.norm.{kind}"] = public[f"{other}.norm.{kind}"]
            weights[f"{name}.video.{kind}"], weights[f"{name}.text.{kind}"] = public[f"{other}.linear.{kind}"].chunk(2)
        weights[f"attention.query_key_value.{kind}"] = torch.cat([public[f"attn1.to_{x}.{kind}"] for x in "qkv"])
        weights[f"attention.query_norm.{kind}"] = public[f"attn1.norm_q.{kind}"]
        weights[f"attention.key_norm.{kind}"] = public[f"attn1.norm_k.{kind}"]
        weights[f"attention.out.{kind}"] = public[f"attn1.to_out.0.{kind}"]
        weights[f"mlp.0.{kind}"], weights[f"mlp.2.{kind}"] = public[f"ff.net.0.proj.{kind}"], public[f"ff.net.2.{kind}"]
    ours.load_state_dict(weights)
    video, text, modulation, _ = block_input()
    one = modulation[:, :1]
    seen = torch.ones(B, L + T * V * 6, dtype=torch.bool)
    found = ours(video, text, F.silu(one).expand(-1, T, -1), seen, no_sources(B, T))
    expected = theirs(video.flatten(1, 4), text, one[:, 0])
    torch.testing.assert_close(found[0].flatten(1, 4), expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("injection", ["first", "own"])
def test_injection_adds_exactly_nothing_before_training(injection):
    model, condition, (latents, levels) = make_long(injection=injection), make_condition(), make_input()
    silence(model)
    levels = levels.masked_fill(GIVEN, 1.0)
    before = model(latents, levels, condition)
    for parameter in model.source_patches.parameters():
        parameter.data += 1
    assert torch.equal(model(latents, levels, condition), before)
    model.blocks[-1].injection.beta.weight.data += 0.1  # type: ignore[union-attr]
    assert (model(latents, levels, condition) - before).abs().max() > 1e-3


@torch.no_grad()
def test_injection_is_the_equation_place_by_place():
    injection = shaken(Injection(D))
    g = torch.Generator().manual_seed(5)
    h, tokens = torch.randn(B, T, V, 2, 3, D, generator=g), torch.randn(2, V, D, 2, 3, generator=g)
    chosen = torch.tensor([[0, 1, 1], [2, 0, 1]])
    found = injection(h, Sources(tokens_SVDRK=tokens, chosen_BT=chosen))
    for b in range(B):
        for t in range(T):
            for v in range(V):
                if chosen[b, t] == 0:
                    assert torch.equal(found[b, t, v], h[b, t, v])
                    continue
                padded = F.pad(tokens[chosen[b, t] - 1, v], (1, 1, 1, 1))
                for r in range(2):
                    for k in range(3):
                        patch = padded[:, r : r + 3, k : k + 3]
                        gamma, beta = (
                            torch.einsum("ocij,cij->o", c.weight, patch) + c.bias for c in (injection.gamma, injection.beta)
                        )
                        here = h[b, t, v, r, k]
                        normed = (here - here.mean()) / (here.var(unbiased=False) + 1e-6).sqrt()
                        torch.testing.assert_close(found[b, t, v, r, k], here + normed * gamma + beta, atol=1e-4, rtol=1e-4)


def told_sources(model: LongDWM, latents: Tensor, levels: Tensor) -> Sources:
    """The sources that the trunk gives to its blocks."""
    caught: list[Sources] = []
    handle = model.blocks[-1].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[-1]))
    model(latents, levels, make_condition())
    handle.remove()
    return caught[0]


@torch.no_grad()
def test_the_first_given_frame_goes_to_all_frames_and_each_to_its_own_slot_only():
    latents, levels = make_input()
    levels = levels.masked_fill(GIVEN, 1.0)
    for injection, expected in (
        ("first", [[(0, 1)] * 3, [(1, 0)] * 3]),
        ("own", [[None, (0, 1), None], [(1, 0), None, (1, 2)]]),
    ):
        model = make_long(injection=injection)
        maps = told_sources(model, latents, levels).to_frames(nn.Identity())
        for b in range(B):
            for t in range(T):
                source = expected[b][t]
                patches = (
                    torch.zeros_like(maps[b, t]) if source is None else model.source_patches(latents[source]).movedim(1, -1)
                )
                torch.testing.assert_close(maps[b, t], patches, atol=1e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("injection", ["first", "own"])
def test_without_a_given_frame_nothing_is_injected_and_a_little_noise_is_not_given(injection):
    model, condition, (latents, levels) = make_long(injection=injection), make_condition(), make_input()
    levels[0, 0] = 0.999
    with_weights = model(latents, levels, condition)
    silence(model)
    assert torch.equal(model(latents, levels, condition), with_weights)


@torch.no_grad()
def test_a_gradient_reaches_the_injection_at_its_start():
    model, condition, (latents, levels) = make_long(), make_condition(), make_input()
    silence(model)
    with torch.enable_grad():
        model(latents, levels.masked_fill(GIVEN, 1.0), condition).square().mean().backward()
    injection = model.blocks[-1].injection
    assert float(injection.gamma.weight.grad.abs().max()) > 1e-6  # type: ignore[union-attr]
    assert float(injection.beta.weight.grad.abs().max()) > 1e-6  # type: ignore[union-attr]


@torch.no_grad()
@pytest.mark.parametrize("injection", ["first", "own"])
def test_swapping_two_clips_swaps_the_outputs(injection):
    model, condition, (latents, levels) = make_long(injection=injection), make_condition(), make_input()
    levels = levels.masked_fill(GIVEN, 1.0)
    flipped = condition._map(lambda _, tensor: tensor.flip(0))
    together = model(latents, levels, condition)
    torch.testing.assert_close(model(latents.flip(0), levels.flip(0), flipped), together.flip(0), atol=1e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_every_view_and_every_frame_reaches_every_other_and_no_other_clip():
    own, other = reach(make_long())
    assert (own > 1e-6).all()
    assert (other < 1e-6).all()


@torch.no_grad()
def test_text_matters_and_padding_does_not():
    model, condition, (latents, levels) = make_long(), make_condition(), make_input()
    before = model(latents, levels, condition)
    longer = replace(condition, text_BL=F.pad(condition.text_BL, (0, 2)))
    torch.testing.assert_close(model(latents, levels, longer), before, atol=1e-5, rtol=1e-5)
    other = replace(condition, text_BL=torch.tensor([[4, 3, 0], [6, 0, 0]]))
    assert (model(latents, levels, other) - before).abs().max() > 1e-3


@torch.no_grad()
def test_before_training_the_prediction_is_that_of_an_untrained_shell():
    condition, (latents, levels) = make_condition(), make_input()
    torch.manual_seed(1)
    long, mila = build_denoiser(LONG).eval(), build_denoiser(TINY).eval()
    torch.testing.assert_close(long(latents, levels, condition), mila(latents, levels, condition), atol=1e-6, rtol=1e-6)


def test_saved_weights_come_back_as_the_same_system(tmp_path):
    model, condition, (latents, levels) = make_long(injection="own"), make_condition(), make_input()
    loaded, config = load_model(save_model(model, tmp_path / "w.safetensors", {}), "multi_view_dit")
    assert (type(loaded), config) == (LongDWM, replace(LONG, injection="own"))
    with torch.no_grad():
        assert torch.equal(loaded(latents, levels, condition), model(latents, levels, condition))


def test_unknown_injections_and_depths_are_told_by_field():
    with pytest.raises(InputError, match=r"model\.injection.*'last'.*first, own"):
        build_denoiser(replace(LONG, injection="last"))
    with pytest.raises(InputError, match=r"model\.injected_depth: 3 of 2 blocks"):
        build_denoiser(replace(LONG, injected_depth=3))


def count(model: nn.Module, *, injected: bool) -> int:
    parts = ("injection", "source_patches")
    return sum(p.numel() for name, p in model.named_parameters() if any(part in name for part in parts) == injected)


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configured_models_build_without_memory(path):
    with torch.device("meta"):
        model = build_denoiser(load_config(DiTConfig, path))
    assert model.config.d_model == model.head_modulation[1].in_features


def test_the_full_size_is_cogvideox_2b_and_its_injection():
    with torch.device("meta"):
        model = build_denoiser(load_config(DiTConfig, MODELS / "longdwm.yaml"))
        patches = model.stem(torch.zeros(1, model.stem.in_channels, 60, 90))
    blocks = sum(p.numel() for block in model.blocks for name, p in block.named_parameters() if "injection" not in name)
    assert blocks == 30 * 56_081_536  # of diffusers' CogVideoXBlock(1920, 30, 64, 512, attention_bias=True)
    assert count(model, injected=False) == pytest.approx(1_693_783_872, rel=0.05)  # of its whole transformer
    assert count(model, injected=True) == pytest.approx(0.66e9, rel=0.01)
    assert patches.shape == (1, 1920, 30, 45)  # 1350 tokens a frame


@pytest.mark.parametrize(("name", "injection"), [("coarse", "first"), ("fine", "own")])
def test_the_proving_grounds_models_have_about_three_million_parameters(name, injection):
    with torch.device("meta"):
        model = build_denoiser(load_config(DiTConfig, MODELS / f"longdwm_{name}_proving_ground.yaml"))
    assert model.config.injection == injection
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.2e6, rel=0.05)
