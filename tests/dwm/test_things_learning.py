"""From LiDAR and cameras to shapes and examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import view_points
from PIL import Image
from pyquaternion import Quaternion
from scipy.spatial import KDTree

from dwm.conditioning.things import GRID, Things
from dwm.errors import InputError
from dwm.scenes.coloured_points import ColouredPoints, coloured_points
from dwm.scenes.nuscenes import list_scenes, read_scene
from dwm.scenes.types import DETECTION_CLASSES
from dwm.training import things as learning
from dwm.training.config import ThingsConfig
from dwm.training.things import learn_things
from tests.conftest import VERSION
from tests.factories import key_times, make_agent, make_scene

CAR = DETECTION_CLASSES.index("car")


def test_points_have_the_colour_of_the_pixel_that_the_devkits_transforms_lead_to(pg_dataroot: Path):
    nusc = NuScenes(VERSION, str(pg_dataroot), verbose=False)
    scene = read_scene(pg_dataroot, VERSION, list_scenes(pg_dataroot, VERSION)[0])
    points = coloured_points(scene, 1)
    still = points.agent < 0
    sample = nusc.get("sample", scene.sample_tokens[1])
    lidar, camera = (nusc.get("sample_data", sample["data"][c]) for c in ("LIDAR_TOP", "CAM_FRONT"))
    cloud = LidarPointCloud.from_file(nusc.get_sample_data_path(lidar["token"]))
    for record, forward in ((lidar, True), (camera, False)):
        rig = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
        ego = nusc.get("ego_pose", record["ego_pose_token"])
        for pose in (rig, ego) if forward else (ego, rig):
            turn = Quaternion(pose["rotation"]).rotation_matrix
            if forward:
                cloud.rotate(turn)
                cloud.translate(np.array(pose["translation"]))
            else:
                cloud.translate(-np.array(pose["translation"]))
                cloud.rotate(turn.T)
        if forward:
            world = cloud.points[:3].T.copy()
    pixels = view_points(cloud.points[:3], np.array(rig["camera_intrinsic"]), normalize=True)[:2].T
    image = np.asarray(Image.open(nusc.get_sample_data_path(camera["token"])))
    depth = cloud.points[2]
    middle = (depth > 1) & (np.abs(pixels[:, 0] - 28) < 12) & (pixels[:, 1] >= 0) & (pixels[:, 1] < 32)
    away, match = KDTree(points.xyz_m[still]).query(world[middle])
    same = away < 0.01
    assert same.sum() > 100
    column, row = pixels[middle][same].astype(int).T
    exact = (points.colours[still][match[same]] == image[row, column]).all(-1)
    assert exact.mean() > 0.99  # the devkit rounds to single precision: a point on a pixel's edge may cross it


def test_points_lie_on_the_things_that_the_annotations_count_them_on(pg_dataroot: Path):
    scene = read_scene(pg_dataroot, VERSION, list_scenes(pg_dataroot, VERSION)[0])
    points = coloured_points(scene, 0)
    assert np.abs(points.part[points.agent >= 0]).max() <= 1
    seen = np.bincount(points.agent[points.agent >= 0], minlength=len(scene.agents))
    counted = np.zeros(len(scene.agents), int)
    for i, agent in enumerate(scene.agents):
        here = agent.timestamps_us == scene.key_timestamps_us[0]
        counted[i] = agent.num_lidar_pts[here].sum()
    assert counted.sum() > 100
    assert (seen <= counted).all()
    assert seen.sum() > 0.8 * counted.sum()  # some fall between the cameras' images


def test_a_missing_sweep_is_named(pg_dataroot: Path):
    scene = read_scene(pg_dataroot, VERSION, list_scenes(pg_dataroot, VERSION)[0])
    gone = type(scene)(**{f: getattr(scene, f) for f in scene.__slots__} | {"lidar_paths": (Path("gone.bin"),) * 3})
    with pytest.raises(InputError, match=r"gone\.bin.*missing"):
        coloured_points(gone, 0)


def planted(scene, key_frame: int) -> ColouredPoints:
    """A car whose lower half is there: red on its left as far as anybody saw, its nose blue; and grey road."""
    rng = np.random.default_rng(key_frame)
    part = rng.uniform(-1, 1, (3000, 3)) * [1, 1, 0.5] - [0, 0, 0.5]
    side = rng.integers(0, 3, 3000)
    part[side == 0, 1] = 1.0  # left
    part[side == 1, 0] = 1.0  # nose
    part[side == 2, 2] = 0.0  # top
    colours = np.where((part[:, 0] > 0.9)[:, None], [0, 0, 200], [200, 0, 0])
    road = np.full((50, 3), 100)
    return ColouredPoints(
        xyz_m=np.concatenate([np.full((3000, 3), 999.0), np.zeros((50, 3))]), colours=np.concatenate([colours, road]).astype(np.uint8),
        pixels_per_m=np.full(3050, 80.0), agent=np.r_[np.zeros(3000, int), np.full(50, -1)], part=np.concatenate([part, np.zeros((50, 3))]),
    )  # fmt: skip


def test_shape_and_colours_are_those_of_the_points_of_either_side(tmp_path, monkeypatch):
    car = make_agent("one", lambda _: (10.0, 0.0, 0.0), key_times(3))
    scene = make_scene(key_frames=3, agents=(car,))
    monkeypatch.setattr(learning, "list_scenes", lambda *_: ["one"])
    monkeypatch.setattr(learning, "read_scene", lambda *_: scene)
    monkeypatch.setattr(learning, "coloured_points", planted)
    things = Things.load(
        learn_things(ThingsConfig(dataroot=str(tmp_path), out=str(tmp_path / "out.safetensors"), world_scenes=0))
    )
    assert things.classes_N.tolist() == [CAR]
    np.testing.assert_allclose(things.road_N3, 100 / 255, atol=1e-6)
    assert not things.solid_KXYZ[[k for k in range(len(DETECTION_CLASSES)) if k != CAR]].any()
    solid = things.solid_KXYZ[CAR]
    assert solid[:, :, GRID[2] // 2 + 2 :].mean() == 0
    assert solid[2:-2, -1, 2 : GRID[2] // 2 - 1].mean() > 0.95  # left
    np.testing.assert_array_equal(solid[:, 0], solid[:, -1])  # and so the right, which nobody saw
    for y in (1.0, -1.0):
        shown = things.colours(np.array([0, 0]), np.array([[-0.5, y, -0.5], [0.99, 0.0, -0.5]]), np.full(3, 2 * 100 / 255 - 1))
        np.testing.assert_allclose((shown + 1) / 2 * 255, [[200, 0, 0], [0, 0, 200]], atol=1)


def test_a_dataroot_without_things_in_sight_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    scene = make_scene(agents=())
    monkeypatch.setattr(learning, "list_scenes", lambda *_: ["one"])
    monkeypatch.setattr(learning, "read_scene", lambda *_: scene)
    empty = ColouredPoints(
        xyz_m=np.zeros((0, 3)),
        colours=np.zeros((0, 3), np.uint8),
        pixels_per_m=np.zeros(0),
        agent=np.zeros(0, int),
        part=np.zeros((0, 3)),
    )
    monkeypatch.setattr(learning, "coloured_points", lambda *_: empty)
    with pytest.raises(InputError, match="no labelled thing"):
        learn_things(ThingsConfig(dataroot=str(tmp_path), out=str(tmp_path / "out.safetensors"), world_scenes=0))
    assert not (tmp_path / "out.safetensors").exists()
