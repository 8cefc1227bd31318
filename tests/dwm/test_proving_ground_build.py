import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.can_bus.can_bus_api import NuScenesCanBus
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.utils.geometry_utils import points_in_box
from PIL import Image

from dwm.errors import InputError
from dwm.geometry import yaw_from_rotation
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.proving_ground import build
from dwm.scenes.proving_ground.render import RenderedViews
from dwm.scenes.types import CAMERAS

VERSION = "v1.0-mini"


class FlatRenderer:
    """Grey images and one LiDAR point: enough where only tables matter."""

    def __init__(self, fail_after: int = 10**9) -> None:
        self.left = fail_after

    def render(self, cameras, ego_to_global, agents, weather, seed):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of memory")
        shape = (len(cameras), cameras[0].height_px, cameras[0].width_px)
        image = np.full((*shape, 3), seed % 256, np.uint8)
        return RenderedViews(image=image, depth_m=np.ones(shape, np.float32), instance=np.full(shape, -1, np.int32))

    def scan(self, lidar_to_global, agents, weather, seed):
        return np.array([[5.0, 0.0, -1.0, 30.0, 4.0]], np.float32)


@pytest.fixture(scope="module")
def nusc(pg_dataroot: Path) -> NuScenes:
    return NuScenes(VERSION, str(pg_dataroot), verbose=False)


