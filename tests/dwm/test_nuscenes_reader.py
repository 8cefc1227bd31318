import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nuscenes import NuScenes

from dwm.errors import InputError
from dwm.geometry import rotation_from_quaternion, transform
from dwm.scenes.interpolation import boxes_at
from dwm.scenes.nuscenes import list_scenes, missing_images, nearest_frames, read_scene
from dwm.scenes.proving_ground.city import build_city, scene_map
from dwm.scenes.raster_map import NO_EXPANSION, read_mask_map
from dwm.scenes.types import CAMERAS

VERSION = "v1.0-mini"
# A real scene, where one lies next to the checkout.
REAL = [p for p in (Path(__file__).parents[3] / "shared/data/nuscenes-sample",) if p.is_dir()]


@pytest.fixture
def broken(pg_dataroot: Path, tmp_path: Path) -> Path:
    """A copy of the dataroot's tables and maps, to be damaged; images and sweeps stay away."""
    for name in (VERSION, "maps"):
        shutil.copytree(pg_dataroot / name, tmp_path / name)
    return tmp_path


def _edit(dataroot: Path, table: str, change: Callable[[list[dict]], object]) -> None:
    path = dataroot / VERSION / f"{table}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def test_a_scene_holds_the_tables_it_was_written_with(pg_dataroot: Path) -> None:
    nusc = NuScenes(VERSION, str(pg_dataroot), verbose=False)
    for name in list_scenes(pg_dataroot, VERSION):
        scene = read_scene(pg_dataroot, VERSION, name)
        assert tuple(c.channel for c in scene.cameras) == tuple(scene.frames) == CAMERAS
        assert {len(f) for f in scene.frames.values()} == {13}
        assert len(scene.key_timestamps_us) == len(scene.lidar_paths) == 3
        keys = [(s.path, s.timestamp_us) for s in scene.lidar_sweeps if s.is_key_frame]
        assert keys == list(zip(scene.lidar_paths, scene.key_timestamps_us, strict=True))
        assert sum(len(a.timestamps_us) for a in scene.agents) == sum(
            len(nusc.get("sample", t)["anns"]) for t in scene.sample_tokens
        )
        for agent in scene.agents:
            for k, token in enumerate(agent.annotation_tokens):
                row = nusc.get("sample_annotation", token)
                np.testing.assert_array_equal(agent.centers_m[k], row["translation"])
                np.testing.assert_array_equal(agent.velocities_mps[k], nusc.box_velocity(token)[:2])
                assert agent.num_lidar_pts[k] == row["num_lidar_pts"]


def test_frames_carry_their_own_time_and_pose(pg_dataroot: Path) -> None:
    nusc = NuScenes(VERSION, str(pg_dataroot), verbose=False)
    scene = read_scene(pg_dataroot, VERSION, "scene-0001")
    for frames in scene.frames.values():
        for frame in frames:
            row = nusc.get("sample_data", frame.sample_data_token)
            pose = nusc.get("ego_pose", row["ego_pose_token"])
            expected = transform(pose["translation"], rotation_from_quaternion(pose["rotation"]))
            assert frame.timestamp_us == row["timestamp"]
            np.testing.assert_allclose(frame.ego_to_global, expected)
            np.testing.assert_allclose(scene.ego.at(np.array([frame.timestamp_us]))[0], expected, atol=1e-9)
    assert (np.diff(scene.ego.timestamps_us) > 0).all()


@pytest.mark.parametrize("root", ["proving ground", *REAL], ids=str)
def test_boxes_between_key_frames_equal_the_devkits(root: str | Path, pg_dataroot: Path) -> None:
    dataroot = pg_dataroot if root == "proving ground" else Path(root)
    nusc = NuScenes(VERSION, str(dataroot), verbose=False)
    scene = read_scene(dataroot, VERSION, list_scenes(dataroot, VERSION)[0])
    compared = 0
    for frame in scene.frames["CAM_FRONT"]:
        if frame.is_key_frame:
            continue  # the devkit returns the key frame's boxes as they are, whatever the camera's time
        boxes, expected = boxes_at(scene, frame.timestamp_us), nusc.get_boxes(frame.sample_data_token)
        order = {token: i for i, token in enumerate(boxes.annotation_tokens)}
        assert set(order) == {b.token for b in expected}
        for box in expected:
            i = order[box.token]
            np.testing.assert_allclose(boxes.centers_m[i], box.center, atol=1e-6)
            assert abs(boxes.rotations_wxyz[i] @ box.orientation.elements) == pytest.approx(1.0, abs=1e-6)
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("root", REAL, ids=str)
def test_a_real_scene_is_read_with_what_is_missing_said(root: Path) -> None:
    scene = read_scene(root, VERSION, "scene-0103")
    assert (len(scene.agents), len(scene.key_timestamps_us), len(scene.frames["CAM_FRONT"])) == (123, 40, 224)
    assert scene.cameras[0].intrinsics[0, 0] == pytest.approx(1252.8131021185304)
    missing = missing_images(scene)
    assert [40 - len(missing[channel]) for channel in CAMERAS[1:]] == [4] * 5
    assert 224 - len(missing["CAM_FRONT"]) == 4
    assert scene.map.lane_graph is None
    assert scene.map.notes == (NO_EXPANSION,)
    assert scene.map.lookup("drivable", scene.ego.ego_to_global[:, :2, 3]).all()


