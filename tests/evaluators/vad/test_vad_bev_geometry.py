"""The grid in the images and in the frame before, with numbers made by hand."""

import math
from dataclasses import replace

import pytest
import torch

from evaluators.vad.bev_geometry import cell_centers, ego_shift, look_up, pillar_points, rotate_grid
from evaluators.vad.config import CONFIGS
from tests.evaluators.vad.vad_factories import TINY, ring

FOUR = replace(TINY, bev_hw=(4, 4))


def turned(grid: torch.Tensor, angle_deg: float, center_xy: tuple[float, float]) -> torch.Tensor:
    config = replace(FOUR, rotation_center_xy=center_xy)
    return rotate_grid(grid.reshape(1, 16, 1), torch.tensor([angle_deg]), config).reshape(4, 4)


def test_a_quarter_turn_about_the_middle_is_anticlockwise_with_rows_downwards():
    grid = torch.arange(1.0, 17.0).reshape(4, 4)
    torch.testing.assert_close(turned(grid, 90.0, (2.0, 2.0)), torch.rot90(grid))
    torch.testing.assert_close(turned(grid, 0.0, (4.0, 4.0)), grid)


def test_a_quarter_turn_about_a_point_off_centre_loses_what_leaves_the_grid():
    """The cell in row r and column c takes row c - 2 and column 5 - r of the past about (4, 2)."""
    grid = torch.arange(1.0, 17.0).reshape(4, 4)
    wanted = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 4, 8], [0, 0, 3, 7]])
    torch.testing.assert_close(turned(grid, 90.0, (4.0, 2.0)), wanted)
    # About the grid's last corner, where (100, 100) lies on the published small grid, nothing stays.
    assert float(turned(grid, 90.0, (4.0, 4.0)).abs().max()) == 0


@pytest.mark.parametrize("angle_deg", [23.0, -7.5])
def test_turned_cells_take_the_nearest_cell(angle_deg):
    grid, (cx, cy) = torch.arange(1.0, 17.0).reshape(4, 4), (1.5, 3.0)
    angle = math.radians(angle_deg)
    wanted = torch.zeros(4, 4)
    for r in range(4):
        for c in range(4):
            x, y = c + 0.5 - cx, r + 0.5 - cy
            column = round(x * math.cos(angle) - y * math.sin(angle) + cx - 0.5)
            row = round(x * math.sin(angle) + y * math.cos(angle) + cy - 0.5)
            if 0 <= row < 4 and 0 <= column < 4:
                wanted[r, c] = grid[row, column]
    torch.testing.assert_close(turned(grid, angle_deg, (cx, cy)), wanted)


def test_published_grids_turn_about_the_same_point_whatever_their_size():
    assert CONFIGS["vad_tiny"].rotation_center_xy == CONFIGS["vad_base"].rotation_center_xy == (100.0, 100.0)
    assert CONFIGS["vad_tiny"].bev_hw == (100, 100) and CONFIGS["vad_base"].bev_hw == (200, 200)


def test_every_grid_of_a_batch_turns_by_its_own_angle():
    grids = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    config = replace(FOUR, rotation_center_xy=(2.0, 2.0))
    found = rotate_grid(grids, torch.tensor([90.0, 0.0]), config)
    torch.testing.assert_close(found[0], torch.rot90(grids[0].reshape(4, 4, 3)).reshape(16, 3))
    torch.testing.assert_close(found[1], grids[1])


def test_the_shift_is_to_the_right_and_forward_as_shares_of_30_and_60_metres():
    """Heading north: 6 m north is forward, 3 m east is to the right."""
    can_bus = torch.zeros(3, 18)
    can_bus[:, 16] = math.pi / 2
    can_bus[1, 1], can_bus[2, 0] = 6.0, 3.0
    wanted = torch.tensor([[0.0, 0.0], [0.0, 0.1], [0.1, 0.0]])
    torch.testing.assert_close(ego_shift(can_bus, CONFIGS["vad_tiny"]), wanted, atol=1e-6, rtol=0)


def test_points_stand_above_cell_centres_half_a_metre_within_the_heights():
    config = replace(TINY, bev_hw=(3, 2), pillar_points=4)
    points = pillar_points(config)
    assert points.shape == (6, 4, 3)
    torch.testing.assert_close(points[0, :, 2], torch.tensor([-1.5, -0.5, 0.5, 1.5]))
    torch.testing.assert_close(
        points[:, 0, :2], torch.tensor([[-7.5, -20], [7.5, -20], [-7.5, 0], [7.5, 0], [-7.5, 20], [7.5, 20]])
    )
    torch.testing.assert_close(cell_centers((3, 2))[3], torch.tensor([0.75, 0.5]))


def test_points_are_shares_of_the_padded_image_and_seen_only_in_front_and_inside():
    image_hw, focal = (40, 100), 50 / math.tan(math.radians(35))
    points = torch.tensor([[[1.0, 10.0, 0.5], [0.0, -10.0, 0.0]], [[30.0, 10.0, 0.0], [0.0, 0.0, 5.0]]])
    sight = look_up(points, ring(image_hw)[None], image_hw)
    wanted = torch.tensor([0.5 + focal * 0.1 / 100, 0.5 - focal * 0.05 / 40])
    torch.testing.assert_close(sight.places_BVQZ2[0, 0, 0, 0], wanted)
    # Front sees the first cell's first point, back its second; the second cell is beside the front camera's image.
    assert sight.visible_BVQ[0, :, 0].tolist() == [True, False, False, True, False, False]
    assert sight.visible_BVQ[0, :, 1].tolist() == [False, True, False, False, False, False]


def test_where_points_are_seen_is_not_rounded_in_half_precision():
    points, cameras = pillar_points(TINY), ring((40, 100))[None]
    with torch.autocast("cpu", torch.bfloat16):
        sight = look_up(points, cameras, (40, 100))
    assert torch.equal(sight.places_BVQZ2, look_up(points, cameras, (40, 100)).places_BVQZ2)
