"""Planning scores in both conventions, by hand, and every quirk of the published collision check."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from nuscenes.utils.color_map import get_colormap

from dwm.errors import InputError
from evaluators.ego_collision import (
    VAD_EGO_BOX,
    EgoBox,
    FutureAgents,
    as_labelled_by_vad,
    hits_on_grid,
    hits_with_heading,
    obstacles,
    occupancy,
    path_headings,
)
from evaluators.planning import STEPS, PlannedFrame, PlanningReport, evaluate_planning

Point = tuple[float, float]
EVER = np.ones(STEPS, bool)


def agents(
    *places: Point, size: Point = (2.0, 4.0), yaw: float = 0.0, categories: Sequence[str] = (), steps: int = STEPS
) -> FutureAgents:
    """Standing boxes, known for some steps."""
    now = np.array(places, np.float64).reshape(-1, 2)
    n = len(now)
    known = np.tile(np.arange(STEPS) < steps, (n, 1))
    return FutureAgents(
        categories=tuple(categories) or ("vehicle.car",) * n, sizes_wl_m=np.tile(size, (n, 1)), now_m=now,
        centers_m=np.where(known[..., None], now[:, None], np.nan), yaws_rad=np.full((n, STEPS), yaw), known=known,
    )  # fmt: skip


def standing(x: float, y: float = 0.0) -> np.ndarray:
    return np.tile([x, y], (STEPS, 1))


def plan(planned: np.ndarray, driven: np.ndarray | None = None, others: FutureAgents | None = None, **fields) -> PlannedFrame:
    driven = standing(0, -12) if driven is None else driven
    others = agents() if others is None else others
    return PlannedFrame(planned_m=planned, driven_m=driven, driven_known=fields.pop("driven_known", EVER), agents=others)


def visits(step: int) -> np.ndarray:
    """A path that is at (20, 0) at one step and out of everyone's way otherwise."""
    path = standing(0, -12)
    path[step] = 20, 0
    return path


def rates(report: PlanningReport) -> tuple[list[float], list[float]]:
    return list(report.average.grid_collision_rate.values()), list(report.at_time.grid_collision_rate.values())


def test_l2_is_averaged_over_the_first_steps_or_taken_at_the_last() -> None:
    error = np.array([1, 1, 1, 1, 3, 3.0])
    report = evaluate_planning([plan(np.stack([np.zeros(STEPS), error], axis=-1), standing(0))])
    assert report.average.l2_m == pytest.approx({1: 1, 2: 1, 3: 10 / 6})
    assert report.at_time.l2_m == pytest.approx({1: 1, 2: 1, 3: 3})


def test_a_collision_at_one_step_counts_in_every_longer_average_and_at_its_own_time_only() -> None:
    report = evaluate_planning([plan(visits(2), others=agents((20, 0)))])
    assert rates(report) == ([0, 1 / 4, pytest.approx(1 / 6)], [0, 0, 0])
    report = evaluate_planning([plan(visits(3), others=agents((20, 0))), plan(visits(0))])
    assert rates(report) == ([0, 1 / 8, pytest.approx(1 / 12)], [0, 1 / 2, 0])
    assert report.at_time.heading_collision_rate == {1: 0, 2: 0.5, 3: 0}


def test_steps_at_which_the_driven_path_collides_leave_the_numerator_but_not_the_denominator() -> None:
    report = evaluate_planning([plan(standing(20), visits(1), agents((20, 0)))])
    assert rates(report) == ([1 / 2, 3 / 4, pytest.approx(5 / 6)], [0, 1, 1])
    assert (report.driven_grid_collision_steps, report.driven_heading_collision_steps) == (1, 1)


def test_only_whole_futures_count_unless_missing_steps_are_taken_as_zero() -> None:
    whole = plan(standing(2), standing(0))
    cut = plan(
        standing(6), np.where(np.arange(STEPS)[:, None] < 5, 0.0, np.nan) * np.ones(2), driven_known=np.arange(STEPS) < 5
    )
    report = evaluate_planning([whole, cut])
    assert (report.frames, report.frames_cut_short) == (1, 1)
    assert report.at_time.l2_m == {1: 2, 2: 2, 3: 2}
    assert report.l2_at_time_missing_as_zero_m == {1: 4, 2: 4, 3: 1}


