"""Points of a log, gathered from sweeps and coloured by pictures, on a field with a wall and a van."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dwm.codec.autoencoder import Autoencoder, CodecConfig
from dwm.conditioning.build import Given, ScenarioConditioner
from dwm.conditioning.log_memory import merged, usable, worn
from dwm.conditioning.log_reader import logged_boxes, read_logged_points, usable_sweeps
from dwm.conditioning.logged_points import Drawn, LoggedPoints, Sweep, build_logged_points, gather
from dwm.conditioning.photos import Boxes, Shot
from dwm.conditioning.reprojection import Trace
from dwm.geometry import rotation_from_yaw, transform_from_xy_yaw
from dwm.scenario.build import build_scenario
from dwm.scenario.perturbations import BASELINE
from dwm.scenario.types import Perturbation, Scenario
from dwm.scenes.clips import read_image
from dwm.scenes.nuscenes import list_scenes, read_scene
from dwm.scenes.types import LidarSweep
from tests.conftest import VERSION
from tests.factories import make_cameras, make_scene

H, W = 128, 224
FRONT = make_cameras(W, H)[0]
RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)


def sheet(x: float, y: tuple[float, float], z: tuple[float, float], step: float = 0.08) -> np.ndarray:
    """Points of an upright rectangle across the x axis."""
    ys, zs = np.meshgrid(np.arange(*y, step), np.arange(*z, step))
    return np.column_stack([np.full(ys.size, x), ys.ravel(), zs.ravel()])


def van(x: float, y: float, yaw: float = 0.0, speed: float = 0.0) -> Boxes:
    return Boxes(
        agents=np.array([7]), centers_m=np.array([[x, y, 1.2]]), rotations=rotation_from_yaw([yaw]),
        sizes_wlh_m=np.array([[2.0, 4.0, 2.4]]), speeds_mps=np.array([speed]),
    )  # fmt: skip


def nothing() -> Boxes:
    return Boxes(
        agents=np.zeros(0, np.int64), centers_m=np.zeros((0, 3)), rotations=np.zeros((0, 3, 3)), sizes_wlh_m=np.zeros((0, 3)),
        speeds_mps=np.zeros(0),
    )  # fmt: skip


def rear(x: float, y: float) -> np.ndarray:
    """The rear of a van that heads along x, just inside its box."""
    return sheet(x - 1.99, (y - 0.95, y + 0.95), (0.3, 2.35))


def filmed(surfaces: list[tuple[np.ndarray, tuple[int, int, int]]], ego: np.ndarray, boxes: Boxes) -> Shot:
    """A picture in which surfaces across x, later ones before earlier ones, are rectangles of one colour."""
    image = np.zeros((H, W, 3), np.uint8)
    pose = ego @ FRONT.camera_to_ego
    for xyz, colour in surfaces:
        local = (xyz - pose[:3, 3]) @ pose[:3, :3]
        u, v = (local[:, :2] / local[:, 2:] * FRONT.intrinsics[[0, 1], [0, 1]] + FRONT.intrinsics[:2, 2]).T
        low, high = np.floor([v.min(), u.min()]).astype(int).clip(0), np.ceil([v.max(), u.max()]).astype(int)
        image[low[0] : high[0] + 1, low[1] : high[1] + 1] = colour
    return Shot(image=image, camera=FRONT, ego_to_global=ego, boxes=boxes)


def scene_of_wall_and_van() -> LoggedPoints:
    """A green wall 20 m away and a red van 10 m away, seen from the origin; the LiDAR sees round the van, the camera not."""
    wall, back = sheet(20.0, (-10, 10), (0.0, 6.0)), rear(12.0, 0.0)
    sweep = Sweep(xyz_m=np.concatenate([wall, back]), origin_m=np.array([0.0, 0, 1.8]), boxes=van(12.0, 0.0))
    return build_logged_points([sweep], [filmed([(wall, GREEN), (back, RED)], np.eye(4), van(12.0, 0.0))])


def colour_at(drawn: Drawn, row: int, column: int) -> tuple[int, ...] | None:
    if not drawn.known_VHW[0, row, column]:
        return None
    return tuple(((drawn.images_V3HW[0, :, row, column] + 1) * 127.5).round().int().tolist())


def pixel(x: float, y: float, z: float, ego: np.ndarray | None = None) -> tuple[int, int]:
    """Row and column of a place in the front camera."""
    pose = (np.eye(4) if ego is None else ego) @ FRONT.camera_to_ego
    local = (np.array([x, y, z]) - pose[:3, 3]) @ pose[:3, :3]
    u, v, _ = FRONT.intrinsics @ local / local[2]
    return int(v), int(u)


def test_points_are_sorted_into_street_and_things_and_the_floor_of_a_box_is_street():
    ground = np.array([[12.0, 0.0, 0.05], [5.0, 3.0, 0.0]])
    on, close = np.array([[11.0, 0.5, 1.0]]), np.array([[12.0, 1.1, 1.0]])
    sweep = Sweep(xyz_m=np.concatenate([ground, on, close]), origin_m=np.zeros(3), boxes=van(12.0, 0.0, yaw=np.pi / 2))
    street, things = gather([sweep])
    np.testing.assert_allclose(sorted(street.xyz_P3[:, 0]), [5.0, 12.0])
    # The van heads along y: what lies at x - 1 is to its left, which is its own y axis.
    np.testing.assert_allclose(things[7].xyz_P3[np.argmin(things[7].xyz_P3[:, 0])], [0.5, 1.0, -0.2], atol=1e-9)
    street, _ = gather([replace(sweep, boxes=van(12.0, 0.0, yaw=np.pi / 2, speed=5.0))])
    np.testing.assert_allclose(street.xyz_P3, [[5.0, 3.0, 0.0]])  # under a moving thing nothing is kept


def test_many_sweeps_of_one_place_are_no_more_points_than_one():
    wall = sheet(20.0, (-3, 3), (0.0, 3.0), 0.05)
    one, many = (gather([Sweep(xyz_m=wall, origin_m=np.zeros(3), boxes=nothing())] * n)[0] for n in (1, 25))
    assert len(one.range_P) == len(many.range_P) <= 61 * 31


def test_a_point_behind_something_does_not_take_its_colour():
    points = scene_of_wall_and_van()
    street = points.levels[0]
    # Behind the van: twice as far away, so twice as wide and high around the camera's axis.
    y, z = street.xyz_P3[:, 1], street.xyz_P3[:, 2]
    assert float(y.abs().max()) > 6
    assert not bool(((y.abs() < 1.2) & (z > 0.5) & (z < 2.5)).any())  # no picture shows those: they are dropped
    drawn = points.draw((FRONT,), transform_from_xy_yaw(0.0, 5.0, 0.0), nothing(), H, W)
    shown = drawn.images_V3HW[0].movedim(0, -1)[drawn.known_VHW[0]]
    assert len(shown) > 2000
    green = (torch.tensor(GREEN) / 127.5 - 1).expand_as(shown)
    assert float((shown - green).abs().amax(-1).gt(0.05).float().mean()) < 0.02


def test_a_thing_is_drawn_where_its_box_is_now_and_the_street_behind_it_is_hidden():
    points = scene_of_wall_and_van()
    before = points.draw((FRONT,), np.eye(4), van(12.0, 0.0), H, W)
    assert colour_at(before, *pixel(10.0, 0.0, 1.2)) == RED
    assert colour_at(before, *pixel(20.0, 3.5, 1.2)) == GREEN
    moved = points.draw((FRONT,), np.eye(4), van(12.0, 2.1), H, W)
    assert colour_at(moved, *pixel(10.0, 2.1, 1.2)) == RED
    assert int(moved.thing_VHW[0][pixel(10.0, 2.1, 1.2)]) == 7
    assert float(moved.depth_VHW[0][pixel(10.0, 2.1, 1.2)]) == pytest.approx(10.01 - FRONT.camera_to_ego[0, 3], abs=0.02)
    assert colour_at(moved, *pixel(20.0, 0.0, 1.2)) is None  # where it stood, nobody knows the wall
    gone = points.draw((FRONT,), np.eye(4), nothing(), H, W)
    assert colour_at(gone, *pixel(20.0, 3.5, 1.2)) == GREEN
    assert not bool((gone.thing_VHW == 7).any())


def test_the_picture_that_shows_a_point_largest_gives_its_colour():
    wall = sheet(20.0, (-4, 4), (0.0, 4.0))
    nearer = transform_from_xy_yaw(8.0, 0.0, 0.0)
    shots = [filmed([(wall, colour)], ego, nothing()) for colour, ego in ((RED, np.eye(4)), (BLUE, nearer), (RED, np.eye(4)))]
    points = build_logged_points([Sweep(xyz_m=wall, origin_m=np.array([0, 0, 1.8]), boxes=nothing())], shots)
    drawn = points.draw((FRONT,), np.eye(4), nothing(), H, W)
    assert colour_at(drawn, *pixel(20.0, 0.0, 1.5)) == BLUE
    assert float(drawn.sharpness_VHW[0][pixel(20.0, 0.0, 1.5)]) == 1.0
    close = points.draw((FRONT,), transform_from_xy_yaw(14.0, 0.0, 0.0), nothing(), H, W)
    # Twice as large as any picture shows it: 12 m less the mounting over 6 m less the mounting.
    offset = FRONT.camera_to_ego[0, 3]
    expected = (6 - offset) / (12 - offset)
    assert float(close.sharpness_VHW[0, 60:68, 100:124].mean()) == pytest.approx(expected, rel=0.03)


def test_the_carried_frame_fills_what_the_points_do_not_show():
    drawn = Drawn(
        images_V3HW=torch.ones(1, 3, 4, 4), known_VHW=torch.ones(1, 4, 4, dtype=torch.bool), sharpness_VHW=torch.ones(1, 4, 4),
        depth_VHW=torch.full((1, 4, 4), 9.0), thing_VHW=torch.full((1, 4, 4), -1),
    )  # fmt: skip
    drawn.known_VHW[0, :, 2:] = False
    drawn.sharpness_VHW[0, 2:] = 0.2
    found = Trace(
        view_VHW=torch.zeros(1, 2, 2, dtype=torch.long), uv_VHW2=torch.zeros(1, 2, 2, 2),
        valid_VHW=torch.tensor([[[True, True], [True, False]]]), sharpness_VHW=torch.full((1, 2, 2), 0.8),
    )  # fmt: skip
    memory = merged(torch.full((1, 3, 4, 4), -1.0), found, drawn, drawn.known_VHW)
    expected = torch.tensor([[1.0, 1, -1, -1]] * 2 + [[-1.0] * 4] * 2)  # sharp points, blurred points, none
    torch.testing.assert_close(memory.images_V3HW[0, 0], expected)
    assert memory.known_VHW[0, :, 2:].tolist() == [[True, True]] * 2 + [[False, False]] * 2
    torch.testing.assert_close(worn(found, drawn, memory, 0.9), torch.tensor([[[1.0, 0.72], [0.72, 1.0]]]))


def road_scenario() -> Scenario:
    scenario = build_scenario(make_scene(ego_speed_mps=6.0), BASELINE, 0, duration_s=1.0)
    assert isinstance(scenario, Scenario)
    return scenario


def test_a_box_that_the_log_never_saw_hides_the_street_behind_it():
    conditioner = ScenarioConditioner(road_scenario())
    layout = conditioner.layout(0)
    assert (layout.box_VHW >= 0).any()
    count = len(conditioner.visible_agents(0))
    shape = (len(layout.box_VHW), H, W)
    drawn = Drawn(
        images_V3HW=torch.zeros(shape[0], 3, H, W), known_VHW=torch.ones(shape, dtype=torch.bool), sharpness_VHW=torch.ones(shape),
        depth_VHW=torch.full(shape, 140.0), thing_VHW=torch.full(shape, -1),
    )  # fmt: skip
    on_box = (layout.box_VHW >= 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(usable(drawn, layout, np.full(count, -1)), ~on_box)
    # A thing that the points show well is seen round, not through.
    here = layout.box_VHW.repeat_interleave(2, 1).repeat_interleave(2, 2)
    drawn.thing_VHW[:, ::2] = torch.where(on_box, here, -1)[:, ::2]
    assert usable(drawn, layout, np.arange(count)).all()


def test_without_lidar_files_memory_from_the_log_is_the_carried_frame_and_the_notes_say_so():
    conditioner = ScenarioConditioner(road_scenario())
    images = torch.rand(6, 3, H, W, generator=torch.Generator().manual_seed(0)) * 2 - 1
    given = Given(frame=0, latents_VCHW=torch.zeros(1), images_V3HW=images)
    for asked, past in zip(conditioner.memory(given, 5, log=True), conditioner.memory(given, 5), strict=True):
        torch.testing.assert_close(asked, past)
    torch.testing.assert_close(conditioner.sharpness(given, 5, log=True), conditioner.sharpness(given, 5))
    alone, known = conditioner.logged(5)
    assert alone.shape == (6, 3, H, W)
    assert float(known.sum()) == 0.0
    assert conditioner.notes == ("no LiDAR files or no images to colour them: memory `log` falls back to `past`",)


def test_the_logs_pictures_are_no_memory_of_another_light():
    wall = sheet(25.0, (-12, 12), (0.0, 8.0), 0.12)
    points = build_logged_points(
        [Sweep(xyz_m=wall, origin_m=np.array([0, 0, 1.8]), boxes=nothing())], [filmed([(wall, BLUE)], np.eye(4), nothing())]
    )
    fog = Perturbation(name="fog", params={"visibility_m": 300.0}, severity=0.5)
    scenario = build_scenario(make_scene(ego_speed_mps=6.0, agents=()), fog, 0, duration_s=1.0)
    assert isinstance(scenario, Scenario)
    conditioner = ScenarioConditioner(scenario, points=points)
    assert float(conditioner.logged(6)[1].sum()) == 0.0
    assert conditioner.notes == ("the log's pictures do not show fog: memory `log` falls back to `past`",)


def test_with_points_memory_from_the_log_shows_them_and_says_nothing():
    wall = sheet(25.0, (-12, 12), (0.0, 8.0), 0.12)
    shot = filmed([(wall, BLUE)], np.eye(4), nothing())
    points = build_logged_points([Sweep(xyz_m=wall, origin_m=np.array([0, 0, 1.8]), boxes=nothing())], [shot])
    scenario = build_scenario(make_scene(ego_speed_mps=6.0, agents=()), BASELINE, 0, duration_s=1.0)
    assert isinstance(scenario, Scenario)
    conditioner = ScenarioConditioner(scenario, points=points)
    given = Given(frame=0, latents_VCHW=torch.zeros(1), images_V3HW=torch.zeros(6, 3, H, W))
    memory, valid = conditioner.memory(given, 6, log=True)
    alone, known = conditioner.logged(6)
    row, column = pixel(25.0, 2.0, 3.0, scenario.ego_to_global[6])
    torch.testing.assert_close(memory[0, :, row, column], torch.tensor(BLUE) / 127.5 - 1, atol=0.01, rtol=0)
    assert float(known[0, 0, row // 2, column // 2]) == float(valid[0, 0, row // 2, column // 2]) == 1.0
    carried, _ = conditioner.memory(given, 6)
    unknown = (known[:, 0] == 0).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None].expand_as(memory)
    torch.testing.assert_close(memory[unknown], carried[unknown])
    torch.testing.assert_close(memory[~unknown & (alone != 0)].mean(), alone[~unknown & (alone != 0)].mean(), atol=0.02, rtol=0)
    offset = FRONT.camera_to_ego[0, 3]
    nearer = (25 - scenario.ego_to_global[6, 0, 3] - offset) / (25 - offset)  # and the picture is enlarged by as much
    assert float(conditioner.sharpness(given, 6, log=True)[0, row // 2, column // 2]) == pytest.approx(nearer, abs=0.01)
    assert conditioner.notes == ()
    codec = Autoencoder(CodecConfig(latent_channels=8, width=4, blocks=1)).eval()
    with torch.inference_mode():
        window = conditioner.window([0, 3, 6], fps=12.0, codec=codec, sources=[given], log=True).condition
        assert window.memory_BTVCHW is not None
        torch.testing.assert_close(window.memory_BTVCHW[0, 2], codec.encode(memory))


def test_of_the_sweeps_between_key_frames_three_are_used_and_files_that_are_missing_are_not(tmp_path: Path):
    sweeps = []
    for i in range(21):
        path = tmp_path / f"{i}.bin"
        if i != 10:
            path.touch()
        sweeps.append(LidarSweep(path=path, timestamp_us=i, is_key_frame=i % 10 == 0))
    used = usable_sweeps(replace(make_scene(), lidar_sweeps=tuple(sweeps)))
    times = [s.timestamp_us for s in used]
    assert times[0] == 0
    assert times[-1] == 20
    assert 10 not in times
    assert len(times) == 2 + 3
    assert len({t // 5 for t in times}) >= 4


def test_a_dataroots_log_drawn_from_a_logged_camera_is_that_cameras_picture(pg_dataroot: Path):
    scene = read_scene(pg_dataroot, VERSION, list_scenes(pg_dataroot, VERSION)[0])
    points = read_logged_points(scene)
    assert points is not None
    camera = scene.cameras[0]
    frame = next(f for f in scene.frames["CAM_FRONT"] if f.sample_token == scene.sample_tokens[1] and f.is_key_frame)
    boxes = logged_boxes(scene, frame.timestamp_us)
    drawn = points.draw((camera,), frame.ego_to_global, boxes, camera.height_px, camera.width_px)
    known = drawn.known_VHW[0].numpy()
    assert known.mean() > 0.4
    image = read_image(frame.path).astype(float)
    error = np.abs((drawn.images_V3HW[0].movedim(0, -1).numpy() + 1) * 127.5 - image).mean(-1)[known]
    assert np.median(error) < 4
    lower = np.roll(image, 6, axis=0)
    assert error.mean() < 0.5 * np.abs(lower - image).mean(-1)[known].mean()
