"""The first frame's look on a straight street: what was seen stays in place, what was not takes after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.spatial import KDTree
from torch import Tensor

from dwm.conditioning.appearance import Appearance, Street, View
from dwm.conditioning.frontage import Frontage
from dwm.conditioning.layout import LAYOUT_CHANNELS, LayoutBoxes, LayoutCaster
from dwm.conditioning.looks.boxes import Paint
from dwm.conditioning.looks.fronts import FrontLook, FrontPixels, mirrored
from dwm.conditioning.looks.ground import Crossings
from dwm.conditioning.things import GRID, Things
from dwm.errors import InputError
from dwm.geometry import transform_from_xy_yaw
from dwm.light import lamps
from dwm.raycast import PinholeViews
from dwm.scenario.conditions import Air
from dwm.scenes.proving_ground.rig import make_rig
from dwm.scenes.types import DETECTION_CLASSES, SceneMap

CAMERAS = make_rig((128, 224))
H, W = 128, 224
CAST_H, CAST_W = 64, 112
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
        layout = self.caster.cast(CAMERAS, pose, placed, CAST_H, CAST_W)
        return View(cameras=CAMERAS, ego_to_global=pose, layout=layout, boxes=placed, tokens=tokens)


@pytest.fixture(scope="module")
def town() -> Town:
    return Town()


def rays(view: View) -> PinholeViews:
    poses = torch.from_numpy(np.stack([view.ego_to_global @ c.camera_to_ego for c in CAMERAS])).float()
    return PinholeViews(poses, torch.from_numpy(np.stack([c.intrinsics for c in CAMERAS])).float(), H, W)


def ground_points(view: View) -> tuple[Tensor, Tensor, Tensor]:
    """x, y [V, H, W] where rays meet the ground before a wall or a box, in metres; and the z-depth, infinite elsewhere."""
    lines, layout = rays(view), view.layout
    depth = -lines.origins_V3[:, None, None, 2] / lines.directions_VHW3[..., 2].clamp(max=-1e-6)
    x, y, _ = (lines.origins_V3[:, None, None] + depth[..., None] * lines.directions_VHW3).unbind(-1)
    # Within the street no wall can be nearer.
    on = (lines.directions_VHW3[..., 2] < 0) & (y.abs() < 8) & (large(layout.box_VHW) < 0)
    return x, y, torch.where(on, depth, torch.inf)


def large(values_VHW: Tensor) -> Tensor:
    """A layout's values for every pixel of an image."""
    return values_VHW.repeat_interleave(H // CAST_H, 1).repeat_interleave(W // CAST_W, 2)


def layer(view: View, name: str) -> Tensor:
    maps = view.layout.maps_VCHW[:, LAYOUT_CHANNELS.index(name)]
    return maps.repeat_interleave(H // maps.shape[1], 1).repeat_interleave(W // maps.shape[2], 2)


def walls(view: View) -> Tensor:
    """Pixels that show nothing but near walls."""
    return (layer(view, "is_wall") == 1) & (large(view.layout.depth_VHW) < 90)


def grey(view: View, default: float = 0.0) -> Tensor:
    """Pictures [V, 3, H, W] of one grey."""
    return torch.full((len(view.cameras), 3, H, W), default)


def fronts(view: View) -> Tensor:
    """Pictures whose walls have a colour of the place in the world, and whose sky has none of these."""
    images, points = grey(view, 5.0), view.layout.points_VHW3.repeat_interleave(2, 1).repeat_interleave(2, 2)
    colour = torch.stack([torch.sin(points[..., 0] / 6), torch.cos(points[..., 0] / 9), points[..., 2] / 20], dim=1)
    return torch.where((large(view.layout.depth_VHW) < 90)[:, None], colour, images)


def front_pixels(name: NDArray[np.int64], arc_m: NDArray[np.float64], z_m: NDArray[np.float64]) -> FrontPixels:
    """Seen at a decimetre to a pixel."""
    return FrontPixels(name=name, arc_m=arc_m, z_m=z_m, footprint_m=np.full(len(name), 0.1))


def test_arc_lengths_grow_by_the_metres_walked_and_sides_have_their_own_names(town):
    frontage = Frontage(town.map)
    x = np.linspace(-200, 200, 81)
    sides = [frontage.locate(np.stack([x, np.full(81, y)], -1)) for y in (7.0, -7.0)]
    for _, arc in sides:
        np.testing.assert_allclose(np.abs(np.diff(arc)), 5.0, atol=0.05)
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
        _, y, depth = ground_points(view)
        value = torch.full_like(y, COLOURS["bare"])
        for half, name in ((7.0, "walkway"), (4.0, "road"), (0.2, "divider")):
            value = torch.where(y.abs() < half, COLOURS[name], value)
        return torch.where(depth.isfinite(), value, 0.0)[:, None].expand(-1, 3, -1, -1)

    painted, known = Appearance(town.street, Things.none(), here, ground(here)).paint(there)
    _, y, depth = ground_points(there)
    near = (depth < 12) & (y.abs() < 6.5)
    assert float(known[:, 0][near].min()) == pytest.approx(1.0, abs=1e-5)
    error = (painted - ground(there)).abs()[:, 0][near]
    assert float(error.mean()) < 0.03
    line = near & (y.abs() < 0.05)
    assert line.sum() > 20
    assert float(painted[:, 0][line].mean()) > 0.7


def test_stripes_of_a_crossing_that_was_seen_run_across_others_of_any_direction():
    layers = np.zeros((4, 600, 1200), dtype=np.uint8)
    layers[0, 200:400] = layers[0, :, 700:900] = 1  # a road of 40 m along x, one along y
    layers[2, 220:380, 640:660] = 1  # walked along y, x 28 to 32 m
    layers[2, 420:440, 710:890] = 1  # walked along x, beyond the junction
    street_map = SceneMap(layers=layers, origin_xy_m=np.array([-100.0, -60.0]), metres_per_pixel=0.2, lane_graph=None)
    crossings = Crossings(street_map)
    y = np.arange(-15.9, 15.9, 0.3)
    names, bins = crossings.locate(np.stack([np.full(len(y), 30.0), y], -1))
    assert set(names.tolist()) == {names[0]} != {0}
    np.testing.assert_allclose(np.abs(np.diff(bins[:40])), 2, atol=1)
    street, caster = Street(street_map), LayoutCaster(street_map)

    def view(x: float, y: float, yaw: float) -> View:
        pose = transform_from_xy_yaw(np.float64(x), np.float64(y), np.float64(yaw))
        return View(
            cameras=CAMERAS,
            ego_to_global=pose,
            layout=caster.cast(CAMERAS, pose, boxes_at(), CAST_H, CAST_W),
            boxes=boxes_at(),
            tokens=(),
        )

    here, there = view(20.0, 0.0, 0.0), view(60.0, 16.0, np.pi / 2)
    x, y, depth = ground_points(here)
    white = (torch.floor(y / 0.6) % 2 == 0) & ((x - 30).abs() < 2)
    image = torch.where(white & depth.isfinite(), 0.9, -0.5)[:, None].expand(-1, 3, -1, -1)
    painted, _ = Appearance(street, Things.none(), here, image).paint(there)
    lines = rays(there)
    x, y, _ = (lines.origins_V3[:, None, None] + lines.directions_VHW3 * (
        -lines.origins_V3[:, None, None, 2] / lines.directions_VHW3[..., 2].clamp(max=-1e-6))[..., None]).unbind(-1)  # fmt: skip
    on = ((y - 26).abs() < 1.5) & ((x - 60).abs() < 5) & (lines.directions_VHW3[..., 2] < -0.05)
    along, shade = x[on], painted[:, 0][on]
    assert on.sum() > 500
    wave = torch.exp(2j * np.pi * along / 1.2)
    strength = (shade * wave).mean().abs() / (shade - shade.mean()).abs().mean()
    assert strength > 0.4  # 0.5 for full stripes of this period, 0 for any others


def test_fronts_that_were_seen_keep_their_place_as_the_car_drives_on(town):
    here, there = town.view(0.0), town.view(4.0)
    painted, known = Appearance(town.street, Things.none(), here, fronts(here)).paint(there)
    close = walls(there) & (large(there.layout.depth_VHW) < 25)
    assert close.sum() > 1000
    assert float(known[:, 0][close].min()) == 1.0
    wrong = (painted - fronts(there)).abs().mean(1)[close].mean()
    unmoved = (fronts(here) - fronts(there)).abs().mean(1)[close & walls(here)].mean()
    assert float(wrong) < 0.4 * float(unmoved)


def test_fronts_that_were_not_seen_are_made_of_what_was_and_stay_on_their_wall(town):
    here = town.view(0.0)
    look = Appearance(town.street, Things.none(), here, fronts(here))
    seen = KDTree(fronts(here).permute(0, 2, 3, 1)[walls(here)].numpy())
    pairs = []
    for x in (180.0, 181.5):
        view = town.view(x)
        painted, known = look.paint(view)
        close = walls(view) & (large(view.layout.depth_VHW) < 20)
        assert float(known[:, 0][close].min()) == 1.0
        colours = painted.permute(0, 2, 3, 1)[close].numpy()
        assert np.quantile(seen.query(colours)[0], 0.9) < 0.1
        pairs.append((view.layout.points_VHW3.repeat_interleave(2, 1).repeat_interleave(2, 2)[close].numpy(), colours))
    (places, first), (others, second) = pairs
    away, match = KDTree(others).query(places)
    same = away < 0.15
    assert same.sum() > 300
    assert np.abs(first - second[match])[same].mean() < 0.1
    assert first.std(0)[0] > 0.1  # not one colour throughout


@pytest.mark.filterwarnings("error")
def test_strips_one_pixel_wide_have_arc_lengths_all_the_same():
    """The outline of such a strip turns on the spot at its tip, wherever the samples of the outline fall."""
    for length in range(60, 68):
        layers = np.zeros((4, 200, 200), dtype=np.uint8)
        layers[0, 90:110, 10:80], layers[0, 100, 80 : 80 + length] = 1, 1
        frontage = Frontage(SceneMap(layers=layers, origin_xy_m=np.zeros(2), metres_per_pixel=0.5, lane_graph=None))
        x = np.linspace(5.0, 75.0, 200)
        assert np.isfinite(frontage.locate(np.stack([x, np.full(200, 51.0)], -1))[1]).all()


def test_an_outline_seen_at_both_ends_of_its_arc_was_not_seen_between():
    """A closed outline's arc begins somewhere; a street that lies there once streaked the whole block."""
    rng = np.random.default_rng(0)
    arc = np.concatenate([rng.uniform(0, 30, 4000), rng.uniform(480, 500, 4000)])
    name, z = np.zeros(8000, np.int64), rng.uniform(0, 8, 8000)
    colours = np.stack([np.sin(arc / 3), np.cos(arc / 3), z / 8], -1)
    look = FrontLook(front_pixels(name, arc, z), colours, np.zeros(8000, bool))
    between = np.linspace(100, 400, 600)
    found, known, _ = look.at(front_pixels(np.zeros(600, np.int64), between, np.full(600, 4.0)))
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
        images[:, channel][large(here.layout.box_VHW) == index] = 1.0
    look = Appearance(town.street, Things.none(), here, images)
    there = town.view(
        90.0, (103.0, 2.5, CAR), (100.0, -3.0, CAR), (98.0, 5.5, PEDESTRIAN), tokens=("red", "stranger", "walker")
    )
    painted, known = look.paint(there)
    own, borrowed, none = (large(there.layout.box_VHW) == i for i in range(3))
    assert min(int(m.sum()) for m in (own, borrowed, none)) > 20
    colours = painted.permute(0, 2, 3, 1)
    np.testing.assert_allclose(colours[own].mean(0).numpy(), [1, 0, 0], atol=0.05)
    assert sorted(colours[borrowed].mean(0).round().tolist()) == [0, 0, 1]
    assert float(known[:, 0][borrowed].min()) == 1.0
    assert float(known[:, 0][none].max()) == 0.0


def test_the_sky_keeps_its_colour_by_elevation_when_the_car_turns(town):
    def heavens(view: View) -> Tensor:
        tangent = rays(view).directions_VHW3[..., 2]
        sky = (layer(view, "is_ground") == 0) & (large(view.layout.depth_VHW) > 90)
        return torch.where(sky, tangent, 0.0)[:, None].expand(-1, 3, -1, -1)

    here, there = town.view(0.0), town.view(40.0, yaw=0.4)
    painted, known = Appearance(town.street, Things.none(), here, heavens(here)).paint(there)
    sky = heavens(there)[:, 0] > 0.02
    assert int(sky.sum()) > 50
    assert float((painted - heavens(there))[:, 0][sky].abs().mean()) < 0.03
    assert float(known[:, 0][sky].min()) == 1.0


def test_without_any_map_the_sky_and_the_bare_ground_are_all_there_is():
    blank = SceneMap(
        layers=np.zeros((4, 50, 50), dtype=np.uint8), origin_xy_m=np.zeros(2), metres_per_pixel=1.0, lane_graph=None
    )
    layout = LayoutCaster(blank).cast(CAMERAS, np.eye(4), boxes_at(), CAST_H, CAST_W)
    view = View(cameras=CAMERAS, ego_to_global=np.eye(4), layout=layout, boxes=boxes_at(), tokens=())
    painted, known = Appearance(Street(blank), Things.none(), view, grey(view, 0.5)).paint(view)
    assert float(known.min()) == pytest.approx(1.0)
    torch.testing.assert_close(painted, grey(view, 0.5))


def half_high(colours: tuple[int, ...], kind: int = CAR) -> Things:
    """Things whose class fills the lower half of its box; one example of each red in bytes, lit so that road is mid-grey."""
    solid = np.zeros((len(DETECTION_CLASSES), *GRID), bool)
    solid[kind, :, :, : GRID[2] // 2] = True
    examples = np.zeros((len(colours), *GRID, 3), np.uint8)
    examples[..., 0] = np.array(colours)[:, None, None, None]
    return Things(
        solid_KXYZ=solid,
        colours_NXYZ3=examples,
        classes_N=np.full(len(colours), kind),
        road_N3=np.full((len(colours), 3), 0.5, np.float32),
    )


def test_rays_meet_the_shape_and_not_the_box():
    things = half_high((200,))
    parts = np.array([[-1.0, 0, -0.5], [-1, 0, 0.5], [-1, 0, 0.5], [-1, 0, 0.9]])
    ways = np.array([[1.0, 0, 0], [1, 0, 0], [1, 0, -1], [1, 0, 0]])
    kinds = np.array([CAR, CAR, CAR, PEDESTRIAN])
    met = things.meet(kinds, parts, ways)
    np.testing.assert_allclose(met[0], [-1, 0, -0.5], atol=1e-6)
    assert np.isnan(met[1]).all()
    np.testing.assert_allclose(met[2], [-0.5, 0, 0], atol=0.1)  # comes down onto its top
    np.testing.assert_allclose(met[3], [-1, 0, 0.9], atol=1e-6)  # a class without a shape fills its box


def test_an_example_is_shown_under_the_light_of_the_frame():
    things = half_high((200,))
    place = np.zeros((1, 3))
    for road, expected in ((0.5, 200 / 255), (0.25, 100 / 255), (0.9, 1.0)):
        shown = things.colours(np.array([0]), place, np.full(3, 2 * road - 1))
        assert (shown[0, 0] + 1) / 2 == pytest.approx(expected, abs=1e-6)


def test_an_unseen_thing_is_an_example_of_its_class_with_the_street_behind_what_it_leaves_free(town):
    here, there = town.view(0.0), town.view(90.0, (100.0, 0.0, CAR), tokens=("stranger",))
    look = Appearance(town.street, half_high((200,)), here, grey(here, 0.0))
    painted, known = look.paint(there)
    on = large(there.layout.box_VHW) == 0
    lower = on & (painted[:, 1] < -0.9)  # the example has no green; the grey street has
    assert 0.35 < float(lower.sum() / on.sum()) < 0.75
    rows = lower.nonzero()[:, 1].float().mean() - (on & ~lower).nonzero()[:, 1].float().mean()
    assert rows > 3  # below what is left free
    np.testing.assert_allclose(painted[:, 0][lower].numpy(), 2 * 200 / 255 - 1, atol=0.01)
    assert float(known[:, 0][on].min()) == pytest.approx(1.0)


def test_an_example_fades_into_the_air_with_its_distance(town):
    here = town.view(0.0)
    look = Appearance(town.street, half_high((200,)), here, grey(here, 0.0), Air(extinction_per_m=0.03))
    means = []
    for ego_x_m in (88.0, 75.0):
        there = town.view(ego_x_m, (100.0, 0.0, CAR), tokens=("stranger",))
        painted, _ = look.paint(there)
        red, green = painted[:, 0], painted[:, 1]
        shown = (large(there.layout.box_VHW) == 0) & (green < -0.3)  # the air is as grey as the street: 0
        through = torch.exp(-0.03 * large(there.layout.depth_VHW))
        np.testing.assert_allclose(-green[shown].numpy(), through[shown].numpy(), atol=0.05)
        np.testing.assert_allclose(red[shown].numpy(), (2 * 200 / 255 - 1) * -green[shown].numpy(), atol=0.02)
        means.append(float(-green[shown].mean()))
    assert means[0] > means[1]


def test_a_thing_seen_from_afar_takes_after_the_example_most_like_it_when_it_comes_near(town):
    here = town.view(0.0, (28.0, 0.0, CAR), tokens=("mine",))
    image = grey(here)
    image[:, 0][large(here.layout.box_VHW) == 0] = 2 * 60 / 255 - 1
    image[:, 1:][large(here.layout.box_VHW)[:, None].expand(-1, 2, -1, -1) == 0] = -1.0
    look = Appearance(town.street, half_high((250, 60, 150)), here, image)
    there = town.view(21.0, (28.0, 0.0, CAR), tokens=("mine",))
    painted, _ = look.paint(there)
    shown = (large(there.layout.box_VHW) == 0) & (painted[:, 1] < -0.9)
    assert shown.sum() > 100
    np.testing.assert_allclose(painted[:, 0][shown].mean().item(), 2 * 60 / 255 - 1, atol=0.03)


def test_the_unseen_side_of_a_thing_is_an_example_in_its_own_paint(town):
    here = town.view(0.0, (15.0, 0.0, CAR), tokens=("mine",))
    image = grey(here)
    box = large(here.layout.box_VHW) == 0
    for channel, value in enumerate((0.2, -1.0, -1.0)):  # three fifths of full red, three quarters of the example's
        image[:, channel][box] = value
    look = Appearance(town.street, half_high((204,)), here, image)
    there = town.view(30.0, (15.0, 0.0, CAR), tokens=("mine",), yaw=np.pi)
    painted, _ = look.paint(there)
    shown = (large(there.layout.box_VHW) == 0) & (painted[:, 1] < -0.9)
    assert shown.sum() > 100
    np.testing.assert_allclose(painted[:, 0][shown].median().item(), 0.2, atol=0.02)


def test_a_paint_is_what_most_pixels_show_whatever_else_is_in_the_box(town):
    here, things = town.view(0.0, (15.0, 0.0, CAR), tokens=("mine",)), half_high((204,))
    image = grey(here)
    rows, columns = torch.nonzero(large(here.layout.box_VHW)[0] == 0).unbind(1)
    for part, colour in (
        (columns % 5 < 2, (0.2, -1.0, -1.0)),
        (columns % 5 == 2, (1.0, 1.0, 1.0)),
        (columns % 5 > 3, (-1.0, 1.0, -1.0)),
    ):
        image[0, :, rows[part], columns[part]] = torch.tensor(colour)[:, None]
    look = Appearance(town.street, things, here, image)
    painted, _ = look.paint(town.view(30.0, (15.0, 0.0, CAR), tokens=("mine",), yaw=np.pi))
    shown = painted[:, 1] < -0.9
    assert shown.sum() > 100
    np.testing.assert_allclose(painted[:, 0][shown].median().item(), 0.2, atol=0.02)


def test_own_paint_keeps_its_hue_on_an_example_of_another_and_leaves_stripes_alone():
    yellow, green = np.array([0.8, 0.6, 0.1]), np.array([0.1, 0.5, 0.2])
    paint = Paint(own_3=yellow, example_3=green)
    shown = np.stack([green, green / 2, np.array([0.9, 0.9, 0.9]), np.array([0.7, 0.1, 0.1])])
    made = (paint.over(2 * shown - 1) + 1) / 2
    np.testing.assert_allclose(made, np.stack([yellow, yellow / 2, shown[2], shown[3]]), atol=1e-9)


def test_what_shines_past_a_thing_slimmer_than_its_class_is_not_its_look(town):
    here = town.view(0.0, (15.0, 0.0, CAR), tokens=("mine",))
    things = half_high((200,) * 5)
    # The whole picture is of one grey, as if nothing stood there.
    for known, expected in ((things, 0.0), (things.corrected(), 2 * 200 / 255 - 1)):
        painted, _ = Appearance(town.street, known, here, grey(here)).paint(here)
        middle = painted[0, 0][large(here.layout.box_VHW)[0] == 0].max()
        assert middle.item() == pytest.approx(expected, abs=0.02)


def test_lamps_of_things_that_were_not_seen_are_lit_in_the_dark(town):
    here, there = town.view(0.0), town.view(90.0, (100.0, 0.0, CAR), tokens=("stranger",))
    red = 2 * 0.7**0.8 - 1
    for air, expected in ((Air(), 0), (Air(darkness_ev=2.9), 1)):
        painted, _ = Appearance(town.street, half_high((20,)), here, grey(here), air).paint(there)
        tail = (painted[:, 0] - red).abs() < 0.02
        assert (int(tail.sum()) > 20) == bool(expected)
        if expected:
            columns = tail[0].nonzero()[:, 1].float()  # one on either side of the middle
            assert (columns < W / 2).any() and (columns > W / 2).any() and ((columns - W / 2).abs() > 3).all()


def test_what_most_examples_share_all_do_and_their_paint_stays_their_own():
    things = half_high((10, 60, 110, 160, 210))
    glass = things.colours_NXYZ3.copy()
    glass[:4, :, :, 6:10] = 40  # four have dark glass, on the fifth it was not seen
    corrected = replace(things, colours_NXYZ3=glass).corrected()
    assert (corrected.colours_NXYZ3[:, :, :, 6:10] == 40).all()
    np.testing.assert_array_equal(corrected.colours_NXYZ3[:, :, :, :6], things.colours_NXYZ3[:, :, :, :6])
    shared = corrected.shared_KXYZ[CAR]
    assert shared[:, :, 6:10].all() and not shared[:, :, :6].any() and not shared[:, :, GRID[2] // 2 :].any()
    few = replace(things, colours_NXYZ3=glass[:4], classes_N=things.classes_N[:4], road_N3=things.road_N3[:4])
    np.testing.assert_array_equal(few.corrected().colours_NXYZ3, glass[:4])


def test_lamps_are_at_the_corners_of_front_and_back():
    place = np.array([[1, 0.7, -0.2], [-1, -0.7, -0.2], [1, 0.0, -0.2], [1, 0.7, 0.5], [0.5, 0.7, -0.2], [1, 0.97, -0.2]])
    head, tail = lamps(place, np.full(6, 1.8), 0.9)  # -0.2 is 0.72 m above the ground
    assert head.tolist() == [True, False, False, False, False, False]
    assert tail.tolist() == [False, True, False, False, False, False]


def test_things_survive_their_file_and_foreign_files_are_refused(tmp_path):
    things = half_high((10, 250))
    path = things.save(tmp_path / "things.safetensors", {"trained_on": "a test"})
    again = Things.load(path)
    for name in ("solid_KXYZ", "colours_NXYZ3", "classes_N", "road_N3"):
        np.testing.assert_array_equal(getattr(again, name), getattr(things, name))
    assert again.examples(CAR) == [0, 1]
    save_file({"solid": np.zeros((2, 2), np.uint8)}, tmp_path / "other.safetensors", metadata={"kind": "things"})
    with pytest.raises(InputError, match=r"other\.safetensors.*no examples of things"):
        Things.load(tmp_path / "other.safetensors")


def test_roofs_are_level_and_fronts_go_on_up_to_them():
    """The lower half of a wall with windows every 3.4 m is seen; the roof at 12 m only of its right part."""
    arc, z = (g.ravel() for g in np.meshgrid(np.arange(0, 32, 0.2), np.arange(0.1, 20, 0.2)))
    rising = np.where(arc < 24, 6.0, 20.0)  # how high the picture reaches
    seen = z < rising
    arc, z = arc[seen], z[seen]
    sky = z > 12
    shade = np.where(z % 3.4 < 1.7, 0.8, -0.8)
    look = FrontLook(front_pixels(np.zeros(len(arc), np.int64), arc, z), np.repeat(shade[:, None], 3, 1), sky)
    heights = np.arange(0.3, 18, 0.2)
    found, _, open_sky = look.at(front_pixels(np.zeros(len(heights), np.int64), np.full(len(heights), 10.0), heights))
    assert heights[open_sky > 0.5].min() == pytest.approx(12.0, abs=0.5)
    up_there = (heights > 6.5) & (heights < 11.5)
    assert np.abs(found[up_there, 0]).mean() > 0.6  # windows and walls, no smear
    assert np.sign(found[up_there, 0]).std() > 0.9
