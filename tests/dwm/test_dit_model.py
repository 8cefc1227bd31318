"""The world model against slow twins, and what its inputs may and may not change."""

import json
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import save_file

from dwm.errors import InputError
from dwm.models.conditioning import DenoiseCondition, TextEmbedder, camera_rays
from dwm.models.dit import DiTConfig, MultiViewDiT
from dwm.models.layers import Attention, fourier_features, rms_norm
from dwm.models.weights import load_model, save_model, weights_sha256

TINY = DiTConfig(
    d_model=16,
    depth=2,
    heads=2,
    mlp_ratio=2,
    local_widths=(8,),
    latent_channels=4,
    views=3,
    layout_channels=5,
    text_vocabulary=11,
    text_every=2,
)
B, T, V, ROWS, COLS = 2, 3, 3, 4, 6


def make_condition(seed: int = 0) -> DenoiseCondition:
    g = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(B, V, 3, 3, generator=g))[0]
    pose = torch.cat([rotation, torch.randn(B, V, 3, 1, generator=g)], dim=-1).flatten(2)
    intrinsics = torch.tensor([0.8, 1.4, 0.5, 0.5]).expand(B, V, 4)
    yes = torch.ones(B, dtype=torch.bool)
    return DenoiseCondition(
        waypoints_BTK=torch.randn(B, T, 6, generator=g),
        cameras_BVK=torch.cat([intrinsics, pose], dim=-1),
        times_BT=torch.arange(T).expand(B, T) / 12,
        fps_B=torch.full((B,), 12.0),
        text_BL=torch.tensor([[3, 4, 0], [5, 0, 0]]),
        has_text_B=yes, has_waypoints_B=yes, has_layout_B=yes, has_memory_B=yes, has_appearance_B=yes,
        layout_BTVCHW=torch.rand(B, T, V, 5, 2 * ROWS, 2 * COLS, generator=g),
        memory_BTVCHW=torch.randn(B, T, V, 4, ROWS, COLS, generator=g),
        memory_valid_BTV1HW=torch.rand(B, T, V, 1, ROWS, COLS, generator=g),
        appearance_BTVCHW=torch.randn(B, T, V, 4, ROWS, COLS, generator=g),
        appearance_known_BTV1HW=torch.rand(B, T, V, 1, ROWS, COLS, generator=g),
    )  # fmt: skip


def make_model(*, trained: bool) -> MultiViewDiT:
    torch.manual_seed(1)
    model = MultiViewDiT(TINY).eval()
    if trained:  # every zero-initialised part must matter in the tests below
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def make_input() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.randn(B, T, V, 4, ROWS, COLS, generator=g), torch.rand(B, T, generator=g)


