"""Running a detector on decoded images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dwm.errors import InputError
from dwm.scenes.clips import resize
from evaluators.boxes import Boxes
from evaluators.detector.decode import DecodeConfig, decode, images_to_tensor
from evaluators.detector.model import BevDetector, Rigs, Taps
from evaluators.detector.samples import KeyFrames
from evaluators.detector.weights import load_detector, sha256_of

Array = NDArray[np.float64]


class Detector:
    """A loaded detector; ``sha256`` names its weights in protocol cards.

    ``operating_score`` is the score from which on its boxes are to be believed; None where it was not measured.
    """

    def __init__(
        self, model: BevDetector, device: str = "cpu", settings: DecodeConfig | None = None, sha256: str = "",
        operating_score: float | None = None,
    ) -> None:  # fmt: skip
        self.model, self.device, self.settings, self.sha256 = model.eval().to(device), device, settings, sha256
        self.operating_score = operating_score
        self.image_hw = model.config.image_hw
        self.reach_m = (model.config.half_range_m, model.config.half_range_m)
        self._taps: tuple[bytes, Taps] | None = None

    @staticmethod
    def load(path: Path, device: str = "cpu") -> Detector:
        """Raises InputError for broken or foreign weights."""
        model, facts = load_detector(path)
        return Detector(model, device, sha256=sha256_of(path), operating_score=facts.get("operating_score"))

    def detect(self, images: NDArray[np.uint8], intrinsics: Array, camera_to_ego: Array) -> Boxes:
        """Boxes in the present ego frame.

        Args:
            images: [V, H, W, 3] uint8, or [F, V, H, W, 3] with the present key frame first.
            intrinsics: [V, 3, 3] or [F, V, 3, 3] for these images.
            camera_to_ego: [V, 4, 4] or [F, V, 4, 4], all into the present ego frame.
        """
        images, intrinsics, camera_to_ego = self._with_history(images, intrinsics, camera_to_ego)
        images, intrinsics = self._resized(images, intrinsics)
        rigs = rigs_of(intrinsics[None], camera_to_ego[None], self.device)
        with torch.inference_mode():
            outputs = self.model(images_to_tensor(images)[None].to(self.device), self._cached_taps(rigs))
            return decode(outputs, self.model.config, self.settings)[0]

    def detect_clip(
        self, images: NDArray[np.uint8], intrinsics: Array, camera_to_ego: Array, ego_to_global: Array
    ) -> list[Boxes]:
        """Boxes at T successive key frames (2 Hz), each in its own ego frame.

        Args:
            images: [T, V, H, W, 3]; intrinsics [V, 3, 3]; camera_to_ego [V, 4, 4]; ego_to_global [T, 4, 4].
        """
        count, frames = len(images), self.model.config.frames
        sequence = KeyFrames(
            images=images, intrinsics=np.broadcast_to(intrinsics, (count, *intrinsics.shape)),
            camera_to_ego=np.broadcast_to(camera_to_ego, (count, *camera_to_ego.shape)), ego_to_global=ego_to_global,
            previous=np.maximum(np.arange(count) - 1, 0), boxes=(), tokens=tuple(str(t) for t in range(count)),
        )  # fmt: skip
        return [self.detect(*sequence.history(t, frames)) for t in range(count)]

    def detect_key_frames(self, frames: KeyFrames) -> dict[str, Boxes]:
        """Boxes by sample token, in the ego frame of each sample."""
        return {token: self.detect(*frames.history(i, self.model.config.frames)) for i, token in enumerate(frames.tokens)}

    def _with_history(
        self, images: NDArray[np.uint8], intrinsics: Array, camera_to_ego: Array
    ) -> tuple[NDArray[np.uint8], Array, Array]:
        if images.ndim == 4:
            images, intrinsics, camera_to_ego = images[None], intrinsics[None], camera_to_ego[None]
        missing = self.model.config.frames - len(images)
        if missing < 0:
            problem = f"{len(images)} key frames given to a detector of {self.model.config.frames}"
            raise InputError("detector", problem, "give at most that many, the present one first")
        # At the start of a clip there is no past: the present stands in for it, as in training.
        order = [*range(len(images)), *[len(images) - 1] * missing]
        return images[order], intrinsics[order], camera_to_ego[order]

    def _resized(self, images: NDArray[np.uint8], intrinsics: Array) -> tuple[NDArray[np.uint8], Array]:
        h, w = self.image_hw
        if images.shape[2:4] == (h, w):
            return images, intrinsics
        scale = np.diag([w / images.shape[3], h / images.shape[2], 1.0])
        return np.stack([[resize(view, (h, w)) for view in frame] for frame in images]), scale @ intrinsics

    def _cached_taps(self, rigs: Rigs) -> Taps:
        key = rigs.intrinsics_BFV33.cpu().numpy().tobytes() + rigs.camera_to_ego_BFV44.cpu().numpy().tobytes()
        if self._taps is None or self._taps[0] != key:
            self._taps = (key, self.model.taps(rigs))
        return self._taps[1]


def rigs_of(intrinsics: Array, camera_to_ego: Array, device: str) -> Rigs:
    """Rigs from arrays [B, F, V, 3, 3] and [B, F, V, 4, 4]."""

    def tensor(values: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)

    return Rigs(intrinsics_BFV33=tensor(intrinsics), camera_to_ego_BFV44=tensor(camera_to_ego))