def test_collisions_are_shares_of_the_frames_with_whole_futures() -> None:
    whole = plan(standing(20), others=agents((20, 0)))
    cut = plan(standing(20), others=agents((20, 0)), driven_known=np.arange(STEPS) < 5)
    report = evaluate_planning([whole, cut])
    assert rates(report) == ([1, 1, 1], [1, 1, 1])
    assert report.average.heading_collision_rate == {1: 1, 2: 1, 3: 1} and (report.frames, report.frames_cut_short) == (1, 1)


def test_without_a_frame_that_counts_figures_are_unknown() -> None:
    report = evaluate_planning([])
    assert report.frames == 0
    values = (*report.average.l2_m.values(), *report.at_time.grid_collision_rate.values())
    assert len(values) == 6 and np.isnan(values).all()


def test_the_grid_check_collides_between_cells_as_in_the_source() -> None:
    grid = occupancy(agents((20, 0)))
    rows, columns = (np.unique(found) for found in np.nonzero(grid[0]))
    # Corners at 22 and 18 m ahead, 1 m to either side, rounded; the outline's cells are filled too.
    assert (rows[0], rows[-1], columns[0], columns[-1], grid[0].sum()) == (56, 64, 98, 102, 9 * 5)
    ahead = {x: bool(hits_on_grid(standing(x), grid)[0]) for x in (15.5, 15.75, 23.5, 23.75)}
    assert ahead == {15.5: False, 15.75: True, 23.5: True, 23.75: False}
    # Half a cell off to the left: the source cuts the ego's cells where it rounds those of others.
    aside = {y: bool(hits_on_grid(standing(20, y), grid)[0]) for y in (-2.5, -2.25, 1.5, 1.75)}
    assert aside == {-2.5: False, -2.25: True, 1.5: True, 1.75: False}


def test_the_ego_does_not_turn_on_the_grid_and_does_with_heading() -> None:
    left = np.stack([np.zeros(STEPS), np.linspace(2, 20, STEPS)], axis=-1)
    beside, ahead = agents((2.2, 20.0), size=(0.6, 0.6)), agents((0.0, 22.2), size=(0.6, 0.6))
    assert hits_on_grid(left, occupancy(beside))[-1] and not hits_with_heading(left, beside)[-1]
    assert hits_with_heading(left, ahead)[-1] and not hits_on_grid(left, occupancy(ahead))[-1]


def test_the_rectangle_is_half_a_metre_ahead_of_the_path_along_its_heading() -> None:
    other = agents((20, 0))
    found = {x: bool(hits_with_heading(standing(x), other)[0]) for x in (15.4, 15.5, 23.5, 23.6)}
    assert found == {15.4: False, 15.5: True, 23.5: True, 23.6: False}
    turned = agents((20, 0), yaw=np.pi / 2)
    passing = {y: np.stack([np.linspace(10, 20, STEPS), np.full(STEPS, y)], axis=-1) for y in (2.9, 3.0)}
    assert {y: bool(hits_with_heading(path, turned)[-1]) for y, path in passing.items()} == {2.9: True, 3.0: False}


def test_an_ego_beyond_the_grid_meets_what_stands_at_its_border() -> None:
    border = agents((49.5, 0.0), size=(2.0, 2.0))
    assert hits_on_grid(standing(80), occupancy(border)).all()
    assert not hits_with_heading(standing(80), border).any()
    assert not hits_on_grid(standing(80), occupancy(agents((40, 0)))).any()


def test_agents_that_the_log_has_lost_are_not_there() -> None:
    others = agents((20, 0), steps=2)
    np.testing.assert_array_equal(hits_on_grid(standing(20), occupancy(others)), np.arange(STEPS) < 2)
    np.testing.assert_array_equal(hits_with_heading(standing(20), others), np.arange(STEPS) < 2)