@torch.no_grad()
def test_attention_equals_a_loop_over_queries_and_heads():
    torch.manual_seed(0)
    attention, tokens = Attention(8, 2), torch.randn(1, 5, 8)
    query, key, value = attention.key_value(tokens[0]).chunk(3, dim=-1)
    mixed = torch.zeros(5, 8)
    for head in (slice(0, 4), slice(4, 8)):
        for i in range(5):
            unit_q = query[i, head] / query[i, head].square().mean().add(1e-6).sqrt()
            scores = torch.stack([unit_q @ (k[head] / k[head].square().mean().add(1e-6).sqrt()) / 2 for k in key])
            mixed[i, head] = sum(w * v[head] for w, v in zip(scores.softmax(0), value, strict=True))
    torch.testing.assert_close(attention(tokens)[0], attention.out(mixed), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cross_attention_does_not_see_masked_context():
    torch.manual_seed(0)
    attention, tokens, context = Attention(8, 2, cross=True), torch.randn(1, 5, 8), torch.randn(1, 3, 8)
    mask = torch.tensor([[True, False, True]])
    torch.testing.assert_close(attention(tokens, context, mask), attention(tokens, context[:, [0, 2]]))


def test_rms_norm_gives_unit_root_mean_square():
    normed = rms_norm(torch.randn(7, 16) * 9, torch.ones(16))
    torch.testing.assert_close(normed.square().mean(-1), torch.ones(7), atol=1e-4, rtol=0)


def test_fourier_features_are_the_value_its_sines_and_its_cosines():
    features = fourier_features(torch.tensor([0.5, 2.0]), torch.tensor([1.0, 3.0]))
    angles = torch.tensor([0.5, 1.5, 2.0, 6.0])
    torch.testing.assert_close(features, torch.cat([torch.tensor([0.5, 2.0]), angles.sin(), angles.cos()]))


def test_the_central_ray_looks_along_the_camera_axis():
    # Camera z forward = ego x, camera x right = ego -y, camera y down = ego -z, 1.5 m above the ground.
    pose = torch.tensor([[0.0, 0, 1, 0.1], [-1, 0, 0, 0.0], [0, -1, 0, 0.15]])
    cameras = torch.cat([torch.tensor([0.8, 1.4, 0.5, 0.5]), pose.flatten()]).view(1, 1, 16)
    rays = camera_rays(cameras, 3, 3)[0, 0]
    torch.testing.assert_close(rays[4], torch.tensor([0, 0, 1, 0, 0, 0.1, 0, 0.15]), atol=1e-6, rtol=0)
    assert rays[3, 3] > 0, "a patch on the left of a front camera looks left: ego y is positive"
    assert rays[1, 4] > 0, "a patch at the top looks up"


@torch.no_grad()
def test_before_training_pure_noise_predicts_memory_over_appearance_and_a_clean_frame_itself():
    condition, (latents, levels) = make_condition(), make_input()
    model = make_model(trained=False)
    from_noise = model(latents, torch.zeros_like(levels), condition)
    covered = condition.memory_valid_BTV1HW
    assert torch.equal(from_noise, condition.memory_BTVCHW * covered + condition.appearance_BTVCHW * (1 - covered))
    torch.testing.assert_close(model(latents, torch.ones_like(levels), condition), latents, atol=1e-4, rtol=0)


@torch.no_grad()
def test_before_training_a_noisy_frame_gives_the_wiener_estimate():
    condition, (latents, levels) = make_condition().without("memory", "appearance"), make_input()
    t = 0.6  # without memory the prior is N(0, 1): the estimate is t x_t / (t^2 + (1 - t)^2)
    predicted = make_model(trained=False)(latents, torch.full_like(levels, t), condition)
    torch.testing.assert_close(predicted, latents * t / (t**2 + (1 - t) ** 2), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_clips_of_a_batch_do_not_mix():
    model, condition, (latents, levels) = make_model(trained=True), make_condition(), make_input()
    flipped = condition._map(lambda _, tensor: tensor.flip(0))
    together = model(latents, levels, condition)
    torch.testing.assert_close(model(latents.flip(0), levels.flip(0), flipped), together.flip(0), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_frames_are_told_apart_by_their_times_only():
    """Permuting the frames with all they carry permutes the prediction; their order as such means nothing."""
    model, condition, (latents, levels) = make_model(trained=True), make_condition(), make_input()
    order = torch.tensor([2, 0, 1])
    per_frame = [name for name in (f.name for f in fields(condition)) if name[name.rfind("_") :].startswith("_BT")]
    assert len(per_frame) == 7
    moved = replace(condition, **{name: getattr(condition, name)[:, order] for name in per_frame})
    expected = model(latents, levels, condition)[:, order]
    torch.testing.assert_close(model(latents[:, order], levels[:, order], moved), expected, atol=1e-4, rtol=1e-4)
    stale_times = replace(moved, times_BT=condition.times_BT)
    assert (model(latents[:, order], levels[:, order], stale_times) - expected).abs().max() > 1e-3


@torch.no_grad()
def reach(model: MultiViewDiT) -> torch.Tensor:
    """How much every view of every frame of two clips [2, T, V] changes with one view of one frame of the first."""
    condition, (latents, levels) = make_condition(), make_input()
    changed = latents.clone()
    changed[0, 2, 2] += 1
    return (model(changed, levels, condition) - model(latents, levels, condition)).abs().amax(dim=(3, 4, 5))


def test_every_view_and_every_frame_reaches_every_other():
    own, other = reach(make_model(trained=True))
    assert (own > 1e-6).all()
    assert (other < 1e-6).all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["layout", "memory", "appearance"])
def test_a_missing_tensor_equals_a_false_flag(name):
    model, condition, (latents, levels) = make_model(trained=True), make_condition(), make_input()
    off = condition.without(name)
    gone = {f.name: None for f in fields(condition) if f.name.startswith(name)}
    without = model(latents, levels, off)
    torch.testing.assert_close(model(latents, levels, replace(condition, **gone)), without, atol=1e-5, rtol=1e-5)
    assert (model(latents, levels, condition) - without).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "field", "other"),
    [("waypoints", "waypoints_BTK", torch.zeros(B, T, 6)), ("text", "text_BL", torch.full((B, 3), 7))],
)
def test_a_switched_off_input_has_no_influence(name, field, other):
    model, condition, (latents, levels) = make_model(trained=True), make_condition(), make_input()
    changed = replace(condition, **{field: other})
    assert (model(latents, levels, changed) - model(latents, levels, condition)).abs().max() > 1e-3
    off = model(latents, levels, condition.without(name))
    assert torch.equal(model(latents, levels, changed.without(name)), off)


