"""Open-Sora 1.1 weights in a MiLA: a network written here from the description of STDiT2 gives the same video."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dwm.errors import InputError
from dwm.models.conditioning import DenoiseCondition
from dwm.models.dit import DiTConfig, MultiViewDiT
from dwm.models.open_sora import fit_last_layer, initialise_from_open_sora, timestep_vectors

D, HEADS, DEPTH, K, TOKENS = 24, 2, 2, 10, 5
CONFIG = DiTConfig(
    d_model=D, depth=DEPTH, heads=HEADS, mlp_ratio=4.0, latent_channels=4, local_widths=(), stem_patch=2, preconditioned=False,
    views=1, layout_channels=3, text_every=1, text_features=K, spatial_positions=True, rotary_time=True, open_sora=True,
)  # fmt: skip
T, HEIGHT, WIDTH = 3, 5, 8  # latent pixels; the last row of patches is half empty


def checkpoint(depth: int = DEPTH) -> dict[str, torch.Tensor]:
    """Every tensor of an Open-Sora 1.1 checkpoint, at a small width, drawn at random."""
    g = torch.Generator().manual_seed(0)
    layers = {
        "t_embedder.mlp.0": (D, 256), "t_embedder.mlp.2": (D, D), "t_block.1": (6 * D, D), "t_block_temp.1": (3 * D, D),
        "y_embedder.y_proj.fc1": (D, K), "y_embedder.y_proj.fc2": (D, D), "final_layer.linear": (2 * 2 * 8, D),
        "csize_embedder.mlp.0": (D // 3, 256), "csize_embedder.mlp.2": (D // 3, D // 3), "ar_embedder.mlp.0": (D // 3, 256),
        "ar_embedder.mlp.2": (D // 3, D // 3), "fl_embedder.mlp.0": (D, 256), "fl_embedder.mlp.2": (D, D),
        "fps_embedder.mlp.0": (D, 256), "fps_embedder.mlp.2": (D, D),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (D, 4, 1, 2, 2), "x_embedder.proj.bias": (D,), "y_embedder.y_embedding": (TOKENS, K),
        "final_layer.scale_shift_table": (2, D), "rope.freqs": (D // HEADS // 2,),
    }  # fmt: skip
    for i in range(depth):
        at = f"blocks.{i}."
        shapes |= {at + "scale_shift_table": (6, D), at + "scale_shift_table_temporal": (3, D)}
        for attention in ("attn", "attn_temp"):
            layers |= {f"{at}{attention}.qkv": (3 * D, D), f"{at}{attention}.proj": (D, D)}
            shapes |= {f"{at}{attention}.{x}_norm.weight": (D // HEADS,) for x in "qk"}
        layers |= {at + "cross_attn.q_linear": (D, D), at + "cross_attn.kv_linear": (2 * D, D), at + "cross_attn.proj": (D, D)}
        layers |= {at + "mlp.fc1": (4 * D, D), at + "mlp.fc2": (D, 4 * D)}
    shapes |= {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    return {name: torch.randn(shape, generator=g) * 0.4 for name, shape in shapes.items()}


def save(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


def make_model(config: DiTConfig = CONFIG) -> MultiViewDiT:
    torch.manual_seed(1)
    return MultiViewDiT(config).eval()


def doubled(folder: Path) -> tuple[MultiViewDiT, dict[str, torch.Tensor]]:
    """A model that took over a checkpoint, and the checkpoint, both in double precision: the twins below add up otherwise."""
    tensors, model = checkpoint(), make_model()
    initialise_from_open_sora(model, save(folder / "sora.safetensors", tensors))
    return model.double(), {name: tensor.double() for name, tensor in tensors.items()}


def make_condition() -> DenoiseCondition:
    g = torch.Generator().manual_seed(2)
    yes = torch.ones(1, dtype=torch.bool)
    return DenoiseCondition(
        waypoints_BTK=torch.randn(1, T, 6, generator=g), cameras_BVK=torch.rand(1, 1, 16, generator=g) + 0.1,
        times_BT=torch.arange(T)[None] / 12, fps_B=torch.tensor([12.0]), text_BL=torch.tensor([[7, 8, 9, 1, 0]]),
        text_features_BLK=torch.randn(1, TOKENS, K, generator=g), has_text_B=yes, has_waypoints_B=yes,
        has_layout_B=~yes, has_memory_B=~yes, has_appearance_B=~yes,
    )  # fmt: skip


def linear(p: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ p[name + ".weight"].T + p[name + ".bias"]


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """[N, D] over [M, D], head by head."""
    size = D // HEADS
    heads = [slice(i * size, (i + 1) * size) for i in range(HEADS)]
    return torch.cat([(query[:, h] @ key[:, h].T / math.sqrt(size)).softmax(-1) @ value[:, h] for h in heads], dim=-1)


def turned(x: torch.Tensor) -> torch.Tensor:
    """[N, D]: each head's neighbouring channels are complex numbers that token n turns by n * 10000^(-2i / size)."""
    size = D // HEADS
    pairs = torch.view_as_complex(x.view(len(x), HEADS, size // 2, 2).contiguous())
    angle = torch.arange(len(x))[:, None] * 10_000.0 ** (-torch.arange(0, size, 2) / size)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(1)


def normed(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    heads = x.view(len(x), HEADS, -1)
    return (heads / heads.square().mean(-1, keepdim=True).add(1e-6).sqrt() * scale).flatten(1)


def self_attention(p: dict[str, torch.Tensor], name: str, x: torch.Tensor, *, rotary: bool) -> torch.Tensor:
    query, key, value = linear(p, name + ".qkv", x).split(D, dim=-1)
    if rotary:
        query, key = turned(query), turned(key)
    query, key = normed(query, p[name + ".q_norm.weight"]), normed(key, p[name + ".k_norm.weight"])
    return linear(p, name + ".proj", attend(query, key, value))


def adapted(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-6).sqrt() * (1 + scale) + shift


def slow_block(p: dict[str, torch.Tensor], at: str, x: torch.Tensor, t_TD: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """STDiT2's block on tokens [T, S, D] with a vector per frame and text tokens [L, D]."""
    six = linear(p, "t_block.1", F.silu(t_TD)).view(T, 6, D) + p[at + "scale_shift_table"]
    three = linear(p, "t_block_temp.1", F.silu(t_TD)).view(T, 3, D) + p[at + "scale_shift_table_temporal"]
    out = x.clone()
    for t in range(T):
        out[t] += six[t, 2] * self_attention(p, at + "attn", adapted(x[t], six[t, 0], six[t, 1]), rotary=False)
    x, out = out, out.clone()
    for s in range(x.shape[1]):
        seen = torch.stack([adapted(x[t, s], three[t, 0], three[t, 1]) for t in range(T)])
        out[:, s] += three[:, 2] * self_attention(p, at + "attn_temp", seen, rotary=True)
    x = out
    key, value = linear(p, at + "cross_attn.kv_linear", text).split(D, dim=-1)
    query = linear(p, at + "cross_attn.q_linear", x.flatten(0, 1))
    x = x + linear(p, at + "cross_attn.proj", attend(query, key, value)).view(x.shape)
    hidden = F.gelu(linear(p, at + "mlp.fc1", adapted(x, six[:, None, 3], six[:, None, 4])), approximate="tanh")
    return x + six[:, None, 5] * linear(p, at + "mlp.fc2", hidden)


def slow_places(rows: int, cols: int, height: int, width: int) -> torch.Tensor:
    """[rows * cols, D] by loops: column first, then row; sines, then cosines; 512 px are 64 latent pixels."""
    places, scale, side = [], math.sqrt(height * width) / 64, round(math.sqrt(rows * cols))
    for row in range(rows):
        for col in range(cols):
            channels: list[float] = []
            for place in (col / scale * side / cols, row / scale * side / rows):
                angles = [place / 10_000 ** (2 * i / (D // 2)) for i in range(D // 4)]
                channels += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            places.append(channels)
    return torch.tensor(places)


def slow_stdit2(p: dict[str, torch.Tensor], latents: torch.Tensor, t_TD: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Predicted noise [T, C, h, w] of latents [T, C, h, w]."""
    x = F.pad(latents, (0, WIDTH % 2, 0, HEIGHT % 2)).movedim(0, 1)[None]
    x = F.conv3d(x, p["x_embedder.proj.weight"], p["x_embedder.proj.bias"], stride=(1, 2, 2))[0]  # D T R K
    _, _, rows, cols = x.shape
    x = x.flatten(2).permute(1, 2, 0) + slow_places(rows, cols, HEIGHT, WIDTH)
    text = F.gelu(linear(p, "y_embedder.y_proj.fc1", features), approximate="tanh")
    text = linear(p, "y_embedder.y_proj.fc2", text)
    for i in range(DEPTH):
        x = slow_block(p, f"blocks.{i}.", x, t_TD, text)
    table = p["final_layer.scale_shift_table"]
    x = adapted(x, (table[0] + t_TD)[:, None], (table[1] + t_TD)[:, None])
    x = linear(p, "final_layer.linear", x).view(T, rows, cols, 2, 2, 8)
    out = latents.new_zeros(T, 8, 2 * rows, 2 * cols)
    for row in range(2 * rows):
        for col in range(2 * cols):
            out[:, :, row, col] = x[:, row // 2, col // 2, row % 2, col % 2]
    return out[:, :4, :HEIGHT, :WIDTH]


@torch.no_grad()
def test_one_view_of_the_model_is_the_whole_of_a_slow_stdit2(tmp_path):
    model, tensors = doubled(tmp_path)
    condition = make_condition()._map(lambda _, x: x.double() if x.is_floating_point() else x)
    latents = torch.randn(1, T, 1, 4, HEIGHT, WIDTH, dtype=torch.float64)
    levels = torch.tensor([[0.9, 0.4, 0.0]], dtype=torch.float64)
    frames = model.frame(levels, condition)[0]
    noise = slow_stdit2(tensors, latents[0, :, 0], frames, condition.text_features_BLK[0, :4])
    velocity = (model(latents, levels, condition) - latents) / (1 - levels)[..., None, None, None, None]
    assert noise.std() > 0.3
    torch.testing.assert_close(velocity[0, :, 0], -noise, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_block_of_the_model_is_a_slow_stdit2_block(tmp_path):
    model, tensors = doubled(tmp_path)
    g = torch.Generator().manual_seed(5)
    tokens, frames, text = (torch.randn(*shape, generator=g).double() for shape in ((T, 6, D), (T, D), (4, D)))
    nine = model.modulation(frames).view(1, T, 9, D)
    found = model.blocks[1](tokens[None], nine, text[None], torch.ones(1, 4, dtype=torch.bool))[0]
    torch.testing.assert_close(found, slow_block(tensors, "blocks.1.", tokens, frames, text), atol=1e-5, rtol=1e-5)


def test_patches_of_other_inputs_are_not_seen_at_first(tmp_path):
    tensors, model = checkpoint(), make_model()
    initialise_from_open_sora(model, save(tmp_path / "sora.safetensors", tensors))
    assert torch.equal(model.stem.weight[:, :4], tensors["x_embedder.proj.weight"][:, :, 0])
    assert model.stem.weight[:, 4:].abs().max() == 0


def test_every_tensor_and_every_parameter_is_accounted_for_once(tmp_path):
    tensors, model = checkpoint(), make_model()
    report = initialise_from_open_sora(model, save(tmp_path / "sora.safetensors", tensors))
    theirs = [*report.taken, *report.reshaped, *report.left]
    assert sorted(theirs) == sorted(tensors)
    assert report.taken["blocks.1.attn_temp.k_norm.weight"] == "blocks.1.temporal.key_scale"
    assert {name.split(".")[0] for name in report.left} == {
        "rope", "csize_embedder", "ar_embedder", "fl_embedder", "fps_embedder"
    }  # fmt: skip
    parameters = {name for name, _ in model.named_parameters()}
    as_drawn = {name for name, how in report.new.items() if how == "as drawn"}
    assert set(report.taken.values()) | {how.split(":")[0] for how in report.reshaped.values()} <= parameters | {
        "frame.level.layers.2"
    }
    assert as_drawn == {name for name in parameters if re.fullmatch(r"(rays|frame\.\w+)\.layers\.0\.(weight|bias)", name)}


@torch.no_grad()
def test_waypoints_rays_and_rates_change_nothing_before_training(tmp_path):
    model, condition = make_model(), make_condition()
    initialise_from_open_sora(model, save(tmp_path / "sora.safetensors", checkpoint()))
    latents, levels = torch.randn(1, T, 1, 4, HEIGHT, WIDTH), torch.full((1, T), 0.3)
    other = replace(
        condition, waypoints_BTK=-condition.waypoints_BTK, cameras_BVK=condition.cameras_BVK + 1, fps_B=torch.tensor([2.0])
    )
    assert torch.equal(model(latents, levels, condition), model(latents, levels, other))
    silent = model(latents, levels, condition.without("text"))
    assert (silent - model(latents, levels, condition)).abs().max() > 1e-3


@torch.no_grad()
def test_the_noise_level_is_embedded_as_the_step_with_the_same_signal_to_noise():
    # A smooth embedding, as training leaves it: only slow sinusoids count.
    g = torch.Generator().manual_seed(3)
    weight = torch.randn(96, 256, generator=g)
    weight[:, (torch.arange(256) % 128) < 64] = 0
    layers = {"mlp.0.weight": weight / 8, "mlp.0.bias": torch.zeros(96)}
    layers |= {"mlp.2.weight": torch.randn(96, 96, generator=g) / 8, "mlp.2.bias": torch.randn(96, generator=g)}
    levels, vectors = timestep_vectors(layers)
    alpha = torch.tensor([1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(501)], dtype=torch.float64).prod()
    assert float(levels[500] / (1 - levels[500])) == pytest.approx(float((alpha / (1 - alpha)).sqrt()), rel=1e-4)
    angles = [500 * 10_000 ** (-i / 128) for i in range(128)]
    hidden = F.silu(weight.double() / 8 @ torch.tensor([*map(math.cos, angles), *map(math.sin, angles)], dtype=torch.float64))
    expected = layers["mlp.2.weight"].double() @ hidden + layers["mlp.2.bias"]
    torch.testing.assert_close(vectors[500], expected, atol=1e-4, rtol=1e-4)
    embedder = make_model(replace(CONFIG, d_model=96)).frame.level
    assert fit_last_layer(embedder, levels[:, None], vectors) < 0.02
    error = embedder(levels[200:800, None].float()).double() - vectors[200:800]
    assert float(error.norm() / vectors[200:800].norm()) < 0.02


def test_blocks_beyond_the_models_depth_are_left(tmp_path):
    path = save(tmp_path / "sora.safetensors", checkpoint(depth=3))
    report = initialise_from_open_sora(make_model(), path)
    assert report.left["blocks.2.mlp.fc1.weight"] == "the model has 2 blocks"
    assert not any(name.startswith("blocks.2.") for name in report.taken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("blocks.1.attn.qkv.bias"), r"blocks\.1\.attn\.qkv\.bias' is missing"),
        (lambda p: p.update({"blocks.0.mlp.fc1.bias": torch.zeros(7)}), r"fc1\.bias' has another shape: \[7\].*\[96\]"),
        (lambda p: p.update({"y_embedder.y_embedding": torch.zeros(5, 8)}), r"y_embedding' has another shape"),
        (lambda p: p.update({"depth_embedder.weight": torch.zeros(2)}), r"depth_embedder\.weight' is not part of STDiT2"),
    ],
)
def test_files_that_are_no_stdit2_are_refused_by_the_tensor(tmp_path, change, message):
    tensors = checkpoint()
    change(tensors)
    with pytest.raises(InputError, match=message):
        initialise_from_open_sora(make_model(), save(tmp_path / "sora.safetensors", tensors))


@pytest.mark.parametrize("field", [{"open_sora": False}, {"rotary_time": False}, {"text_features": 0}, {"text_every": 2}])
def test_a_model_wired_otherwise_is_refused_by_the_field(tmp_path, field):
    path = save(tmp_path / "sora.safetensors", checkpoint())
    with pytest.raises(InputError, match=f"world.model.{next(iter(field))}"):
        initialise_from_open_sora(make_model(replace(CONFIG, **field)), path)
