"""Positions in space and time against slow twins; latents that are no whole number of patches."""

import math
from dataclasses import fields, replace

import pytest
import torch

from dwm.models.conditioning import camera_rays
from dwm.models.dit import MultiViewDiT
from dwm.models.layers import Attention
from dwm.models.positions import SpatialPositions, geometric_frequencies, rotate
from tests.dwm.test_dit_model import TINY, B, T, V, make_condition, make_input

PAPERS = replace(TINY, local_widths=(), stem_patch=2, preconditioned=False)


def grown(config) -> MultiViewDiT:
    """A model whose zero-initialised parts matter."""
    torch.manual_seed(1)
    model = MultiViewDiT(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def test_rotary_positions_turn_complex_numbers():
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    found = rotate(x, geometric_frequencies(4))
    for n in range(5):
        for i in range(4):
            turn = complex(math.cos(n * 10_000 ** (-2 * i / 8)), math.sin(n * 10_000 ** (-2 * i / 8)))
            for s in range(2):
                for a in range(3):
                    z = complex(x[s, a, n, 2 * i], x[s, a, n, 2 * i + 1]) * turn
                    assert complex(*found[s, a, n, 2 * i : 2 * i + 2].tolist()) == pytest.approx(z, abs=1e-5)


def test_products_of_turned_vectors_tell_the_distance_and_not_the_place():
    query, key = torch.randn(2, 8, dtype=torch.float64)
    turned_q, turned_k = (rotate(x.expand(1, 1, 9, 8), geometric_frequencies(4))[0, 0] for x in (query, key))
    products = turned_q @ turned_k.T
    for offset in range(-8, 9):
        diagonal = products.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-5)
    assert float((products[0] - products[0, 0]).abs().max()) > 1e-2


@torch.no_grad()
def test_attention_with_rotary_positions_minds_the_order_and_without_does_not():
    torch.manual_seed(0)
    tokens, order = torch.randn(1, 5, 16), torch.tensor([3, 0, 4, 1, 2])
    for rotary in (False, True):
        attention = Attention(16, 2, rotary=rotary)
        moved = (attention(tokens[:, order]) - attention(tokens)[:, order]).abs().max()
        assert (moved > 1e-3) == rotary


def test_places_are_columns_then_rows_on_a_square_of_the_pictures_area():
    places = SpatialPositions(16)(45, 80, 2)
    assert places.shape == (23, 40, 16)
    # 45 x 80 latent pixels are 360 x 640 px: scale 480 / 512; 23 x 40 patches are stretched to 30 x 30.
    column, row = 7 / (480 / 512) * 30 / 40, 5 / (480 / 512) * 30 / 23
    expected = [f(place * 10_000 ** (-i / 4)) for place in (column, row) for f in (math.sin, math.cos) for i in range(4)]
    assert places[5, 7].tolist() == pytest.approx(expected, abs=1e-5)


def test_switches_that_are_off_leave_the_state_as_it_was_and_positions_are_not_stored():
    plain = MultiViewDiT(PAPERS).state_dict().keys()
    placed = MultiViewDiT(replace(PAPERS, spatial_positions=True, rotary_time=True)).state_dict().keys()
    assert plain == placed


@torch.no_grad()
@pytest.mark.parametrize("switch", ["spatial_positions", "rotary_time"])
def test_a_switch_changes_what_the_model_says(switch):
    condition, (latents, levels) = make_condition(), make_input()
    without, with_it = grown(PAPERS), grown(replace(PAPERS, **{switch: True}))
    with_it.load_state_dict(without.state_dict())
    assert (with_it(latents, levels, condition) - without(latents, levels, condition)).abs().max() > 1e-3


@torch.no_grad()
def test_the_model_of_velocities_sees_pure_noise():
    """A velocity at level 0 is clean minus noise: a network that cannot see the noise cannot learn it."""
    model, condition, (latents, levels) = grown(PAPERS), make_condition(), make_input()
    nothing = torch.zeros_like(levels)
    velocity = model(latents, nothing, condition) - latents
    other = model(latents + 1, nothing, condition) - (latents + 1)
    assert (velocity - other).abs().max() > 1e-2


@torch.no_grad()
def test_half_patches_at_the_edge_are_filled_with_zeros():
    model, condition = grown(PAPERS), make_condition()
    dense = {f.name: None for f in fields(condition) if f.name.endswith("HW")}
    condition = replace(condition, **dense)
    latents, levels = torch.randn(B, T, V, 4, 5, 6), torch.rand(B, T)
    predicted = model(latents, levels, condition)
    assert predicted.shape == latents.shape
    tokens = []
    hook = model.stem.register_forward_hook(lambda _, inputs, output: tokens.append((inputs[0], output)))
    model(latents, levels, condition)
    hook.remove()
    inside, outside = tokens[0]
    assert inside.shape[-2:] == (6, 6)
    assert inside[..., 5, :].abs().max() == 0
    assert outside.shape[-2:] == (3, 3)
    assert (predicted[..., 4, :] - latents[..., 4, :]).abs().max() > 1e-3


def test_rays_of_half_patches_go_on_beyond_the_edge():
    cameras = torch.cat([torch.tensor([0.8, 1.4, 0.5, 0.5]), torch.eye(4)[:3].flatten()]).view(1, 1, 16)
    rays = camera_rays(cameras, 2.5, 4)[0, 0].view(3, 4, 8)
    assert rays[:, 0, 1].tolist() == pytest.approx([2 * 0.2 - 1, 2 * 0.6 - 1, 2 * 1.0 - 1])
    assert torch.equal(camera_rays(cameras, 2.0, 4.0), camera_rays(cameras, 2, 4))
