from dataclasses import replace

import numpy as np
import pytest
import shapely
from nuscenes.utils.map_mask import MapMask
from PIL import Image
from scipy.spatial import cKDTree
from shapely.ops import unary_union

from dwm.errors import InputError
from dwm.geometry import wrap_angle
from dwm.scenes.proving_ground.city import SURFACES, build_city, map_mask, scene_map
from dwm.scenes.proving_ground.roads import build_network, strongly_connected
from dwm.scenes.proving_ground.surface import dashes


@pytest.fixture(scope="module")
def city():
    return build_city(2)


def code(name):
    return SURFACES.index(name)


def on_surface(city, xy):
    col, row = np.floor(np.asarray(xy) / city.metres_per_pixel).astype(int).T
    return city.surface[row, col]


def test_the_same_seed_builds_the_same_town_and_another_seed_another():
    a, b, c = build_city(5, 220.0), build_city(5, 220.0), build_city(6, 220.0)
    assert np.array_equal(a.surface, b.surface) and not np.array_equal(a.surface, c.surface)
    assert [(*tuple(s.center_m), s.seed) for s in a.statics] == [(*tuple(s.center_m), s.seed) for s in b.statics]
    assert list(a.lane_graph.lanes) == list(b.lane_graph.lanes) and a.location != c.location


@pytest.mark.parametrize("size_m", [200.0, 420.0])
@pytest.mark.parametrize("seed", [0, 1, 2, 54])
def test_every_lane_can_be_reached_from_every_other(seed, size_m):
    rng = np.random.default_rng(seed).spawn(2)[0]
    assert strongly_connected(build_network(seed, size_m, rng).lanes)


def test_a_missing_link_is_noticed_by_the_connectivity_check(city):
    lanes = dict(city.lane_graph.lanes)
    token, lane = next((token, lane) for token, lane in lanes.items() if not lane.is_connector)
    lanes[token] = replace(lane, outgoing=())
    assert not strongly_connected(lanes)


def test_lanes_join_their_successors_in_position_and_heading(city):
    lanes = city.lane_graph.lanes
    for lane in lanes.values():
        assert np.linalg.norm(np.diff(lane.centerline[:, :2], axis=0), axis=1).max() <= 1.0
        for name in lane.outgoing:
            gap = lanes[name].centerline[0] - lane.centerline[-1]
            assert np.hypot(*gap[:2]) < 1e-6 and abs(wrap_angle(gap[2])) < 1e-6
            assert lane.token in lanes[name].incoming


def test_traffic_keeps_right_and_neighbours_lie_a_lane_width_away(city):
    lanes = city.lane_graph.lanes
    pairs = [(lane, lanes[lane.right]) for lane in lanes.values() if lane.right]
    assert pairs
    for left, right in pairs:
        x, y, yaw = right.centerline[0] - left.centerline[0] * [1, 1, 0]
        assert -x * np.sin(yaw) + y * np.cos(yaw) == pytest.approx(-3.5) and right.left == left.token
    for road in city.network.roads:
        middle = road.point(road.length_m / 2, -1.75)
        point = city.lane_graph.nearest(*middle, road.yaw_rad)
        assert point is not None and abs(point.lateral_m) < 1e-6 and abs(point.heading_error_rad) < 1e-9


def test_no_connector_turns_back_and_tight_turns_are_slow(city):
    for token, lane in city.lane_graph.lanes.items():
        if lane.is_connector:
            assert abs(wrap_angle(lane.centerline[-1, 2] - lane.centerline[0, 2])) < 2.3
            radius = 1 / max(1e-9, *(abs(piece.curvature) for piece in city.network.paths[token]), 0)
            assert radius > 8.0
            assert lane.speed_limit_mps <= 7.0 if radius < 40 else lane.speed_limit_mps <= 14.0


def test_all_lanes_with_their_full_width_lie_on_asphalt(city):
    drivable = [code(name) for name in ("asphalt", "white_line", "yellow_line", "crossing")]
    for lane in city.lane_graph.lanes.values():
        x, y, yaw = lane.centerline.T
        for offset in (-1.6, 0.0, 1.6):
            assert np.isin(on_surface(city, np.stack([x - offset * np.sin(yaw), y + offset * np.cos(yaw)], -1)), drivable).all()


