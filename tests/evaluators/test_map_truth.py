"""True map lines of a small map expansion, by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from dwm.errors import InputError
from dwm.geometry import apply, transform_from_xy_yaw
from evaluators.map_truth import map_lines, open_map

Array = np.ndarray
LOCATION = "little-town"  # not one of the devkit's four
LIDAR_TO_GLOBAL = transform_from_xy_yaw(400.0, 300.0, np.radians(30.0))
LAYERS = ("drivable_area", "road_segment", "road_block", "lane", "lane_connector", "ped_crossing", "walkway", "stop_line",
          "carpark_area", "road_divider", "lane_divider", "traffic_light")  # fmt: skip


def rectangle(x0: float, x1: float, y0: float, y1: float) -> Array:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def expansion(polygons: dict[str, list[Array]], lines: dict[str, list[Array]]) -> dict[str, Any]:
    """A map expansion of shapes [P, 2] given in the LiDAR's frame."""
    document: dict[str, Any] = {"version": "1.3", "canvas_edge": [1000, 1000], "node": [], "line": [], "polygon": []}
    document |= {layer: [] for layer in LAYERS} | {"arcline_path_3": {}, "connectivity": {}}

    def nodes(points: Array) -> list[str]:
        world = apply(LIDAR_TO_GLOBAL, np.column_stack([points, np.zeros(len(points))]))
        first = len(document["node"])
        document["node"] += [{"token": f"n{first + k}", "x": x, "y": y} for k, (x, y, _) in enumerate(world.tolist())]
        return [f"n{first + k}" for k in range(len(points))]

    for layer, shapes in polygons.items():
        for points in shapes:
            token = f"p{len(document['polygon'])}"
            document["polygon"].append({"token": token, "exterior_node_tokens": nodes(points), "holes": []})
            sides = {"left_lane_divider_segments": [], "right_lane_divider_segments": []} if layer == "lane" else {}
            document[layer].append({"token": f"{layer}-{token}", "polygon_token": token, **sides})
    for layer, shapes in lines.items():
        for points in shapes:
            token = f"l{len(document['line'])}"
            document["line"].append({"token": token, "node_tokens": nodes(points)})
            document[layer].append({"token": f"{layer}-{token}", "line_token": token})
    return document


def write(root: Path, document: dict[str, Any], name: str = LOCATION) -> Path:
    path = root / "maps" / "expansion" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return root


def found(root: Path, name: str) -> list[Array]:
    lines = map_lines(open_map(root, LOCATION), LIDAR_TO_GLOBAL)
    return [line.points_m for line in lines if line.class_name == name]


def test_dividers_of_both_layers_are_cut_at_30_m_ahead_and_15_m_aside(tmp_path: Path) -> None:
    road = [np.array([[0, -50], [0, 50.0]]), np.array([[20, -50], [20, 50.0]])]
    lane = [np.array([[-14, 3], [14, 3.0], [20, 3]])]
    root = write(tmp_path, expansion({}, {"road_divider": road, "lane_divider": lane}))
    first, second = found(root, "divider")
    np.testing.assert_allclose(first, [[0, -30], [0, 30]], atol=1e-9)
    np.testing.assert_allclose(second, [[-14, 3], [14, 3], [15, 3]], atol=1e-9)


def test_the_boundary_is_the_outline_of_roads_and_lanes_together_without_the_patchs_edge(tmp_path: Path) -> None:
    polygons = {"road_segment": [rectangle(-5, 5, -50, 50)], "lane": [rectangle(5, 8, -50, 50)]}
    lines = found(write(tmp_path, expansion(polygons, {})), "boundary")
    assert sorted(round(line[0, 0], 6) for line in lines) == [-5, 8]
    for line in lines:
        assert np.ptp(line[:, 0]) == pytest.approx(0, abs=1e-9)
        assert sorted(line[[0, -1], 1]) == pytest.approx([-29.8, 29.8])


def test_holes_are_boundaries_too(tmp_path: Path) -> None:
    ring = [rectangle(-10, -4, -40, 40), rectangle(4, 10, -40, 40), rectangle(-10, 10, -40, -6), rectangle(-10, 10, 6, 40)]
    lines = found(write(tmp_path, expansion({"road_segment": ring}, {})), "boundary")
    inner = [line for line in lines if np.abs(line).max() < 7]
    assert len(inner) == 1
    assert shapely.LineString(inner[0]).length == pytest.approx(2 * 8 + 2 * 12)


def test_a_crossing_is_its_whole_outline_along_the_patchs_edge_as_well(tmp_path: Path) -> None:
    polygons = {"ped_crossing": [rectangle(-5, 5, 28, 35), rectangle(-5, 0, -3, 0), rectangle(0, 5, -3, 0)]}
    cut, joined = sorted(found(write(tmp_path, expansion(polygons, {})), "ped_crossing"), key=lambda p: -p[:, 1].max())
    assert shapely.LineString(cut).length == pytest.approx(2 * 10 + 2 * 2)
    assert cut[:, 1].max() == pytest.approx(30)
    assert shapely.LineString(joined).length == pytest.approx(2 * 10 + 2 * 3)


def test_a_map_changed_on_disk_is_read_again(tmp_path: Path) -> None:
    root = write(tmp_path, expansion({}, {"road_divider": [np.array([[0, -5], [0, 5.0]])]}))
    assert len(found(root, "divider")) == 1
    path = write(root, expansion({}, {})) / "maps" / "expansion" / f"{LOCATION}.json"
    os.utime(path, ns=(0, 1))
    assert found(root, "divider") == []


@pytest.mark.parametrize("key", expansion({}, {}))
def test_a_map_expansion_without_one_of_its_keys_is_refused_by_name(tmp_path: Path, key: str) -> None:
    incomplete = expansion({}, {})
    del incomplete[key]
    with pytest.raises(InputError, match=f"{key}|outdated"):
        open_map(write(tmp_path, incomplete, "incomplete"), "incomplete")


def test_what_is_no_map_expansion_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such map expansion"):
        open_map(tmp_path, "nowhere")
    with pytest.raises(InputError, match="outdated"):
        open_map(write(tmp_path, {**expansion({}, {}), "version": "1.0"}, "old"), "old")