def test_the_null_token_stands_in_exactly_when_there_is_no_text():
    condition = replace(make_condition(), has_text_B=torch.tensor([True, False]))
    tokens, mask = TextEmbedder(11, 16)(condition)
    assert mask.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert tokens.shape == (B, 4, 16)


@torch.no_grad()
def test_a_slice_of_frames_keeps_what_belongs_to_the_clip():
    part = make_condition().frames(slice(1, 3))
    assert part.times_BT.shape == (B, 2)
    assert part.layout_BTVCHW.shape[:3] == (B, 2, V)
    assert part.cameras_BVK.shape == (B, V, 16)
    assert part.times_BT[0, 0] == pytest.approx(1 / 12)


def test_saved_weights_come_back_the_same(tmp_path):
    model, condition, (latents, levels) = make_model(trained=True), make_condition(), make_input()
    path = save_model(model, tmp_path / "w.safetensors", {"steps": "3"})
    loaded, config = load_model(path, "multi_view_dit")
    assert config == TINY
    with torch.no_grad():
        assert torch.equal(loaded(latents, levels, condition), model(latents, levels, condition))
    assert len(weights_sha256(path)) == 64


def _metadata() -> dict[str, str]:
    from dataclasses import asdict

    return {"kind": "multi_view_dit", "config": json.dumps(asdict(TINY))}


def test_weights_with_nan_are_refused_by_name(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in make_model(trained=False).state_dict().items()}
    tensors["head.bias"] = tensors["head.bias"].clone()
    tensors["head.bias"][1] = float("nan")
    save_file(tensors, tmp_path / "w.safetensors", metadata=_metadata())
    with pytest.raises(InputError, match=r"head\.bias.*NaN"):
        load_model(tmp_path / "w.safetensors")


def test_weights_of_another_shape_are_refused_with_both_shapes(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in make_model(trained=False).state_dict().items()}
    tensors["head.bias"] = torch.zeros(5)
    save_file(tensors, tmp_path / "w.safetensors", metadata=_metadata())
    with pytest.raises(InputError, match=r"head\.bias.*\[5\] in the file, \[4\] in the model"):
        load_model(tmp_path / "w.safetensors")


def test_missing_broken_and_foreign_files_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="no such weights file"):
        load_model(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_model(tmp_path / "text.safetensors")
    path = save_model(make_model(trained=False), tmp_path / "w.safetensors", {})
    with pytest.raises(InputError, match="kind 'multi_view_dit'"):
        load_model(path, "autoencoder")
