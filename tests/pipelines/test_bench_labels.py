"""The labels benchmark notices what it should: its measures in closed form, and faults planted into a world."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dwm.conditioning.things import GRID, Things
from dwm.geometry import apply, box_corners, invert, project
from dwm.scenario.build import build_scenario
from dwm.scenario.labels import near_agents
from dwm.scenario.lidar_counts import logged_counts
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Scenario
from dwm.scenes.dataroot import open_dataroot
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.proving_ground.counterfactual import open_counterfactual
from pipelines.bench.label_truth import _agreement, _confusion, intersection_over_union, shape_points
from pipelines.bench.labels import _equality
from pipelines.bench.masks import MaskTruth

VERSION = "v1.0-mini"


def test_overlap_of_rectangles() -> None:
    square = np.array([0.0, 0, 2, 2])
    assert intersection_over_union(square, square) == 1
    assert intersection_over_union(square, square + np.array([1, 0, 1, 0])) == pytest.approx(1 / 3)
    assert intersection_over_union(square, square + 5) == 0


def test_a_class_without_a_shape_is_its_box_and_one_with_a_shape_its_cells() -> None:
    none = Things.none()
    assert sorted(map(tuple, shape_points(none, 0))) == sorted(map(tuple, box_corners(np.zeros(3), np.full(3, 2.0), 0.0)))
    solid = none.solid_KXYZ.copy()
    solid[0, 0, 0, 0] = solid[0, -1, -1, -1] = True
    cell = 1 - 1 / np.array(GRID)
    assert np.allclose(shape_points(replace(none, solid_KXYZ=solid), 0), [-cell, cell])


def test_levels_are_counted_with_truth_in_the_rows() -> None:
    truth, own = np.array([1.0, 0.1, 0.0, 0.7]), np.array([1.0, 0.5, 0.3, 0.0])
    table = _confusion(truth, own)[2:]
    counts = np.array([[int(x) for x in re.findall(r" (\d+) ", row.replace("|", " | "))] for row in table])
    assert counts.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert _agreement(truth, own) == "50.0% | 75.0% | 0.350 | 1 of 1 | 1 of 3"


def test_equality_with_the_devkit_holds_and_a_millimetre_shows(pg_dataroot: Path) -> None:
    nusc, scene = open_dataroot(pg_dataroot, VERSION), read_scene(pg_dataroot, VERSION, "scene-0002")
    figures = _figures(_equality(nusc, [scene], [logged_counts(scene)]))
    assert figures["centre [m]"][1] > 10 and figures["velocity, where the devkit has one [m/s]"][1] > 10
    assert max(value for value, _ in figures.values()) < 1e-6
    nudged = tuple(replace(agent, centers_m=agent.centers_m + np.array([1e-3, 0, 0])) for agent in scene.agents)
    moved = replace(scene, agents=nudged)
    assert _figures(_equality(nusc, [moved], [logged_counts(scene)]))["centre [m]"][0] == pytest.approx(1e-3, rel=0.06)


def _figures(lines: list[str]) -> dict[str, tuple[float, int]]:
    rows = [re.fullmatch(r"\| (.*) \| (\S+e\S+) \| (\d+) \|", line) for line in lines]
    return {row[1]: (float(row[2]), int(row[3])) for row in rows if row}


def test_what_shows_of_an_agent_is_part_of_it_alone_which_lies_inside_its_box(pg_dataroot: Path) -> None:
    scene = read_scene(pg_dataroot, VERSION, "scene-0002")
    world = open_counterfactual(scene)
    scenario = build_scenario(scene, BASELINE, 0, duration_s=0.5)
    assert world is not None and isinstance(scenario, Scenario)
    rows = near_agents(scenario, 0, 40.0)
    found = [s for s in MaskTruth(world).shown(scenario, 0, rows.tolist(), (90, 160), whole_from_px=6) if s.alone.any()]
    assert found
    whole = world.views(scenario, 0, (90, 160)).instance
    for shown in found:
        assert not (shown.visible & ~shown.alone).any()
        a, (left, top) = shown.agent, shown.left_top_px
        v = [c.channel for c in scene.cameras].index(shown.camera.channel)
        there = whole[v, top : top + shown.visible.shape[0], left : left + shown.visible.shape[1]]
        # The same pixels as in the whole picture, but for a few at edges: rays of a crop are rounded differently.
        assert ((there == _index(scenario, a)) != shown.visible).sum() <= 2
        corners = box_corners(scenario.agents.centers_m[a, 0], scenario.agents.sizes_wlh_m[a], scenario.agents.yaws_rad[a, 0])
        uv, _ = project(apply(invert(shown.camera_to_global), corners), shown.camera.intrinsics)
        extents = shown.extents_px
        assert (extents[:2] >= uv.min(0) - 1).all() and (extents[2:] <= uv.max(0) + 1).all()


def _index(scenario: Scenario, agent: int) -> int:
    """Position of an agent among those drawn at frame 0."""
    agents = scenario.agents
    known = [i for i, name in enumerate(agents.detection_classes) if name is not None and agents.present[i, 0]]
    return known.index(agent)