def test_markings_lie_where_they_belong(city):
    road = city.network.roads[0]
    middle = road.length_m / 2
    assert on_surface(city, [road.point(middle, 0.16)])[0] == code("yellow_line")
    assert on_surface(city, [road.point(middle, -0.16)])[0] == code("yellow_line")
    assert on_surface(city, [road.point(middle, road.lanes_each_way * 3.5)])[0] == code("white_line")
    assert on_surface(city, [road.point(middle, 1.75)])[0] == code("asphalt")
    assert on_surface(city, [road.point(middle, road.half_width_m + 1.5)])[0] == code("sidewalk")
    for crossing in city.plan.crossings:
        assert on_surface(city, [bar.centroid.coords[0] for bar in crossing.bars]).tolist() == [code("crossing")] * len(
            crossing.bars
        )
    share = np.mean(city.surface == code("crossing")) * city.size_m**2 / sum(c.polygon.area for c in city.plan.crossings)
    assert share == pytest.approx(0.5, abs=0.06)


def test_dashes_are_three_metres_with_six_metre_gaps():
    painted = dashes(np.array([[0.0, 0.0], [21.0, 0.0]]))
    assert [tuple(dash[[0, -1], 0]) for dash in painted] == [(0.0, 3.0), (9.0, 12.0), (18.0, 21.0)]


def test_buildings_touch_neither_pavement_nor_each_other(city):
    footprints = [s.footprint() for s in city.statics if s.kind == "building"]
    assert len(footprints) > 200
    assert sum(f.area for f in footprints) == pytest.approx(unary_union(footprints).area)
    paved = unary_union(city.plan.drivable + city.plan.walkways)
    shapely.prepare(paved)
    assert not any(paved.intersects(f) for f in footprints)
    corners = np.concatenate([np.asarray(f.exterior.coords) for f in footprints])
    assert corners.min() >= 0 and corners.max() <= city.size_m


def test_street_furniture_stands_off_the_road_and_away_from_crossings(city):
    feet = np.array([s.center_m[:2] for s in city.statics if s.kind in ("trunk", "pole")])
    assert np.isin(on_surface(city, feet), [code("sidewalk"), code("terrain")]).all()
    zebra = cKDTree(np.concatenate([np.asarray(c.polygon.segmentize(0.5).exterior.coords) for c in city.plan.crossings]))
    assert zebra.query(feet)[0].min() > 1.0
    assert 700 <= len(city.statics) <= 1500


def test_the_scene_map_agrees_with_the_painted_surface(city):
    mask = scene_map(city)
    painted = np.isin(city.surface, [code(n) for n in ("asphalt", "white_line", "yellow_line", "crossing")])
    for layer, fine in (("drivable", painted), ("walkway", city.surface == code("sidewalk"))):
        rows, cols = np.mgrid[0.1 : city.size_m : 0.8, 0.1 : city.size_m : 0.8]
        xy = np.stack([cols, rows], -1)
        here, there = (
            mask.lookup(layer, xy),
            fine[tuple(np.floor(xy[..., ::-1] / 0.1).astype(int).reshape(-1, 2).T)].reshape(rows.shape),
        )
        assert (here & there).sum() / (here | there).sum() > 0.95
    assert mask.lane_graph is city.lane_graph


def test_the_devkit_reads_the_map_mask_in_place(city, tmp_path):
    Image.fromarray(map_mask(city)).save(tmp_path / "mask.png")
    devkit = MapMask(str(tmp_path / "mask.png"), 0.1)
    lane = next(iter(city.lane_graph.lanes.values()))
    assert devkit.is_on_mask(*lane.centerline[:, :2].T).all()
    building = next(s for s in city.statics if s.kind == "building")
    assert not devkit.is_on_mask(building.center_m[0], building.center_m[1]).any()
    rng = np.random.default_rng(0)
    xy = rng.uniform(1, city.size_m - 1, (4000, 2))
    assert (devkit.is_on_mask(*xy.T) == scene_map(city).lookup("drivable", xy)).mean() > 0.99


def test_a_town_without_room_for_a_block_is_refused():
    with pytest.raises(InputError, match="at least 200 m"):
        build_city(0, 120.0)
