import itertools

import numpy as np
import pytest

from dwm.scenes.proving_ground.curves import Piece, connect, sample, straight


def test_a_right_angle_turn_is_one_quarter_circle_after_the_longer_straight():
    pieces = connect((0.0, 0.0, 0.0), (15.0, 10.0, np.pi / 2))
    assert [round(piece.length_m, 6) for piece in pieces] == [5.0, round(10 * np.pi / 2, 6)]
    assert pieces[1].curvature == pytest.approx(0.1)
    assert pieces[-1].end == pytest.approx((15.0, 10.0, np.pi / 2))


def test_a_lane_shift_between_parallel_lines_is_two_opposite_arcs_that_arrive_in_pose():
    first, second = connect((0.0, 0.0, 0.0), (30.0, -3.5, 0.0))
    assert first.curvature == pytest.approx(-second.curvature) and first.curvature < 0
    assert second.end == pytest.approx((30.0, -3.5, 0.0), abs=1e-9)
    # Closed form of a symmetric reverse curve: R = (L^2 + W^2) / (4 W).
    assert 1 / abs(first.curvature) == pytest.approx((30.0**2 + 3.5**2) / (4 * 3.5))


@pytest.mark.parametrize("end", [(20.0, -12.0, -1.3), (25.0, 2.0, 0.1), (18.0, 18.0, 1.7), (40.0, 0.0, 0.0)])
def test_connections_are_continuous_in_position_and_heading(end):
    pieces = connect((0.0, 0.0, 0.0), end)
    for before, after in itertools.pairwise(pieces):
        assert before.end == pytest.approx(after.start, abs=1e-9)
    assert pieces[-1].end == pytest.approx(end, abs=1e-6)


def test_samples_are_evenly_spaced_and_never_repeat_a_point():
    arc = Piece(start=(0.0, 0.0, 0.0), length_m=5.0, curvature=0.2)
    poses = sample((arc, straight(arc.end, 3.2)), 0.5)
    steps = np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=1)
    assert steps.min() > 0.4 and steps.max() <= 0.5
    centre = np.array([0.0, 5.0])
    assert np.linalg.norm(poses[:11, :2] - centre, axis=1) == pytest.approx(5.0)
