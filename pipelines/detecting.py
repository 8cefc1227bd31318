"""`roadreel detect`: a nuScenes detection submission of a log's key frames by any monocular network of mmdet3d."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray
from tqdm import tqdm

from dwm.errors import InputError
from dwm.geometry import invert
from dwm.scenes.clips import read_image, resize
from dwm.scenes.dataroot import open_dataroot
from dwm.scenes.nuscenes import read_scene
from dwm.scenes.types import Scene
from evaluators.boxes import Boxes
from evaluators.submission import write_submission

Array = NDArray[np.float64]


class FindsBoxes(Protocol):
    """Six RGB images of any size, intrinsics [V, 3, 3] for them and cameras [V, 4, 4] in the ego frame in; boxes there out."""

    def detect(self, images: Sequence[NDArray[np.uint8]], intrinsics: Array, camera_to_ego: Array) -> Boxes: ...


def detect_logs(
    dataroot: Path,
    version: str,
    scenes: Sequence[str],
    detector: FindsBoxes,
    out: Path,
    *,
    scale: float = 1.0,
    skip_missing: bool = False,
) -> str:
    """Write the submission of all key frames of scenes, of all scenes where none is named; what was done, in words.

    Each image counts at its own time: a camera's boxes are moved by where the ego was when it fired.

    Args:
        scale: of the images that the network sees, above 0 and at most 1.
        skip_missing: list a key frame without boxes where one of its six images is not on disk; else that is an InputError.
    """
    if not 0 < scale <= 1:
        raise InputError("scale", f"{scale} of an image", "give more than 0 and at most 1")
    names = list(scenes) or [row["name"] for row in open_dataroot(dataroot, version).scene]
    found: dict[str, Boxes] = {}
    poses: dict[str, Array] = {}
    blind = 0
    for name in tqdm(names, desc="scenes", disable=None):
        scene = read_scene(dataroot, version, name, 1.0)
        for k, (token, pose) in enumerate(zip(scene.sample_tokens, scene.ego.at(scene.key_timestamps_us), strict=True)):
            poses[token], missing = pose, [path for path in key_images(scene, k) if not path.is_file()]
            if missing and not skip_missing:
                raise InputError(missing[0], "no such image", "unpack it, or list its key frame without boxes: --skip-missing")
            blind += bool(missing)
            found[token] = Boxes.empty() if missing else detect_key_frame(detector, scene, k, scale)
    write_submission(out, found, poses)
    boxes, without = sum(map(len, found.values())), f", {blind} of them without images" if blind else ""
    return f"{out}: {boxes} boxes in {len(found)} key frames{without}"


def key_images(scene: Scene, k: int) -> list[Path]:
    """The six images of a key frame."""
    return [shot.path for shot in scene.key_shots(k)]


def detect_key_frame(detector: FindsBoxes, scene: Scene, k: int, scale: float = 1.0) -> Boxes:
    """Boxes of a logged key frame in the ego frame of its own time; InputError for an image that cannot be read."""
    shots = scene.key_shots(k)
    images = [read_image(shot.path) for shot in shots]
    images = [resize(image, (round(scale * image.shape[0]), round(scale * image.shape[1]))) for image in images]
    rig = [camera.resized(image.shape[1], image.shape[0]) for camera, image in zip(scene.cameras, images, strict=True)]
    ego = scene.ego.at(scene.key_timestamps_us[k : k + 1])[0]
    fired_to_ego = invert(ego) @ np.stack([shot.ego_to_global for shot in shots])
    mounted = np.stack([camera.camera_to_ego for camera in rig])
    return detector.detect(images, np.stack([camera.intrinsics for camera in rig]), fired_to_ego @ mounted)


def options_of(settings: Sequence[str]) -> dict[str, Any]:
    """``model.test_cfg.score_thr=0.1`` and the like by name, values as YAML; InputError for anything else."""
    out: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name and equals):
            raise InputError(setting, "not NAME=VALUE", "e.g. --set model.test_cfg.score_thr=0.1")
        try:
            out[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(setting, f"its value is no YAML ({str(error).splitlines()[0]})", "quote it") from error
    return out
