"""The trained network on finished video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dwm.models.weights import load_model, weights_sha256
from dwm.scenes.clips import resize
from evaluators.ego_motion.network import EgoMotion, ground_of, to_input

Array = NDArray[np.float64]
_BATCH = 16


class EgoMotionReader:
    """A loaded network; ``sha256`` names its weights in protocol cards."""

    def __init__(self, model: EgoMotion, device: str = "cpu", sha256: str = "") -> None:
        self.model, self.device, self.sha256 = model.eval().to(device), device, sha256

    @staticmethod
    def load(path: Path, device: str = "cpu") -> EgoMotionReader:
        """Raises InputError for broken or foreign weights."""
        return EgoMotionReader(load_model(path, "ego_motion")[0], device, weights_sha256(path))

    @torch.inference_mode()
    def steps(self, images: NDArray[np.uint8], intrinsics: Array, camera_to_ego: Array) -> Array:
        """Steps [T - 1, 3] between successive images [T, V, H, W, 3] of cameras [V, 3, 3], [V, 4, 4], up to half a second apart."""
        config = self.model.config
        height, width = config.image_hw
        scale = np.diag([width / images.shape[3], height / images.shape[2], 1.0])
        small = to_input(np.stack([[resize(view, config.image_hw) for view in frame] for frame in images])).to(self.device)
        cameras = [torch.from_numpy(part[None]).float() for part in (scale @ intrinsics, camera_to_ego)]
        ground = ground_of(cameras[0], cameras[1]).to(self.device)
        parts = [
            self.model(before, after, ground.expand(len(before), -1, -1, -1))
            for before, after in zip(small[:-1].split(_BATCH), small[1:].split(_BATCH), strict=True)
        ]
        return torch.cat(parts).double().cpu().numpy()
