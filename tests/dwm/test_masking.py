"""Masks: what is dropped, and that nothing gets lost in packing."""

import pytest
import torch

from dwm.models.masking import TokenMask, draw_mask

B, T, V, ROWS, COLS, PATCH = 3, 4, 2, 3, 8, 2


def make_mask(seed: int = 0, *, ratio: float = 0.25, time_share: float = 0.5, cols: int = COLS, batch: int = B) -> TokenMask:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, T, V, 4, PATCH * ROWS, PATCH * cols, generator=generator)
    return draw_mask(generator, noise, PATCH, ratio=ratio, time_share=time_share)


@pytest.mark.parametrize(
    ("ratio", "cols", "dropped"),
    [(0.25, 8, 2), (0.25, 32, 8), (0.25, 7, 2), (0.25, 10, 3), (0.1, 10, 1), (0.05, 8, 0), (0.99, 8, 7), (0.6, 1, 0)],
)
@pytest.mark.parametrize("time_share", [0.0, 1.0])
def test_every_row_drops_the_nearest_whole_number_of_tokens_and_never_all(ratio, cols, dropped, time_share):
    mask = make_mask(ratio=ratio, cols=cols, time_share=time_share)
    assert mask.dropped_BTVRK.shape == (B, T, V, ROWS, cols)
    assert (mask.dropped_BTVRK.sum(-1) == dropped).all()
    assert mask.columns == cols - dropped


def test_a_spatial_mask_is_the_same_in_all_frames_and_differs_between_rows_views_and_clips():
    mask = make_mask(time_share=0.0).dropped_BTVRK
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    for axis in (0, 2, 3):
        assert not torch.equal(mask.select(axis, 0), mask.select(axis, 1))


def test_a_mask_over_time_draws_every_frame_anew():
    mask = make_mask(time_share=1.0).dropped_BTVRK
    assert all(not torch.equal(mask[:, s], mask[:, t]) for s in range(T) for t in range(s))


def test_every_token_is_dropped_equally_often_and_either_kind_of_mask_has_its_share():
    mask = make_mask(ratio=0.25, time_share=0.3, batch=2000)
    assert mask.dropped_BTVRK.float().mean(dim=(0, 1, 2, 3)) == pytest.approx([0.25] * COLS, abs=0.02)
    assert float(mask.over_time_B.float().mean()) == pytest.approx(0.3, abs=0.04)
    same = (mask.dropped_BTVRK == mask.dropped_BTVRK[:, :1]).flatten(1).all(dim=1)
    assert torch.equal(same, ~mask.over_time_B)


def test_packing_moves_what_is_visible_to_the_left_as_a_loop_does():
    mask, tokens = make_mask(), torch.randn(B, T, V, ROWS, COLS, 5)
    packed = mask.pack(tokens)
    for place in torch.cartesian_prod(*map(torch.arange, (B, T, V, ROWS))).tolist():
        visible = [k for k in range(COLS) if not mask.dropped_BTVRK[(*place, k)]]
        assert torch.equal(packed[tuple(place)], tokens[tuple(place)][visible])


def test_unpacking_gives_back_every_visible_token_and_the_fill_elsewhere():
    mask, tokens, fill = make_mask(), torch.randn(B, T, V, ROWS, COLS, 5), torch.randn(B, T, V, ROWS, COLS, 5)
    expected = torch.where(mask.dropped_BTVRK[..., None], fill, tokens)
    assert torch.equal(mask.unpack(mask.pack(tokens), fill), expected)


def test_hiding_blanks_all_latent_pixels_of_a_dropped_token_and_no_other():
    mask = make_mask()
    hidden = mask.hide(torch.ones(B, T, V, 4, PATCH * ROWS, PATCH * COLS))
    for row in range(PATCH * ROWS):
        for col in range(PATCH * COLS):
            gone = mask.dropped_BTVRK[..., row // PATCH, col // PATCH]
            assert torch.equal(hidden[..., row, col], (~gone).float()[..., None].expand(-1, -1, -1, 4))
