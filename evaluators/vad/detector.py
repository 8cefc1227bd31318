"""VAD as a detector of objects in single key frames, which a clip's labels are held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.models.weights import load_metadata, load_model, weights_sha256
from dwm.scenes.proving_ground.rig import LIDAR_TO_EGO
from dwm.scenes.types import CAMERAS, Camera
from evaluators.boxes import Boxes
from evaluators.vad.coders import decode_objects
from evaluators.vad.inputs import VadFrame, frame_of, since
from evaluators.vad.model import VAD

Array = NDArray[np.float64]


class VadDetector:
    """Reads each key frame alone: whoever scores a clip may look at it in any steps.

    Its frame is that of a LiDAR where nuScenes has one, whatever the rig. Attributes: ``evaluators.box_finder``.
    """

    def __init__(self, model: VAD, device: str = "cpu", sha256: str = "", operating_score: float | None = None) -> None:
        self.model, self.device, self.sha256, self.operating_score = model.eval().to(device), device, sha256, operating_score
        left, behind, _, right, ahead, _ = model.config.range_m
        x = float(LIDAR_TO_EGO[0, 3])
        self.image_hw, self.reach_m = model.config.image_hw, (min(ahead + x, -behind - x), min(-left, right))

    @staticmethod
    def load(path: Path, device: str = "cpu") -> VadDetector:
        """Raises InputError for broken or foreign weights, and for those of a network that reads a CAN bus."""
        model, config = load_model(path, "vad")
        if config.can_motion:
            raise InputError(path, "reads the car's motion, which one key frame does not tell", "train with can_motion off")
        told = load_metadata(path).get("operating_score")
        return VadDetector(model, device, weights_sha256(path), None if told is None else float(told))

    def detect(self, images: NDArray[np.uint8], intrinsics: Array, camera_to_ego: Array, ego_to_global: Array) -> Boxes:
        """Boxes in the ego frame.

        Args:
            images: [V, H, W, 3] in ring order; intrinsics [V, 3, 3] for them; camera_to_ego [V, 4, 4]; ego_to_global [4, 4].
        """
        height, width = images.shape[1:3]
        cameras = [
            Camera(channel=channel, intrinsics=matrix, camera_to_ego=pose, width_px=width, height_px=height)
            for channel, matrix, pose in zip(CAMERAS, intrinsics, camera_to_ego, strict=True)
        ]
        poses = np.repeat(ego_to_global[None], len(cameras), axis=0)
        return self.boxes_of(frame_of(images, cameras, poses, LIDAR_TO_EGO, ego_to_global, self.model.config)).moved(
            LIDAR_TO_EGO
        )

    @torch.inference_mode()
    def boxes_of(self, frame: VadFrame) -> Boxes:
        """Boxes in the frame's own LiDAR frame."""
        outputs = self.model(
            frame.images_V3hw[None].to(self.device), frame.lidar_to_image_V44[None].to(self.device),
            torch.from_numpy(since(frame.can_bus_18, None)).float()[None].to(self.device), None,
        )  # fmt: skip
        return decode_objects(outputs)[0].boxes

    def detect_clip(
        self, images: NDArray[np.uint8], intrinsics: Array, camera_to_ego: Array, ego_to_global: Array
    ) -> list[Boxes]:
        """Boxes of T frames, each in its own ego frame: images [T, V, H, W, 3], ego_to_global [T, 4, 4], the cameras as above."""
        return [self.detect(frame, intrinsics, camera_to_ego, pose) for frame, pose in zip(images, ego_to_global, strict=True)]