def test_vehicles_and_humans_are_told_by_name_where_list_positions_hold_for_one_list_only() -> None:
    long_list = tuple(get_colormap())[:24]  # those of boxes in nuScenes-lidarseg's order: noise, animal, seven humans, ...
    everywhere = agents(*[(10.0, 0.0)] * len(long_list), categories=long_list)
    by_position = long_list[2:9] + long_list[14:24]
    assert obstacles(everywhere).categories == by_position
    assert obstacles(everywhere, ("human",)).categories == long_list[2:9]
    base = (*long_list[2:], "animal")
    assert {name.split(".")[0] for name in base[2:9] + base[14:24]} > {"human", "vehicle"}
    shuffled = agents(*[(10.0, 0.0)] * len(base), categories=base)
    assert set(obstacles(shuffled).categories) == set(by_position)


def test_kinds_of_obstacles_decide_what_collides() -> None:
    walker = plan(standing(20), others=agents((20, 0), categories=("human.pedestrian.adult",)))
    cone = plan(standing(20), others=agents((20, 0), categories=("movable_object.trafficcone",)))
    assert rates(evaluate_planning([walker]))[1] == [1, 1, 1]
    assert rates(evaluate_planning([walker], obstacle_kinds=("vehicle",)))[1] == [0, 0, 0]
    assert rates(evaluate_planning([cone]))[1] == [0, 0, 0]


def test_what_vads_labels_lack_cannot_be_hit_unless_asked_for() -> None:
    names = ("vehicle.car", "vehicle.car", "vehicle.car", "human.pedestrian.stroller", "vehicle.emergency.police")
    others = agents((29, 14), (30, 0), (0, 15), (5, 0), (5, 5), categories=names)
    np.testing.assert_array_equal(as_labelled_by_vad(others).now_m, [[29, 14]])
    frame = plan(standing(35), others=agents((35, 0)))
    assert rates(evaluate_planning([frame]))[1] == [0, 0, 0]
    assert rates(evaluate_planning([frame], only_vad_labels=False))[1] == [1, 1, 1]


def test_nothing_handed_in_is_written_to() -> None:
    frame = plan(visits(2), visits(1), agents((20, 0), (3, 2), yaw=0.3))
    before = copy.deepcopy(frame)
    for record in (frame, frame.agents):
        for field in dataclasses.fields(record):
            if isinstance(value := getattr(record, field.name), np.ndarray):
                value.setflags(write=False)
    first, second = (evaluate_planning([frame]) for _ in range(2))
    assert first == second
    np.testing.assert_array_equal(frame.agents.yaws_rad, before.agents.yaws_rad)
    np.testing.assert_array_equal(frame.planned_m, before.planned_m)


def test_the_ego_box_is_named_and_decides_the_rates() -> None:
    frame = plan(standing(15.5), others=agents((20, 0)))
    report = evaluate_planning([frame])
    assert report.ego == VAD_EGO_BOX and "1.85 x 4.084 m" in report.ego.name
    truck = EgoBox(name="truck", width_m=2.5, length_m=8.0, forward_m=0.5)
    assert (rates(report)[1], rates(evaluate_planning([frame], ego=truck))[1]) == ([0, 0, 0], [1, 1, 1])


def test_headings_follow_the_path_and_stay_while_it_stands() -> None:
    corner = np.array([[2, 0], [4, 0], [4, 2], [4, 4], [4, 4.01], [4, 4.02]])
    quarter = np.pi / 2
    np.testing.assert_allclose(path_headings(corner), [0, np.pi / 4, quarter, quarter, quarter, quarter])
    np.testing.assert_array_equal(path_headings(np.full((STEPS, 2), 0.01)), 0)


def test_arrays_that_do_not_fit_and_known_positions_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match=r"planned_m of shape \(5, 2\)"):
        evaluate_planning([plan(standing(0)[:5])])
    with pytest.raises(InputError, match="not finite"):
        evaluate_planning([plan(standing(0), standing(np.nan))])
    with pytest.raises(InputError, match="yaws_rad of shape"):
        evaluate_planning([plan(standing(0), others=dataclasses.replace(agents((1, 1)), yaws_rad=np.zeros((1, 2))))])
