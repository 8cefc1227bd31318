"""The log's own images are found as what they are, at whatever size they are asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dwm.scenes.clips import read_images
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.types import CAMERAS
from evaluators.novelty import score_novelty
from pipelines.logged_looks import logged_looks


def test_a_logged_image_is_found_where_it_was_taken(pg_dataroot: Path):
    scene = read_scene(pg_dataroot, "v1.0-mini", "scene-0001")
    for size_hw in ((128, 224), (64, 112)):
        looks, chosen = logged_looks(scene, size_hw), [7, 2]
        assert looks is not None and [len(camera.thumbnails) for camera in looks] == [len(scene.frames[c]) for c in CAMERAS]
        images = np.stack([read_images(scene, channel, chosen, size_hw) for channel in CAMERAS], axis=1)
        score = score_novelty(images, looks)
        assert score.nearest.tolist() == [[7] * 6, [2] * 6]
        assert score.metrics() == {"novelty.nearest_psnr_db": 100.0, "novelty.near_copies": 1.0}


def test_a_camera_without_images_leaves_novelty_out(pg_dataroot: Path):
    scene = read_scene(pg_dataroot, "v1.0-mini", "scene-0001")
    gone = tuple(replace(frame, path=frame.path.with_name("gone.jpg")) for frame in scene.frames["CAM_BACK"])
    assert logged_looks(replace(scene, frames=scene.frames | {"CAM_BACK": gone}), (128, 224)) is None
