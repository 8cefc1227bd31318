"""The first frame's look on a straight street: what was seen stays in place, what was not takes after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from torch import Tensor

from dwm.conditioning.appearance import Appearance, Street, View
from dwm.conditioning.frontage import Frontage
from dwm.conditioning.layout import LAYOUT_CHANNELS, LayoutBoxes, LayoutCaster
from dwm.conditioning.looks import FrontLook, mirrored
from dwm.geometry import transform_from_xy_yaw
from dwm.scenes.proving_ground.rig import make_rig
from dwm.scenes.types import DETECTION_CLASSES, SceneMap

CAMERAS = make_rig((128, 224))
H, W = 64, 112
COLOURS = {"road": -0.5, "divider": 0.9, "walkway": 0.3, "bare": -0.9}
CAR, PEDESTRIAN = DETECTION_CLASSES.index("car"), DETECTION_CLASSES.index("pedestrian")


def straight_street() -> SceneMap:
    """A road along x, y in [-4, 4], a line in its middle, walkways to +-7, nothing beyond."""
    layers = np.zeros((4, 300, 3000), dtype=np.uint8)
    layers[0, 130:170] = 1
    layers[1, 149:151] = 1
    layers[3, 115:130] = layers[3, 170:185] = 1
    return SceneMap(layers=layers, origin_xy_m=np.array([-300.0, -30.0]), metres_per_pixel=0.2, lane_graph=None)


def boxes_at(*places: tuple[float, float, int]) -> LayoutBoxes:
    n = len(places)
    centers = np.array([[x, y, 0.9] for x, y, _ in places]).reshape(n, 3)
    return LayoutBoxes(
        classes=np.array([kind for *_, kind in places], dtype=np.int64), centers_m=centers, sizes_wlh_m=np.tile([2.0, 4.0, 1.8], (n, 1)),
        yaws_rad=np.zeros(n), speeds_mps=np.zeros(n), identities=np.zeros(n),
    )  # fmt: skip


class Town:
    def __init__(self) -> None:
        self.map = straight_street()
        self.caster, self.street = LayoutCaster(self.map), Street(self.map)

    def view(self, x: float, *boxes: tuple[float, float, int], tokens: tuple[str, ...] = (), yaw: float = 0.0) -> View:
        pose = transform_from_xy_yaw(np.float64(x), np.float64(0.0), np.float64(yaw))
        placed = boxes_at(*boxes)
        return View(layout=self.caster.cast(CAMERAS, pose, placed, H, W), tokens=tokens, classes=placed.classes)


@pytest.fixture(scope="module")
def town() -> Town:
    return Town()


def layer(view: View, name: str) -> Tensor:
    return view.layout.fine_VHWC[..., LAYOUT_CHANNELS.index(name)]


def walls(view: View) -> Tensor:
    return (layer(view, "is_wall") > 0) & (view.layout.depth_VHW < 90)


def grey(view: View, default: float = 0.0) -> Tensor:
    """Pictures [V, 3, H, W] of one grey."""
    return torch.full((*view.layout.depth_VHW.shape[:1], 3, H, W), default)


def fronts(view: View) -> Tensor:
    """Pictures whose walls have a colour of the place in the world."""
    images, points = grey(view), view.layout.points_VHW3
    colour = torch.stack([torch.sin(points[..., 0] / 6), torch.cos(points[..., 0] / 9), points[..., 2] / 20], dim=1)
    return torch.where(walls(view)[:, None], colour, images)


def test_arc_lengths_grow_by_the_metres_walked_and_sides_have_their_own_names(town):
    frontage = Frontage(town.map)
    x = np.linspace(-200, 200, 81)
    sides = [frontage.locate(np.stack([x, np.full(81, y)], -1)) for y in (7.0, -7.0)]
    for _, arc in sides:
        np.testing.assert_allclose(np.abs(np.diff(arc)), 5.0, atol=0.81)
        assert abs(arc[-1] - arc[0]) == pytest.approx(400, abs=1.0)
    # One outline runs round the street: the far side is nearly two street lengths on, never the same place.
    assert np.abs(sides[0][1] - sides[1][1]).min() > 14


def test_on_a_ring_arc_lengths_are_angles_times_the_radius():
    y, x = np.mgrid[-60:60:0.2, -60:60:0.2]
    radius = np.hypot(x, y)
    layers = np.zeros((4, *radius.shape), dtype=np.uint8)
    layers[0] = (radius > 30) & (radius < 40)
    ring = Frontage(SceneMap(layers=layers, origin_xy_m=np.array([-60.0, -60.0]), metres_per_pixel=0.2, lane_graph=None))
    angle = np.linspace(0.3, 1.2, 10)
    for edge in (30.0, 40.0):
        name, arc = ring.locate(edge * np.stack([np.cos(angle), np.sin(angle)], -1))
        assert len(set(name.tolist())) == 1
        np.testing.assert_allclose(abs(arc[-1] - arc[0]), edge * 0.9, rtol=0.05)
    inner, outer = (ring.locate(np.array([[edge, 0.0]]))[0][0] for edge in (30.0, 40.0))
    assert inner != outer


def test_a_line_folds_back_and_forth():
    np.testing.assert_allclose(mirrored(np.array([0.0, 3, 10, 12, 20, 23, -4]), 10.0), [0, 3, 10, 8, 0, 3, 4])


def test_ground_takes_the_colours_of_its_kind_wherever_the_street_goes_on(town):
    here, there = town.view(0.0), town.view(150.0)

    def ground(view: View) -> Tensor:
        road, divider, _, walkway = (layer(view, name) for name in ("drivable", "divider", "ped_crossing", "walkway"))
        bare = (1 - road - walkway).clamp(min=0)
        value = (road - divider) * COLOURS["road"] + divider * COLOURS["divider"] + walkway * COLOURS["walkway"]
        value = value + bare * COLOURS["bare"]
        return torch.where(layer(view, "is_ground") > 0, value, 0.0)[:, None].expand(-1, 3, -1, -1)

    painted, known = Appearance(town.street, here, ground(here)).paint(there)
    near = (layer(there, "is_ground") > 0) & (there.layout.depth_VHW < 12)
    assert float(known[:, 0][near].min()) == pytest.approx(1.0, abs=1e-5)
    error = (painted - ground(there)).abs()[:, 0][near]
    assert float(error.mean()) < 0.03
    line = near & (layer(there, "divider") > 0.9)
    assert float(painted[:, 0][line].mean()) > 0.7


def test_fronts_that_were_seen_keep_their_place_as_the_car_drives_on(town):
    here, there = town.view(0.0), town.view(4.0)
    painted, known = Appearance(town.street, here, fronts(here)).paint(there)
    close = walls(there) & (there.layout.depth_VHW < 25)
    assert close.sum() > 1000
    assert float(known[:, 0][close].min()) == 1.0
    wrong = (painted - fronts(there)).abs().mean(1)[close].mean()
    unmoved = (fronts(here) - fronts(there)).abs().mean(1)[close & walls(here)].mean()
    assert float(wrong) < 0.4 * float(unmoved)


def test_fronts_that_were_not_seen_are_made_of_what_was_and_stay_on_their_wall(town):
    here = town.view(0.0)
    look = Appearance(town.street, here, fronts(here))
    seen = KDTree(fronts(here).permute(0, 2, 3, 1)[walls(here)].numpy())
    pairs = []
    for x in (180.0, 181.5):
        view = town.view(x)
        painted, known = look.paint(view)
        close = walls(view) & (view.layout.depth_VHW < 20)
        assert float(known[:, 0][close].min()) == 1.0
        colours = painted.permute(0, 2, 3, 1)[close].numpy()
        assert np.quantile(seen.query(colours)[0], 0.9) < 0.1
        pairs.append((view.layout.points_VHW3[close].numpy(), colours))
    (places, first), (others, second) = pairs
    away, match = KDTree(others).query(places)
    same = away < 0.15
    assert same.sum() > 300
    assert np.abs(first - second[match])[same].mean() < 0.1
    assert first.std(0)[0] > 0.1  # not one colour throughout


def test_an_outline_seen_at_both_ends_of_its_arc_was_not_seen_between():
    """A closed outline's arc begins somewhere; a street that lies there once streaked the whole block."""
    rng = np.random.default_rng(0)
    arc = np.concatenate([rng.uniform(0, 30, 4000), rng.uniform(480, 500, 4000)])
    name, z = np.zeros(8000, np.int64), rng.uniform(0, 8, 8000)
    colours = np.stack([np.sin(arc / 3), np.cos(arc / 3), z / 8], -1)
    look = FrontLook(name, arc, z, np.full(8000, 10.0), colours)
    between = np.linspace(100, 400, 600)
    found, known = look.at(np.zeros(600, np.int64), between, np.full(600, 4.0), np.full(600, 10.0))
    assert known.min() == 1
    assert found[:, 0].std() > 0.4
    low, high = arc[:4000].min(), arc[:4000].max()
    expected = np.sin((low + mirrored(between - low, high - low)) / 3)
    assert np.abs(found[:, 0] - expected).mean() < 0.1