def test_the_map_comes_from_the_expansion_and_the_ego_drives_on_its_lanes(pg_dataroot: Path) -> None:
    scene = read_scene(pg_dataroot, VERSION, "scene-0001")
    assert scene.map.lane_graph is not None
    xy = scene.ego.ego_to_global[:, :2, 3]
    assert scene.map.lookup("drivable", xy).all()
    first = scene.ego.ego_to_global[0]
    point = scene.map.lane_graph.nearest(first[0, 3], first[1, 3], float(np.arctan2(first[1, 0], first[0, 0])))
    assert point is not None
    assert abs(point.lateral_m) < 0.6


def test_without_an_expansion_the_mask_alone_gives_the_same_road(pg_dataroot: Path, broken: Path) -> None:
    shutil.rmtree(broken / "maps/expansion")
    scene = read_scene(broken, VERSION, "scene-0001")
    assert scene.map.lane_graph is None
    assert scene.map.notes == (NO_EXPANSION,)
    assert scene.map.layers[1:].sum() == 0
    city = build_city(json.loads((pg_dataroot / "proving_ground.json").read_text())["scenes"]["scene-0001"]["city_seed"], 200.0)
    xy = np.random.default_rng(0).uniform(0, 200, (4000, 2))
    agree = scene.map.lookup("drivable", xy) == scene_map(city).lookup("drivable", xy)
    assert agree.mean() > 0.985
    assert 0.1 < scene.map.lookup("drivable", xy).mean() < 0.9


def test_a_mask_crop_beyond_the_map_is_empty_there(tmp_path: Path) -> None:
    from PIL import Image

    mask = np.zeros((40, 60), np.uint8)
    mask[:10, :20] = 255  # the top rows: y from 3 to 4 m
    Image.fromarray(mask).save(tmp_path / "m.png")
    found = read_mask_map(tmp_path / "m.png", (-1.0, -1.0, 8.0, 6.0))
    np.testing.assert_allclose(found.origin_xy_m, [-1.0, -1.0])
    xy = np.array([[0.5, 3.5], [1.9, 3.1], [2.1, 3.5], [0.5, 2.9], [0.5, 4.1], [-0.5, 3.5]])
    np.testing.assert_array_equal(found.lookup("drivable", xy), [True, True, False, False, False, False])


def test_nearest_frames_picks_the_closest_and_clamps(pg_dataroot: Path) -> None:
    scene = read_scene(pg_dataroot, VERSION, "scene-0001")
    own = np.array([f.timestamp_us for f in scene.frames["CAM_BACK"]])
    asked = np.concatenate([[own[0] - 10**6], own[3:5] + 40_000, own[5:6] + 43_000, [own[-1] + 10**6]])
    np.testing.assert_array_equal(nearest_frames(scene, asked)["CAM_BACK"], [0, 3, 4, 6, 12])


def test_missing_images_are_listed_per_channel(pg_dataroot: Path, broken: Path) -> None:
    scene = read_scene(broken, VERSION, "scene-0001")
    kept = scene.frames["CAM_BACK"][2].path
    kept.parent.mkdir(parents=True)
    shutil.copy(pg_dataroot / kept.relative_to(broken), kept)
    missing = missing_images(scene)
    assert missing["CAM_BACK"] == [0, 1, *range(3, 13)]
    assert missing["CAM_FRONT"] == list(range(13))
    assert missing_images(read_scene(pg_dataroot, VERSION, "scene-0001")) == {channel: [] for channel in CAMERAS}


