"""Which scenes and key frames a named split holds."""

from __future__ import annotations

import json
from pathlib import Path

from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.splits import create_splits_scenes

from dwm.errors import InputError
from dwm.scenes.dataroot import open_dataroot
from dwm.scenes.nuscenes import list_scenes


def scenes_of_split(dataroot: Path, version: str, split: str) -> list[str]:
    """Scene names of a split that the dataroot holds, from ``{version}/splits.json`` or the devkit's own splits.

    Raises:
        InputError: unknown split, one that is the devkit's and another in splits.json, or none of its scenes present.
    """
    path = dataroot / version / "splits.json"
    custom: dict[str, list[str]] = json.loads(path.read_text()) if path.is_file() else {}
    official = create_splits_scenes()
    if split in custom and custom[split] != official.get(split, custom[split]):
        raise InputError(path, f"its '{split}' is not the devkit's", "give splits of your own other names")
    splits = {**official, **custom}
    if split not in splits:
        raise InputError(
            path, f"no split '{split}'", f"splits here: {', '.join(custom) or 'none'}; or one of the devkit's, e.g. val"
        )
    present = list_scenes(dataroot, version)
    names = [name for name in present if name in set(splits[split])]
    if not names:
        raise InputError(
            dataroot / version, f"no scene of split '{split}' is present", "choose another split or restore the scenes"
        )
    return names


def samples_of_split(dataroot: Path, version: str, split: str) -> list[str]:
    """Sample tokens of a split that the devkit's evaluations can score.

    Raises:
        InputError: as ``scenes_of_split``; a sample without LIDAR_TOP, whose ego pose counts; an annotation with several attributes; no
            annotation at all.
    """
    names, nusc = set(scenes_of_split(dataroot, version, split)), open_dataroot(dataroot, version)
    scenes = {scene["token"] for scene in nusc.scene if scene["name"] in names}
    samples = [sample for sample in nusc.sample if sample["scene_token"] in scenes]
    tables, unpack = dataroot / version, "unpack the tables again"
    for sample in samples:
        if "LIDAR_TOP" not in sample["data"]:
            raise InputError(
                tables, f"sample {sample['token']} has no LIDAR_TOP row, whose ego pose boxes are told from", unpack
            )
        for token in sample["anns"]:
            annotation = nusc.get("sample_annotation", token)
            scored = category_to_detection_name(annotation["category_name"]) is not None
            if scored and len(annotation["attribute_tokens"]) > 1:
                raise InputError(
                    tables, f"annotation {token} has more than one attribute, which the devkit refuses", "leave one"
                )
    if not any(sample["anns"] for sample in samples):
        raise InputError(
            tables, f"split '{split}' has no annotation", "there is nothing to score against: choose another split"
        )
    return [sample["token"] for sample in samples]
