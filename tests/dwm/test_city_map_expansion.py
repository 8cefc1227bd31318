import json

import numpy as np
import pytest
import shapely
from nuscenes.map_expansion.map_api import NuScenesMap
from scipy.spatial import cKDTree

from dwm.errors import InputError
from dwm.scenes.map_expansion_reader import read_map_expansion
from dwm.scenes.proving_ground.city import SURFACES, build_city, scene_map
from dwm.scenes.proving_ground.map_expansion import write_map_expansion

SIZE_M = 300.0


@pytest.fixture(scope="module")
def city():
    return build_city(1, SIZE_M)


@pytest.fixture(scope="module")
def dataroot(city, tmp_path_factory):
    root = tmp_path_factory.mktemp("nuscenes")
    write_map_expansion(city, expansion(root, city))
    return root


@pytest.fixture(scope="module")
def devkit(city, dataroot):
    return NuScenesMap(str(dataroot), city.location)


def expansion(root, city):
    return root / "maps" / "expansion" / f"{city.location}.json"


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_the_devkit_draws_the_same_drivable_area_and_sidewalks(city, devkit):
    layers = devkit.get_map_mask((150, 150, 160, 160), 0.0, ["drivable_area", "walkway"], (1600, 1600))
    patch = city.surface[700:2300, 700:2300]
    drivable = np.isin(patch, [SURFACES.index(n) for n in ("asphalt", "white_line", "yellow_line", "crossing")])
    assert overlap(drivable, layers[0] > 0) >= 0.98
    assert overlap(patch == SURFACES.index("sidewalk"), layers[1] > 0) >= 0.94


def test_the_devkit_discretises_the_same_centre_lines(city, devkit):
    lanes = city.lane_graph.lanes
    for token, poses in devkit.discretize_lanes(list(lanes), 0.5).items():
        ours = lanes[token].pose_at(np.arange(0.0, lanes[token].length_m + 0.02, 0.02))
        theirs = np.array(poses)
        assert cKDTree(ours[:, :2]).query(theirs[:, :2])[0].max() < 0.05
        assert theirs[-1, :2] == pytest.approx(ours[-1, :2], abs=0.05) and theirs[0, :2] == pytest.approx(ours[0, :2], abs=0.05)


def test_the_devkit_finds_the_same_links_and_the_closest_lane(city, devkit):
    for token, lane in city.lane_graph.lanes.items():
        assert devkit.get_outgoing_lane_ids(token) == list(lane.outgoing)
        assert devkit.get_incoming_lane_ids(token) == list(lane.incoming)
    lane = next(lane for lane in city.lane_graph.lanes.values() if not lane.is_connector)
    x, y, _ = lane.pose_at(lane.length_m / 2)
    assert devkit.get_closest_lane(x, y, 3.0) == lane.token


def test_every_polygon_is_valid_and_every_stop_line_names_its_crossing(devkit):
    layers = ("lane", "lane_connector", "walkway", "ped_crossing", "road_segment", "road_block", "stop_line")
    for layer in layers:
        polygons = [devkit.extract_polygon(record["polygon_token"]) for record in getattr(devkit, layer)]
        assert polygons and all(p.is_valid and p.area > 0 and not p.interiors for p in polygons), layer
    for stop in devkit.stop_line:
        (crossing,) = stop["cue"]
        line, zebra = (devkit.extract_polygon(r["polygon_token"]) for r in (stop, crossing))
        assert 0.3 < line.distance(zebra) < 1.2
    assert {segment["is_intersection"] for segment in devkit.road_segment} == {True, False}


