"""Costs of a model against closed forms, and against the same model really run; the sizes in conf/model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dwm.config import load_config
from dwm.models.accounts import Clip, account, blank_inputs
from dwm.models.dit import DiTConfig, MultiViewDiT
from dwm.models.systems import build_denoiser
from dwm.models.weights import load_tensors

ROOT = Path(__file__).resolve().parents[2]
TINY = DiTConfig(
    d_model=16, depth=3, heads=2, mlp_ratio=4.0, latent_channels=4, local_widths=(), stem_patch=2, preconditioned=False,
    views=2, layout_channels=3, text_every=1, text_features=10, spatial_positions=True, rotary_time=True, open_sora=True,
)  # fmt: skip
CLIP = Clip(batch=1, frames=3, height_px=32, width_px=64, text_tokens=5)


def test_flops_are_those_counted_by_hand():
    d, frames, views, places, text = 16, 3, 2, 2 * 4, 5 + 1  # places: patches of one view; one text token is the null prompt
    n = frames * views * places
    block = (
        n * (8 + 8 + 4 + 16) * d * d + text * 4 * d * d
    )  # attention over space, time, text; MLP; keys and values of the text
    attention = 4 * d * (frames * (views * places) ** 2 + views * places * frames**2 + n * text)
    inside = 3 * 4 + 3 + 4 * 3  # channels of the stem
    first = n * 2 * inside * 4 * d  # these layers' inputs need no gradient
    first += views * places * 2 * 8 * 13 * d + frames * 2 * (1 * 19 + 1 * 23 + 6 * 19) * d + 2 * 1 * 13 * d + 5 * 2 * 10 * d
    # The waypoints' vector is also what is fused with the tokens: it is computed twice.
    first += frames * 2 * 6 * 19 * d
    later = views * places * 2 * d * d + (4 * frames + 1) * 2 * d * d + 5 * 2 * d * d  # second layers: rays, frame, text
    later += frames * (9 + 2) * 2 * d * d + n * 2 * d * 4 * 4  # modulations, head
    found = account(TINY, CLIP)
    assert found.tokens == n
    cameras = views * places * 2 * 9  # rays turned into the ego frame: no gradient at all
    assert found.forward_flops == cameras + first + later + 3 * (block + attention)
    # Backward: twice as much; once where the inputs need no gradient; attention computes its scores again.
    assert found.step_flops == cameras + 2 * first + 3 * later + 3 * (3 * block + 3.5 * attention)
    assert found.step_flops_recomputed == found.step_flops + 3 * (block + attention)


@pytest.mark.parametrize("config", [TINY, DiTConfig(d_model=16, depth=3, heads=2, local_widths=(8,), latent_channels=4)])
def test_the_bytes_kept_are_those_of_a_real_run(config):
    torch.manual_seed(0)
    model = MultiViewDiT(config)
    parameters = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        model(*blank_inputs(config, CLIP))
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert account(config, CLIP).activation_bytes == pytest.approx(real, rel=0.02)


def test_recomputing_keeps_a_blocks_input_and_one_block_instead_of_all():
    few, many = (account(replace(TINY, depth=depth), CLIP) for depth in (1, 3))
    tokens = few.tokens * TINY.d_model * 4  # residual stream in float32
    assert many.activation_bytes_recomputed - few.activation_bytes_recomputed == pytest.approx(2 * tokens, rel=0.15)
    assert many.activation_bytes - few.activation_bytes > 20 * tokens
    assert many.state_bytes == 20 * many.total_parameters
    assert many.step_bytes(recomputed=True) == many.state_bytes + many.activation_bytes_recomputed


def test_the_papers_size_has_the_parameters_of_stdit2_and_of_what_is_told_besides():
    config = load_config(DiTConfig, ROOT / "conf" / "model" / "mila_700m.yaml")
    with torch.device("meta"):
        model = build_denoiser(config)
    d = 1152
    # Twelve biased square layers' worth of attention, 8 d^2 of MLP with its biases, norms, text gate, table of nine.
    block = 12 * d * d + 12 * d + 8 * d * d + 5 * d + 4 * 72 + d + 9 * d
    assert sum(p.numel() for p in model.blocks.parameters()) == 28 * block
    assert sum(p.numel() for p in model.parameters()) == 772_213_264
    assert (config.depth, 360 / 8, config.patch) == (28, 45, 2)


def test_the_proving_grounds_model_is_the_shipped_one():
    config = load_config(DiTConfig, ROOT / "conf" / "model" / "mila_proving_ground.yaml")
    with torch.device("meta"):
        wanted = build_denoiser(config).state_dict()
    tensors, _ = load_tensors(ROOT / "weights" / "proving_ground_world.safetensors")
    assert {name: t.shape for name, t in wanted.items()} == {name: t.shape for name, t in tensors.items()}