@pytest.fixture(scope="module", autouse=True)
def _cities_once() -> Iterator[None]:
    """A city takes seconds and never changes: build each once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_city", lru_cache(build.build_city))
        yield


def _build(out: Path, n_scenes: int = 1, seed: int = 5, renderer: FlatRenderer | None = None, **options) -> Path:
    settings = {"size_hw": (16, 28), "duration_s": 0.5, "n_agents": 8, "city_size_m": 200.0, "progress": False, **options}
    make = None if renderer is None else lambda city: renderer
    return build.build_world(out, n_scenes, seed, make_renderer=make, **settings)


def test_the_devkit_loads_every_table_and_finds_every_file(nusc: NuScenes, pg_dataroot: Path) -> None:
    counts = {name: len(getattr(nusc, name)) for name in nusc.table_names}
    assert (counts["category"], counts["attribute"], counts["visibility"]) == (23, 8, 4)
    assert (counts["scene"], counts["log"], counts["map"], counts["sensor"], counts["calibrated_sensor"]) == (2, 2, 2, 7, 14)
    assert counts["sample"] == 2 * 3
    assert counts["sample_data"] == counts["ego_pose"] == 2 * (6 * 13 + 3)
    assert all((pg_dataroot / row["filename"]).is_file() for row in nusc.sample_data)


def test_images_have_the_size_and_place_that_their_rows_say(nusc: NuScenes, pg_dataroot: Path) -> None:
    for row in nusc.sample_data:
        if row["fileformat"] == "jpg":
            with Image.open(pg_dataroot / row["filename"]) as image:
                assert image.size == (row["width"], row["height"]) == (56, 32)
            assert row["filename"].startswith("samples/" if row["is_key_frame"] else "sweeps/")


def test_sensor_chains_run_through_the_scene_at_12_hz_and_point_to_the_next_key_frame(nusc: NuScenes) -> None:
    for sample in (nusc.get("sample", scene["first_sample_token"]) for scene in nusc.scene):
        for channel in CAMERAS:
            token, times = sample["data"][channel], []
            while token:
                row = nusc.get("sample_data", token)
                own = nusc.get("sample", row["sample_token"])
                assert -43_000 <= row["timestamp"] - own["timestamp"] <= 0 or not row["is_key_frame"]
                assert row["timestamp"] <= own["timestamp"]
                times.append(row["timestamp"])
                token = row["next"]
            assert len(times) == 13
            np.testing.assert_allclose(np.diff(times), 1e6 / 12, atol=1.0)


def test_instances_know_their_first_and_last_annotation_and_their_count(nusc: NuScenes) -> None:
    for instance in nusc.instance:
        token, chain = instance["first_annotation_token"], []
        while token:
            chain.append(nusc.get("sample_annotation", token))
            token = chain[-1]["next"]
        assert len(chain) == instance["nbr_annotations"]
        assert chain[-1]["token"] == instance["last_annotation_token"]
        assert {row["instance_token"] for row in chain} == {instance["token"]}
        assert [row["prev"] for row in chain] == ["", *(row["token"] for row in chain[:-1])]


def test_num_lidar_pts_is_what_the_devkit_counts_in_the_stored_sweep(nusc: NuScenes) -> None:
    total = 0
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = np.fromfile(path, np.float32).reshape(-1, 5)[:, :3].T
        for box in boxes:
            counted = int(points_in_box(box, points).sum())
            assert nusc.get("sample_annotation", box.token)["num_lidar_pts"] == counted
            total += counted
    assert total > 100


def test_annotated_agents_are_seen_by_lidar_or_cameras_and_stand_on_the_ground(nusc: NuScenes) -> None:
    for row in nusc.sample_annotation:
        assert row["num_lidar_pts"] >= 1 or int(row["visibility_token"]) > 1
        assert row["translation"][2] == pytest.approx(row["size"][2] / 2, abs=1e-3)
        assert len(row["attribute_tokens"]) == (0 if row["category_name"].startswith("movable_object") else 1)


def test_a_perfect_submission_scores_one_in_every_class_with_ground_truth(nusc: NuScenes, tmp_path: Path) -> None:
    scene = next(s for s in nusc.scene if s["name"] == "scene-0002")
    tokens = [s["token"] for s in nusc.sample if s["scene_token"] == scene["token"]]
    results = {token: _perfect_boxes(nusc, token) for token in tokens}
    meta = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": False}
    (tmp_path / "submission.json").write_text(json.dumps({"meta": meta, "results": results}))
    evaluation = DetectionEval(
        nusc, config_factory("detection_cvpr_2019"), str(tmp_path / "submission.json"), "pg_val", str(tmp_path), verbose=False
    )
    metrics, _ = evaluation.evaluate()
    present = {box.detection_name for boxes in evaluation.gt_boxes.boxes.values() for box in boxes}
    assert len(present) >= 2
    for name in evaluation.cfg.class_names:
        assert metrics.mean_dist_aps[name] == pytest.approx(1.0 if name in present else 0.0)


def _perfect_boxes(nusc: NuScenes, sample_token: str) -> list[dict]:
    from nuscenes.eval.detection.utils import category_to_detection_name

    boxes = []
    for token in nusc.get("sample", sample_token)["anns"]:
        row = nusc.get("sample_annotation", token)
        if row["num_lidar_pts"] == 0:
            continue  # the evaluation drops such ground truth
        velocity = np.nan_to_num(nusc.box_velocity(token)[:2]).tolist()
        attribute = nusc.get("attribute", row["attribute_tokens"][0])["name"] if row["attribute_tokens"] else ""
        boxes.append(
            {"sample_token": sample_token, "translation": row["translation"], "size": row["size"], "rotation": row["rotation"],
             "velocity": velocity, "detection_name": category_to_detection_name(row["category_name"]), "detection_score": 0.9,
             "attribute_name": attribute}
        )  # fmt: skip
    return boxes


def test_the_map_expansion_has_lanes_where_the_ego_drives(nusc: NuScenes, pg_dataroot: Path) -> None:
    locations = {log["location"] for log in nusc.log}
    assert len(locations) == 2
    for scene in nusc.scene:
        sample = nusc.get("sample", scene["first_sample_token"])
        location = nusc.get("log", scene["log_token"])["location"]
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        x, y, _ = nusc.get("ego_pose", lidar["ego_pose_token"])["translation"]
        nusc_map = NuScenesMap(str(pg_dataroot), location)
        assert nusc_map.get_closest_lane(x, y, radius=3) != ""
        assert nusc_map.layers_on_point(x, y)["drivable_area"] != ""


def test_the_can_bus_repeats_the_ego_poses(nusc: NuScenes, pg_dataroot: Path) -> None:
    can = NuScenesCanBus(str(pg_dataroot))
    poses = can.get_messages("scene-0001", "pose")
    scene = read_scene(pg_dataroot, VERSION, "scene-0001")
    times = np.array([p["utime"] for p in poses])
    np.testing.assert_allclose(np.diff(times), 20_000, atol=1)
    expected = scene.ego.at(times)
    np.testing.assert_allclose([p["pos"] for p in poses], expected[:, :3, 3], atol=0.02)
    np.testing.assert_allclose(2 * np.arctan2([p["orientation"][3] for p in poses], [p["orientation"][0] for p in poses]),
                               yaw_from_rotation(expected), atol=0.01)  # fmt: skip
    speed = np.linalg.norm(np.diff(expected[:, :2, 3], axis=0), axis=1) / 0.02
    np.testing.assert_allclose([p["vel"][0] for p in poses[1:]], speed, atol=0.35)
    for name in can.all_messages:
        assert len(can.get_messages("scene-0001", name)) > 0


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    a, b = (_build(tmp_path / name) for name in "ab")
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file())
    assert all((a / name).read_bytes() == (b / name).read_bytes() for name in files)


def test_another_seed_gives_another_world_and_a_world_without_labels_still_loads(tmp_path: Path) -> None:
    a, b = (_build(tmp_path / str(seed), seed=seed, renderer=FlatRenderer()) for seed in (5, 6))
    assert (a / VERSION / "ego_pose.json").read_bytes() != (b / VERSION / "ego_pose.json").read_bytes()
    scene = read_scene(a, VERSION, "scene-0001")
    assert scene.agents == ()
    assert len(scene.frames["CAM_BACK"]) == 7


def test_a_folder_with_content_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        _build(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["keep.txt"]


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        _build(tmp_path / "world", renderer=FlatRenderer(fail_after=5))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_scenes", 0), ("duration_s", 0.0), ("size_hw", (0, 56)), ("n_agents", 0), ("version", "../x"), ("seed", -1)],
)
def test_options_that_make_no_world_are_named(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        _build(tmp_path / "world", **{name: value})
    assert list(tmp_path.iterdir()) == []


def test_splits_put_the_last_fifth_into_validation() -> None:
    names = build.scene_names(10)
    assert build.splits(names) == {"pg_train": names[:8], "pg_val": names[8:], "pg_all": names}
    two = {"pg_train": ["scene-0001"], "pg_val": ["scene-0002"], "pg_all": ["scene-0001", "scene-0002"]}
    assert build.splits(names[:2]) == two
    assert set(map(tuple, build.splits(names[:1]).values())) == {("scene-0001",)}


def test_scene_names_skip_the_numbers_that_the_devkit_refuses() -> None:
    names = build.scene_names(170)
    assert len(set(names)) == 170
    assert "scene-0161" not in names
    assert names[160] == "scene-0169"


def test_six_scenes_see_all_weathers_at_hours_that_fit() -> None:
    weathers = [build.weather_of(4, i) for i in range(6)]
    assert weathers[0] == "day"
    assert set(weathers) == {"day", "dusk", "night", "rain", "fog"}
    assert build.start_time(0, "boston-seaport", "night").hour == (22 + 4) % 24


def test_validation_cities_of_two_world_seeds_differ() -> None:
    seeds = [build.first_city_seed(seed) + c for seed in range(5) for c in range(4)]
    assert len(set(seeds)) == 20
