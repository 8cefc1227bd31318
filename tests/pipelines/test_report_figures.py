import math
import re

import numpy as np

from pipelines.report import figures
from pipelines.report.figures import Series


def numbers(text: str) -> list[float]:
    return [float(v) for v in re.findall(r"-?\d+\.?\d*", text)]


def test_a_point_ahead_of_a_northbound_start_has_forward_and_no_left():
    local = figures.path_in_start_frame(np.array([[5.0, 15.0], [2.0, 5.0]]), np.array([5.0, 5.0]), math.pi / 2)
    np.testing.assert_allclose(local, [[10.0, 0.0], [0.0, 3.0]], atol=1e-12)


def test_a_path_shifted_left_deviates_left_by_that_distance_in_every_heading():
    yaw = np.linspace(-3, 3, 13)
    baseline = np.stack([yaw * 4, yaw**2], axis=-1)
    left = np.stack([-np.sin(yaw), np.cos(yaw)], axis=-1)
    ahead, aside = figures.deviation_from(baseline + 1.5 * left, baseline, yaw)
    np.testing.assert_allclose(aside, 1.5)
    np.testing.assert_allclose(ahead, 0.0, atol=1e-12)


def test_the_birds_eye_plot_keeps_one_scale_on_both_axes_and_forward_points_up():
    path = np.array([[0.0, 0.0], [60.0, 0.0], [60.0, 20.0]])  # ahead 60 m, then 20 m to the left
    svg = figures.birds_eye(path, None, 3, 1.0)
    (x0, y0), (x1, y1), (x2, y2) = np.array(numbers(re.search(r'data-path="([^"]+)"', svg)[1])).reshape(-1, 2)
    assert x0 == x1
    assert y1 < y0  # up on the screen
    assert x2 < x1  # left on the screen
    np.testing.assert_allclose((x1 - x2) / (y0 - y1), 20 / 60, atol=2e-3)
    assert y2 == y1


def test_the_path_changes_colour_where_the_log_ends():
    path = np.stack([np.arange(40.0), np.zeros(40)], axis=-1)
    log, simulated = (
        len(re.search(rf'd="([^"]+)" class="line" stroke="{color}"', figures.birds_eye(path, None, 10, 1.0))[1].split())
        for color in (figures.LOG_COLOR, figures.SIMULATED_COLOR)
    )
    assert (log, simulated) == (10, 31)  # the two share one point


def test_a_curve_puts_its_extremes_where_the_axis_says():
    series = Series(name="a", times_s=np.array([0.0, 30.0, 60.0]), values=np.array([0.0, 1.0, 0.5]))
    svg = figures.curve("recall", "", [series], 60.0, 60.0)
    (x0, y0), (x1, y1), (_, y2) = np.array(re.findall(r'circle cx="([\d.]+)" cy="([\d.]+)"', svg), dtype=float)
    assert (y0 + y1) / 2 == y2
    grid = [float(y) for y in re.findall(r'<path d="M46.0,([\d.]+) H', svg)]
    assert (max(grid), min(grid)) == (y0, y1)
    assert x1 - x0 == (340 - 18 - 46) / 2
    assert "simulated" not in svg


def test_a_missing_value_leaves_a_gap_in_the_line():
    series = Series(name="a", times_s=np.arange(5.0), values=np.array([1.0, 2.0, math.nan, 2.0, 1.0]))
    svg = figures.curve("psnr", "dB", [series], 5.0, 2.0)
    assert svg.count('class="line"') == 2
    assert svg.count("<circle") == 4
    assert "nan" not in svg.replace("NaN", "nan")


def test_a_constant_or_empty_curve_still_has_a_readable_axis():
    flat = Series(name="a", times_s=np.arange(3.0), values=np.full(3, 0.5))
    for series in ([flat], []):
        assert len(re.findall(r'class="grid"', figures.curve("x", "", series, 3.0, 3.0))) >= 2


def test_the_share_bar_fills_its_width_in_proportion():
    svg = figures.share_bar({"log": 1, "simulated": 3}, size=(400, 10))
    assert re.findall(r'x="([\d.]+)" y="0" width="([\d.]+)"', svg) == [("0.0", "100.0"), ("100.0", "300.0")]


def test_titles_are_escaped():
    assert "<b>" not in figures.curve("<b>", "", [], 1.0, 1.0)
