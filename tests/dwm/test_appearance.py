"""The palette: kinds of surface read off the layout, their colours off one frame, painted over another."""

import pytest
import torch

from dwm.conditioning.appearance import SURFACES, Palette, paint, pick_palette, surface_shares
from dwm.conditioning.layout import LAYOUT_CHANNELS

H, W = 8, 12  # layout pixels; latents have half


def layout(**layers: torch.Tensor | float) -> torch.Tensor:
    """Layout maps [1, L, H, W] with the named layers set; a row's worth [H] or a number spreads over the picture."""
    maps = torch.zeros(1, len(LAYOUT_CHANNELS), H, W)
    for name, value in layers.items():
        maps[0, LAYOUT_CHANNELS.index(name)] = torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1)
    return maps


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values).repeat_interleave(H // len(values))


def test_shares_of_the_kinds_add_up_to_one_wherever_the_layout_does():
    maps = layout(
        is_ground=rows(0, 0, 1, 1),
        is_wall=rows(0, 1, 0, 0),
        drivable=rows(0, 0, 0, 1),
        walkway=rows(0, 0, 0.5, 0),
        nearness=0.5,
    )
    shares = surface_shares(maps, 4, 6)
    assert shares.shape == (1, len(SURFACES), 4, 6)
    torch.testing.assert_close(shares.sum(1), torch.ones(1, 4, 6))
    by_row = {name: shares[0, i, :, 0].tolist() for i, name in enumerate(SURFACES)}
    assert by_row["sky"] == [1, 0, 0, 0]
    assert by_row["near_wall"] == [0, 1, 0, 0]
    assert by_row["walkway"] == by_row["near_ground"] == [0, 0, 0.5, 0]
    assert by_row["near_road"] == [0, 0, 0, 1]


@pytest.mark.parametrize(("depth_m", "far"), [(5.0, 0.0), (12.0, 0.0), (32.0, 2 / 3), (72.0, 1.0), (150.0, 1.0)])
def test_far_and_near_share_a_surface_by_its_depth(depth_m, far):
    maps = layout(is_ground=1.0, drivable=1.0, nearness=8 / (8 + depth_m))
    shares = surface_shares(maps, 4, 6)[0, :, 0, 0]
    assert float(shares[SURFACES.index("far_road")]) == pytest.approx(far, abs=1e-6)
    assert float(shares[SURFACES.index("near_road")]) == pytest.approx(1 - far, abs=1e-6)


def test_colours_come_from_pure_pixels_and_go_back_where_their_kind_is():
    maps = layout(
        is_ground=rows(0, 0, 0, 1), drivable=rows(0, 0, 0, 1), is_wall=rows(0, 0, 1, 0), car=rows(0, 1, 0, 0), nearness=1.0
    )
    latents = (
        torch.tensor([4.0, 3.0, 2.0, 1.0]).reshape(1, 1, 4, 1).expand(1, 2, 4, 6)
        * torch.tensor([1.0, -1.0])[None, :, None, None]
    )
    palette = pick_palette(latents, maps)
    colours = dict(zip(SURFACES, palette.latents_KC.tolist(), strict=True))
    assert colours["sky"] == [4, -4]
    assert colours["box"] == [3, -3]
    assert colours["near_wall"] == [2, -2]
    assert colours["near_road"] == [1, -1]
    assert palette.seen_K.sum() == 4
    painted, known = paint(palette, maps.flip(2), 4, 6)
    torch.testing.assert_close(painted, latents.flip(2))
    assert (known == 1).all()


def test_a_mixed_pixel_hardly_tints_a_colour():
    road = torch.ones(H)
    road[:4] = 0.5  # half of these pixels is wall
    maps = layout(is_ground=road, drivable=road, is_wall=1 - road, nearness=1.0)
    latents = torch.where(torch.arange(4)[:, None] < 2, 10.0, 1.0).expand(1, 1, 4, 6)
    colour = float(pick_palette(latents, maps).latents_KC[SURFACES.index("near_road"), 0])
    assert colour == pytest.approx((1.0 + 10 * 0.5**4) / (1 + 0.5**4))


def test_a_kind_that_was_never_seen_is_unknown_and_painted_as_nothing():
    sky = layout(nearness=1.0)
    palette = pick_palette(torch.full((1, 3, 4, 6), 7.0), sky)
    assert palette.seen_K.tolist() == [float(name == "sky") for name in SURFACES]
    painted, known = paint(palette, layout(is_wall=rows(1, 0.5, 0, 0), nearness=1.0), 4, 6)
    assert known[0, 0, :, 0].tolist() == [0, 0.5, 1, 1]
    torch.testing.assert_close(painted[0, 0, :, 0], torch.tensor([0, 3.5, 7, 7]))


def test_two_stray_pixels_are_not_a_colour():
    maps = layout(nearness=1.0)
    maps[0, LAYOUT_CHANNELS.index("is_wall"), :2, :4] = 1  # two latent pixels
    assert pick_palette(torch.zeros(1, 3, 4, 6), maps).seen_K[SURFACES.index("near_wall")] == 0


def test_windows_of_any_batch_are_painted_alike():
    palette = Palette(latents_KC=torch.randn(len(SURFACES), 3), seen_K=torch.ones(len(SURFACES)))
    maps = torch.rand(2, 3, len(LAYOUT_CHANNELS), H, W)
    together, known = paint(palette, maps, 4, 6)
    one, its = paint(palette, maps[1, 2], 4, 6)
    torch.testing.assert_close(together[1, 2], one)
    torch.testing.assert_close(known[1, 2], its)