def test_reading_back_gives_the_town_again(city, dataroot):
    read, made = read_map_expansion(expansion(dataroot, city), (0.0, 0.0, SIZE_M, SIZE_M)), scene_map(city)
    for layer in range(4):
        assert made.layers[layer].any() and overlap(read.layers[layer] > 0, made.layers[layer] > 0) > 0.97
    assert read.lane_graph is not None and set(read.lane_graph.lanes) == set(city.lane_graph.lanes)
    for token, lane in city.lane_graph.lanes.items():
        other = read.lane_graph.lanes[token]
        s = np.linspace(0, lane.length_m, 30)
        assert np.abs(lane.pose_at(s)[:, :2] - other.pose_at(s)[:, :2]).max() < 0.01
        assert (lane.left, lane.right, lane.is_connector) == (other.left, other.right, other.is_connector)
        assert set(lane.outgoing) == set(other.outgoing) and set(lane.incoming) == set(other.incoming)
    assert len(read.lane_graph.crossings) == len(city.lane_graph.crossings)


def test_a_region_keeps_its_place_and_only_lanes_within_its_margin(city, dataroot):
    region = (100.0, 60.0, 160.0, 140.0)
    part, whole = read_map_expansion(expansion(dataroot, city), region), scene_map(city)
    assert part.layers.shape == (4, 400, 300)
    assert overlap(part.layers[0] > 0, whole.layers[0, 300:700, 500:800] > 0) > 0.97
    lanes = part.lane_graph.lanes
    expected = {
        token for token, lane in city.lane_graph.lanes.items()
        if ((lane.centerline[:, :2] >= [40, 0]) & (lane.centerline[:, :2] <= [220, 200])).all(1).any()
    }  # fmt: skip
    assert set(lanes) == expected and 0 < len(lanes) < len(city.lane_graph.lanes)
    assert all(link in lanes for lane in lanes.values() for link in lane.outgoing + lane.incoming)


def test_lines_read_back_are_those_of_the_town_and_end_at_the_region_without_running_along_it(city, dataroot):
    region = (60.0, 60.0, 240.0, 240.0)
    lines = read_map_expansion(expansion(dataroot, city), region).lines
    drawn = [line for _, _, line in city.plan.road_dividers] + list(city.plan.lane_dividers)
    near = shapely.box(*region)
    expected = sorted(len(line) for line in drawn if shapely.LineString(line).intersects(near))
    assert sorted(len(line) for line in lines.dividers) == expected
    town = shapely.union_all([shapely.make_valid(area) for area in city.plan.drivable]).boundary
    edges = shapely.MultiLineString(list(lines.boundaries))
    assert edges.length == pytest.approx(town.intersection(near).length, rel=1e-3)
    assert shapely.hausdorff_distance(edges, town.intersection(near)) < 0.05
    assert edges.intersection(near.boundary).length == 0


def test_bends_are_slower_than_straights(city, dataroot):
    lanes = read_map_expansion(expansion(dataroot, city), (0.0, 0.0, SIZE_M, SIZE_M)).lane_graph.lanes
    for token, lane in lanes.items():
        sharpest = max(abs(piece.curvature) for piece in city.network.paths[token])
        expected = 13.4 if sharpest == 0 else min(13.4, (2.0 / sharpest) ** 0.5)
        assert lane.speed_limit_mps == pytest.approx(expected)
    assert min(lane.speed_limit_mps for lane in lanes.values()) < 7.0


def test_missing_and_broken_files_say_what_to_do(tmp_path, city, dataroot):
    region = (0.0, 0.0, 50.0, 50.0)
    with pytest.raises(InputError, match="no such map expansion"):
        read_map_expansion(tmp_path / "none.json", region)
    (tmp_path / "cut.json").write_text('{"version": "1.3", ')
    with pytest.raises(InputError, match="not JSON"):
        read_map_expansion(tmp_path / "cut.json", region)
    document = json.loads(expansion(dataroot, city).read_text())
    del document["connectivity"]
    (tmp_path / "part.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="no connectivity"):
        read_map_expansion(tmp_path / "part.json", region)
    document["connectivity"], document["polygon"] = {}, document["polygon"][5:]
    (tmp_path / "dangling.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="broken map expansion"):
        read_map_expansion(tmp_path / "dangling.json", region)