def test_a_missing_folder_version_or_scene_says_what_there_is(pg_dataroot: Path) -> None:
    with pytest.raises(InputError, match="no such nuScenes dataroot"):
        list_scenes(pg_dataroot / "nowhere", VERSION)
    with pytest.raises(InputError, match=r"no version 'v1\.0-trainval'.*versions present: v1\.0-mini"):
        list_scenes(pg_dataroot, "v1.0-trainval")
    with pytest.raises(InputError, match=r"no scene 'scene-9999'.*scene-0001, scene-0002"):
        read_scene(pg_dataroot, VERSION, "scene-9999")


def test_a_missing_or_malformed_table_is_named(broken: Path) -> None:
    path = broken / VERSION / "instance.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match=r"instance\.json.*not valid JSON"):
        list_scenes(broken, VERSION)
    path.write_text('{"token": 1}')
    with pytest.raises(InputError, match=r"instance\.json.*not a list of records"):
        list_scenes(broken, VERSION)
    path.unlink()
    with pytest.raises(InputError, match=r"table instance\.json is missing"):
        list_scenes(broken, VERSION)


@pytest.mark.parametrize("filename", ["../secret.jpg", "/etc/passwd", "samples/../../x.jpg", "C:\\x.jpg", "..\\x.jpg", ""])
def test_a_file_name_that_leaves_the_dataroot_is_refused(broken: Path, filename: str) -> None:
    _edit(broken, "sample_data", lambda rows: rows[5].update(filename=filename))
    token = json.loads((broken / VERSION / "sample_data.json").read_text())[5]["token"]
    with pytest.raises(InputError, match=rf"table sample_data, token {token}: filename"):
        read_scene(broken, VERSION, "scene-0001")


def test_a_map_file_outside_the_dataroot_is_refused_before_it_is_opened(broken: Path) -> None:
    _edit(broken, "map", lambda rows: rows[0].update(filename="../../map.png"))
    with pytest.raises(InputError, match="table map, token"):
        read_scene(broken, VERSION, "scene-0001")


def test_a_location_cannot_lead_out_of_the_dataroot(broken: Path) -> None:
    _edit(broken, "log", lambda rows: rows[0].update(location="../../x"))
    with pytest.raises(InputError, match="table log, token"):
        read_scene(broken, VERSION, "scene-0001")


def test_a_scene_without_key_frames_is_refused(broken: Path) -> None:
    _edit(broken, "scene", lambda rows: rows[0].update(first_sample_token="", nbr_samples=0))
    with pytest.raises(InputError, match="zero key frames"):
        read_scene(broken, VERSION, "scene-0001")


def test_loops_and_dangling_tokens_are_told_and_never_hang(broken: Path) -> None:
    _edit(broken, "sample", lambda rows: rows[2].update(next=rows[0]["token"]))
    with pytest.raises(InputError, match="loop"):
        read_scene(broken, VERSION, "scene-0001")
    _edit(broken, "sample", lambda rows: rows[2].update(next="gone"))
    with pytest.raises(InputError, match="broken tables"):
        read_scene(broken, VERSION, "scene-0001")


def test_a_dangling_annotation_is_told(broken: Path) -> None:
    _edit(broken, "sample_annotation", lambda rows: rows[0].update(sample_token="gone"))
    with pytest.raises(InputError, match="do not fit together"):
        read_scene(broken, VERSION, "scene-0001")


def test_a_rig_without_one_camera_is_refused(broken: Path) -> None:
    sensors = json.loads((broken / VERSION / "sensor.json").read_text())
    back = next(s["token"] for s in sensors if s["channel"] == "CAM_BACK")
    calibrations = json.loads((broken / VERSION / "calibrated_sensor.json").read_text())
    gone = {c["token"] for c in calibrations if c["sensor_token"] == back}

    def drop(rows: list[dict]) -> None:
        rows[:] = [row for row in rows if row["calibrated_sensor_token"] not in gone]

    _edit(broken, "sample_data", drop)
    with pytest.raises(InputError, match="key frame 0 has no CAM_BACK row"):
        read_scene(broken, VERSION, "scene-0001")


def test_tables_changed_on_disk_are_read_again(broken: Path) -> None:
    assert read_scene(broken, VERSION, "scene-0001").description != "Changed"
    _edit(broken, "scene", lambda rows: rows[0].update(description="Changed"))
    assert read_scene(broken, VERSION, "scene-0001").description == "Changed"