def test_a_box_keeps_its_look_and_lends_it_to_its_like_but_not_to_strangers(town):
    places = ((12.0, -2.0, CAR), (16.0, 2.5, CAR))
    here = town.view(0.0, *places, tokens=("red", "blue"))
    images = grey(here)
    for index, channel in ((0, 0), (1, 2)):
        images[:, channel][here.layout.box_VHW == index] = 1.0
    look = Appearance(town.street, here, images)
    there = town.view(
        90.0, (103.0, 2.5, CAR), (100.0, -3.0, CAR), (98.0, 5.5, PEDESTRIAN), tokens=("red", "stranger", "walker")
    )
    painted, known = look.paint(there)
    own, borrowed, none = (there.layout.box_VHW == i for i in range(3))
    assert min(int(m.sum()) for m in (own, borrowed, none)) > 20
    colours = painted.permute(0, 2, 3, 1)
    np.testing.assert_allclose(colours[own].mean(0).numpy(), [1, 0, 0], atol=0.05)
    assert sorted(colours[borrowed].mean(0).round().tolist()) == [0, 0, 1]
    assert float(known[:, 0][borrowed].min()) == 1.0
    assert float(known[:, 0][none].max()) == 0.0


def test_the_sky_keeps_its_colour_by_elevation_when_the_car_turns(town):
    def heavens(view: View) -> Tensor:
        points = view.layout.points_VHW3
        sky = (view.layout.box_VHW < 0) & (layer(view, "is_ground") == 0) & (view.layout.depth_VHW > 90)
        tangent = points[..., 2] / view.layout.depth_VHW
        return torch.where(sky, tangent, 0.0)[:, None].expand(-1, 3, -1, -1)

    here, there = town.view(0.0), town.view(40.0, yaw=0.4)
    painted, known = Appearance(town.street, here, heavens(here)).paint(there)
    sky = heavens(there)[:, 0] > 0.02
    assert int(sky.sum()) > 50
    assert float((painted - heavens(there))[:, 0][sky].abs().mean()) < 0.03
    assert float(known[:, 0][sky].min()) == 1.0


def test_without_any_map_the_sky_and_the_bare_ground_are_all_there_is():
    blank = SceneMap(
        layers=np.zeros((4, 50, 50), dtype=np.uint8), origin_xy_m=np.zeros(2), metres_per_pixel=1.0, lane_graph=None
    )
    view = View(layout=LayoutCaster(blank).cast(CAMERAS, np.eye(4), boxes_at(), H, W), tokens=(), classes=np.zeros(0, np.int64))
    painted, known = Appearance(Street(blank), view, grey(view, 0.5)).paint(view)
    assert float(known.min()) == pytest.approx(1.0)
    torch.testing.assert_close(painted, grey(view, 0.5))
