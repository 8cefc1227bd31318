"""MaskGWM's trunk: against slow twins, what masking hides, and what it changes."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dwm.config import load_config
from dwm.errors import InputError
from dwm.models.axial import ALONG_ROWS, OVER_TIME, WITHIN_VIEW, AxialBlock
from dwm.models.conditioning import DenoiseCondition, camera_rays
from dwm.models.dit import DiTConfig, _masked_mean
from dwm.models.layers import modulate
from dwm.models.maskgwm import MaskGWM
from dwm.models.masking import TokenMask, draw_mask
from dwm.models.mm_dit import JointBlock
from dwm.models.systems import build_denoiser

CONF = Path(__file__).resolve().parents[2] / "conf" / "model"
B, T, V, ROWS, COLS, C = 2, 4, 2, 2, 4, 3  # tokens; one is 2 x 2 latent pixels
TINY = DiTConfig(
    system="maskgwm",
    d_model=16,
    depth=3,
    decoder_depth=1,
    heads=2,
    mlp_ratio=2,
    local_widths=(),
    stem_patch=2,
    preconditioned=False,
    latent_channels=C,
    views=V,
    layout_channels=0,
    text_vocabulary=11,
)


def make_model(config: DiTConfig = TINY) -> MaskGWM:
    torch.manual_seed(1)
    model = build_denoiser(config).eval()
    assert isinstance(model, MaskGWM)
    for parameter in model.parameters():  # every zero-initialised part must matter in the tests below
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def make_condition() -> DenoiseCondition:
    g = torch.Generator().manual_seed(3)
    pose = torch.cat([torch.linalg.qr(torch.randn(B, V, 3, 3, generator=g))[0], torch.randn(B, V, 3, 1, generator=g)], dim=-1)
    intrinsics = torch.tensor([0.8, 1.4, 0.5, 0.5]).expand(B, V, 4)
    yes = torch.ones(B, dtype=torch.bool)
    return DenoiseCondition(
        waypoints_BTK=torch.randn(B, T, 6, generator=g),
        cameras_BVK=torch.cat([intrinsics, pose.flatten(2)], dim=-1),
        times_BT=torch.arange(T).expand(B, T) / 12,
        fps_B=torch.full((B,), 12.0),
        text_BL=torch.tensor([[3, 4, 0], [5, 0, 0]]),
        has_text_B=yes, has_waypoints_B=yes, has_layout_B=~yes, has_memory_B=~yes, has_appearance_B=~yes,
    )  # fmt: skip


def make_input() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.randn(B, T, V, C, 2 * ROWS, 2 * COLS, generator=g), torch.rand(B, T, generator=g)


def make_mask(*over_time: bool, seed: int = 0) -> TokenMask:
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(B, T, V, C, 2 * ROWS, 2 * COLS, generator=g)
    masks = [draw_mask(g, noise[i : i + 1], 2, ratio=0.25, time_share=float(kind)) for i, kind in enumerate(over_time)]
    return replace(
        masks[0],
        dropped_BTVRK=torch.cat([m.dropped_BTVRK for m in masks]),
        noise_BTVCHW=noise,
        over_time_B=torch.tensor(over_time),
    )


def watch(model: MaskGWM) -> dict[str, Tensor]:
    """What enters and leaves the reconstruction of the next call."""
    seen: dict[str, Tensor] = {}

    def note(_, inputs, output):
        seen.update(packed=inputs[0], grid=output)

    model.reconstruction.register_forward_hook(note)
    return seen


def attended(queries: Tensor, keys: Tensor, values: Tensor, block: AxialBlock, i: int) -> Tensor:
    """Attention of query i over all keys of one sequence [N, D], head by head."""
    mixed = []
    width = queries.shape[-1] // block.heads
    for head in range(block.heads):
        part = slice(head * width, (head + 1) * width)

        def unit(x: Tensor, part: slice = part) -> Tensor:
            return x[part] / x[part].square().mean().add(1e-6).sqrt()

        scores = [unit(queries[i]) * block.query_scale @ (unit(k) * block.key_scale) / math.sqrt(width) for k in keys]
        mixed.append(sum(w * v[part] for w, v in zip(torch.stack(scores).softmax(0), values, strict=True)))
    return torch.cat(mixed)


def axial_twin(block: AxialBlock, x: Tensor, frame: Tensor, sequences: list[list[tuple]], actions: Tensor | None) -> Tensor:
    """``AxialBlock`` sequence by sequence; a sequence is the places [b, t, v, r, k] that see each other."""
    attention, out = torch.zeros_like(x), torch.zeros_like(x)
    for sequence in sequences:
        queries, keys, values = [], [], []
        for place in sequence:
            shift, scale, *_ = block.modulation(torch.nn.functional.silu(frame[place[:2]])).chunk(4)
            query, key, value = block.query_key_value(modulate(x[place], shift, scale)).chunk(3)
            if actions is not None:
                of_key, of_value = block.action(actions[place[:2]]).chunk(2)
                key, value = key + of_key, value + of_value
            queries.append(query), keys.append(key), values.append(value)
        for i, place in enumerate(sequence):
            attention[place] = attended(torch.stack(queries), torch.stack(keys), torch.stack(values), block, i)
    for place in (p for sequence in sequences for p in sequence):
        *_, shift, scale = block.modulation(torch.nn.functional.silu(frame[place[:2]])).chunk(4)
        middle = x[place] + block.out(attention[place])
        out[place] = middle + block.mlp(modulate(middle, shift, scale))
    return out


def make_axial(sequences: str, *, actions: bool = False) -> AxialBlock:
    torch.manual_seed(0)
    block = AxialBlock(16, 2, 2.0, sequences, reads_actions=actions)
    for parameter in block.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return block


@torch.no_grad()
def test_packed_attention_over_time_equals_a_loop_over_the_visible_tokens_of_the_full_grid():
    """The j-th visible tokens of a row see each other over time, wherever in the row they stand, with each frame's action."""
    block, mask = make_axial(OVER_TIME, actions=True), make_mask(True, False)
    tokens, frame, actions = torch.randn(B, T, V, ROWS, COLS, 16), torch.randn(B, T, 16), torch.randn(B, T, 16)
    sequences = []
    for b, v, r, j in torch.cartesian_prod(*map(torch.arange, (B, V, ROWS, mask.columns))).tolist():
        visible = [[k for k in range(COLS) if not mask.dropped_BTVRK[b, t, v, r, k]] for t in range(T)]
        sequences.append([(b, t, v, r, visible[t][j]) for t in range(T)])
    twin = axial_twin(block, tokens, frame, sequences, actions)
    fast = mask.unpack(block(mask.pack(tokens), frame, actions), torch.zeros_like(tokens))
    torch.testing.assert_close(fast, twin, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_packed_attention_along_rows_equals_a_loop_over_what_all_views_keep_of_a_row():
    block, mask = make_axial(ALONG_ROWS), make_mask(True, False)
    tokens, frame = torch.randn(B, T, V, ROWS, COLS, 16), torch.randn(B, T, 16)
    sequences = []
    for b, t, r in torch.cartesian_prod(*map(torch.arange, (B, T, ROWS))).tolist():
        kept = [(v, k) for v in range(V) for k in range(COLS) if not mask.dropped_BTVRK[b, t, v, r, k]]
        sequences.append([(b, t, v, r, k) for v, k in kept])
    twin = axial_twin(block, tokens, frame, sequences, None)
    fast = mask.unpack(block(mask.pack(tokens), frame), torch.zeros_like(tokens))
    torch.testing.assert_close(fast, twin, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_within_a_view_equals_a_loop_over_its_tokens():
    block = make_axial(WITHIN_VIEW)
    tokens, frame = torch.randn(B, T, V, ROWS, COLS, 16), torch.randn(B, T, 16)
    images = torch.cartesian_prod(*map(torch.arange, (B, T, V))).tolist()
    sequences = [[(*image, r, k) for r in range(ROWS) for k in range(COLS)] for image in images]
    torch.testing.assert_close(block(tokens, frame), axial_twin(block, tokens, frame, sequences, None), atol=1e-5, rtol=1e-5)


def make_joint(*, last: bool) -> JointBlock:
    torch.manual_seed(0)
    block = JointBlock(8, 2, 2.0, last=last)
    for parameter in block.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return block


@torch.no_grad()
def test_a_joint_block_equals_one_attention_over_text_and_image_with_weights_of_their_own():
    block = make_joint(last=False)
    image, text, frame, seen = (
        torch.randn(1, 4, 8),
        torch.randn(1, 3, 8),
        torch.randn(1, 8),
        torch.tensor([[True, False, True]]),
    )
    tokens, streams = [*text[0], *image[0]], [block.text] * 3 + [block.image] * 4
    told = [s.modulation(torch.nn.functional.silu(frame[0])).chunk(6) for s in streams]
    qkv = [
        s.query_key_value(modulate(x, shift, scale)).chunk(3)
        for s, x, (shift, scale, *_) in zip(streams, tokens, told, strict=True)
    ]
    outcome = []
    for i, (stream, x) in enumerate(zip(streams, tokens, strict=True)):
        mixed = []
        for head in (slice(0, 4), slice(4, 8)):
            unit_q = qkv[i][0][head] / qkv[i][0][head].square().mean().add(1e-6).sqrt() * stream.query_scale
            others = [j for j in range(7) if j != 1]  # the padding
            keys = [qkv[j][1][head] / qkv[j][1][head].square().mean().add(1e-6).sqrt() * streams[j].key_scale for j in others]
            weights = torch.stack([unit_q @ key / 2 for key in keys]).softmax(0)
            mixed.append(sum(w * qkv[j][2][head] for w, j in zip(weights, others, strict=True)))
        _, _, gate, shift, scale, gate_m = told[i]
        middle = x + gate * stream.out(torch.cat(mixed))
        outcome.append(middle + gate_m * stream.mlp(modulate(middle, shift, scale)))
    fast_image, fast_text = block(image, text, frame, seen)
    torch.testing.assert_close(torch.cat([fast_text, fast_image], dim=1)[0], torch.stack(outcome), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_last_joint_block_reads_the_text_and_leaves_it():
    block = make_joint(last=True)
    image, text, frame, seen = torch.randn(1, 4, 8), torch.randn(1, 3, 8), torch.randn(1, 8), torch.ones(1, 3, dtype=torch.bool)
    changed, left = block(image, text, frame, seen)
    assert torch.equal(left, text)
    assert (block(image, text + 1.0 * torch.randn_like(text), frame, seen)[0] - changed).abs().max() > 1e-3


def test_blocks_add_nothing_before_training():
    torch.manual_seed(0)
    for sequences in (OVER_TIME, ALONG_ROWS, WITHIN_VIEW):
        tokens = torch.randn(B, T, V, ROWS, COLS, 16)
        assert torch.equal(AxialBlock(16, 2, 2.0, sequences)(tokens, torch.randn(B, T, 16)), tokens)
    image, text, seen = torch.randn(1, 4, 16), torch.randn(1, 3, 16), torch.ones(1, 3, dtype=torch.bool)
    after = JointBlock(16, 2, 2.0, last=False)(image, text, torch.randn(1, 16), seen)
    assert torch.equal(after[0], image) and torch.equal(after[1], text)


@torch.no_grad()
def test_a_given_frame_is_modulated_as_one_without_noise_whatever_the_level_of_the_others():
    """Eq. 5: m_c tau is 0 on given frames, here level 1."""
    model, condition, (latents, levels) = make_model(), make_condition(), make_input()
    shifts: list[Tensor] = []
    model.blocks[0].temporal.modulation.register_forward_hook(lambda _, __, output: shifts.append(output))
    levels[:, 0] = 1.0
    noisier = levels.clone()
    noisier[:, 1:] *= 0.5
    for these in (levels, noisier, torch.ones_like(levels)):
        model(latents, these, condition)
    assert torch.equal(shifts[0][:, 0], shifts[1][:, 0]) and torch.equal(shifts[0][:, 0], shifts[2][:, 0])
    assert (shifts[0][:, 1:] - shifts[1][:, 1:]).abs().amax(dim=-1).min() > 1e-3


@torch.no_grad()
def test_actions_reach_other_frames_through_keys_and_values_alone():
    model, condition, (latents, levels) = make_model(), make_condition(), make_input()
    model.frame.path = lambda _: torch.zeros(B, T, 16)  # type: ignore[method-assign]
    without = model(latents, levels, condition)
    path = torch.zeros(B, T, 16)
    path[0, 2] = 1.0
    frames = model.frame.forward(levels, condition)
    model.frame.path = lambda _: path  # type: ignore[method-assign]
    model.frame.forward = lambda *_: frames  # type: ignore[method-assign]  # not by the frame's vector
    moved = (model(latents, levels, condition) - without).abs().amax(dim=(2, 3, 4, 5))
    assert (moved[0] > 1e-5).all() and (moved[1] == 0).all()


@torch.no_grad()
def test_without_a_mask_what_reconstruction_has_learnt_does_not_matter():
    model, condition, (latents, levels) = make_model(), make_condition(), make_input()
    before = model(latents, levels, condition)
    for parameter in model.reconstruction.parameters():
        parameter.fill_(float("nan"))
    assert torch.equal(model(latents, levels, condition), before)
    assert model(latents, levels, condition, make_mask(True, False)).isnan().any()


@torch.no_grad()
def test_the_encoder_computes_on_visible_tokens_and_the_decoder_on_all():
    model, condition, (latents, levels) = make_model(), make_condition(), make_input()
    counts: list[int] = []
    for block in model.blocks:
        block.spatial.image.query_key_value.register_forward_hook(lambda _, inputs, __: counts.append(inputs[0].shape[1]))
    model(latents, levels, condition, make_mask(True, False))
    assert counts == [ROWS * 3, ROWS * 3, ROWS * COLS]


@torch.no_grad()
@pytest.mark.parametrize("levels_outside", [(), (8,)])
def test_dropped_latents_reach_nothing_the_encoder_gives_out(levels_outside):
    """Convolutional levels around the trunk must not carry them either."""
    config = replace(TINY, local_widths=levels_outside, stem_patch=1 if levels_outside else 2)
    model, condition, (latents, levels), mask = make_model(config), make_condition(), make_input(), make_mask(True, False)
    seen = watch(model)
    model(latents, levels, condition, mask)
    packed = seen["packed"]
    elsewhere = latents - mask.hide(latents)  # what is hidden, and zeros
    model(latents + elsewhere, levels, condition, mask)
    assert elsewhere.abs().max() > 1 and torch.equal(seen["packed"], packed)
    model(latents + mask.hide(latents), levels, condition, mask)
    assert not torch.equal(seen["packed"], packed)


@torch.no_grad()
def test_the_noise_enters_through_mask_tokens_alone_and_visible_tokens_pass_by():
    model, condition, (latents, levels), mask = make_model(), make_condition(), make_input(), make_mask(True, False)
    seen = watch(model)
    model(latents, levels, condition, mask)
    packed, grid = seen["packed"], seen["grid"]
    assert torch.equal(mask.pack(grid), packed), "only dropped positions take what F gives"
    assert torch.equal(mask.unpack(packed, grid), grid)
    model(latents, levels, condition, replace(mask, noise_BTVCHW=-mask.noise_BTVCHW))
    assert torch.equal(seen["packed"], packed) and torch.equal(mask.pack(seen["grid"]), packed)
    assert (seen["grid"] - grid).abs().amax(dim=-1)[mask.dropped_BTVRK].min() > 1e-5


@torch.no_grad()
def test_before_training_a_dropped_place_holds_its_mask_token_its_ray_and_its_frames_vector():
    """Those two are what the shell adds to visible tokens; F is the identity then."""
    torch.manual_seed(0)
    model, condition, (latents, levels) = build_denoiser(TINY), make_condition(), make_input()
    mask, seen = make_mask(True, False), watch(model)
    model(latents, levels, condition, mask)
    frame = model.frame(levels, condition) + _masked_mean(*model.text(condition))[:, None]
    rays = model.rays(camera_rays(condition.cameras_BVK, ROWS, COLS)).view(B, 1, V, ROWS, COLS, -1)
    tokens = model.reconstruction.mask_tokens(mask.noise_BTVCHW, levels) + rays + frame[:, :, None, None, None]
    dropped = mask.dropped_BTVRK
    torch.testing.assert_close(seen["grid"][dropped], tokens[dropped], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("over_time", [False, True])
def test_a_clip_takes_the_branch_of_its_kind_of_mask(over_time):
    model, condition, (latents, levels) = make_model(), make_condition(), make_input()
    mask, seen = make_mask(over_time, over_time), watch(model)
    model(latents, levels, condition, mask)
    grid = seen["grid"]
    idle, used = ("spatial", "temporal") if over_time else ("temporal", "spatial")
    for name, changes in ((idle, False), (used, True)):
        getattr(model.reconstruction, name).out.bias += 1.0
        model(latents, levels, condition, mask)
        assert torch.equal(seen["grid"], grid) is not changes


@torch.no_grad()
def test_a_mask_token_tells_the_noise_near_clean_and_the_learned_vector_at_pure_noise():
    """m_tau = (1 - tau) f_m(eps) + tau p, with tau = 1 - level."""
    part, noise = make_model().reconstruction, make_mask(True, False).noise_BTVCHW
    clean, pure, between = (part.mask_tokens(noise, torch.full((B, T), level)) for level in (1.0, 0.0, 0.25))
    assert torch.equal(pure, part.learned.expand_as(pure))
    for b, t, v, r, k in torch.cartesian_prod(*map(torch.arange, (B, T, V, ROWS, COLS))).tolist():
        own = noise[b, t, v, :, 2 * r : 2 * r + 2, 2 * k : 2 * k + 2]
        expected = (part.noise.weight * own).sum(dim=(1, 2, 3)) + part.noise.bias
        torch.testing.assert_close(clean[b, t, v, r, k], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(between, 0.25 * clean + 0.75 * pure)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_clips_of_a_batch_do_not_mix(masked):
    model, condition, (latents, levels) = make_model(), make_condition(), make_input()
    mask = make_mask(True, False) if masked else None
    other = mask and replace(
        mask,
        dropped_BTVRK=mask.dropped_BTVRK.flip(0),
        noise_BTVCHW=mask.noise_BTVCHW.flip(0),
        over_time_B=mask.over_time_B.flip(0),
    )
    flipped = condition._map(lambda _, tensor: tensor.flip(0))
    together = model(latents, levels, condition, mask)
    swapped = model(latents.flip(0), levels.flip(0), flipped, other)
    torch.testing.assert_close(swapped, together.flip(0), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_every_view_frame_and_word_reaches_every_frame_of_its_clip():
    model, condition, (latents, levels) = make_model(), make_condition(), make_input()
    before, changed = model(latents, levels, condition), latents.clone()
    changed[0, 2, 1] += 1
    moved = (model(changed, levels, condition) - before).abs().amax(dim=(3, 4, 5))
    assert (moved[0] > 1e-6).all() and (moved[1] == 0).all()
    words = replace(condition, text_BL=torch.tensor([[3, 7, 0], [5, 0, 0]]))
    moved = (model(latents, levels, words) - before).abs().amax(dim=(3, 4, 5))
    assert (moved[0] > 1e-6).all() and (moved[1] == 0).all()


def test_one_view_has_no_blocks_across_views():
    names = [name for name, _ in make_model(replace(TINY, views=1)).named_parameters()]
    assert not any(".views." in name for name in names)
    assert any(".views." in name for name, _ in make_model().named_parameters())


def parameters(model: MaskGWM, *parts: str) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if any(part in name for part in parts))


@pytest.mark.parametrize(("name", "views"), [("maskgwm_long", 1), ("maskgwm_mview", 6)])
def test_the_papers_sizes_hold_the_parameters_of_sd3_medium_and_what_is_added(name, views):
    config = load_config(DiTConfig, CONF / f"{name}.yaml")
    assert (config.views, config.depth - config.decoder_depth, config.patch) == (views, 19, 2)
    with torch.device("meta"):
        model = build_denoiser(config)
    total, temporal = parameters(model, ""), parameters(model, ".temporal.")
    added = parameters(model, ".temporal.", ".views.", "reconstruction.")
    assert total - added == pytest.approx(2.03e9, rel=0.05)
    assert temporal == pytest.approx((24 * 18 + 16) * 1536**2, rel=0.01)  # 24 blocks and F_t, which reads no actions
    assert parameters(model, ".views.") == pytest.approx((views > 1) * 24 * 16 * 1536**2, rel=0.01)


def test_the_proving_grounds_weights_fit_in_10_mb_of_half_precision():
    with torch.device("meta"):
        model = build_denoiser(load_config(DiTConfig, CONF / "maskgwm_proving_ground.yaml"))
    assert parameters(model, "") == pytest.approx(4.615e6, rel=0.01)
    assert model.config.preconditioned and list(model.config.local_widths) == [64, 128]


def test_settings_that_mean_nothing_are_refused(tmp_path):
    (tmp_path / "typo.yaml").write_text("system: maskgwm\ndecoder_dept: 2\n")
    with pytest.raises(InputError, match="decoder_dept"):
        load_config(DiTConfig, tmp_path / "typo.yaml")
    with pytest.raises(InputError, match=r"system.*'maskgw'.*maskgwm"):
        build_denoiser(replace(TINY, system="maskgw"))
    for depth in (0, 3):
        with pytest.raises(InputError, match=rf"decoder_depth.*{depth} blocks"):
            build_denoiser(replace(TINY, decoder_depth=depth))
