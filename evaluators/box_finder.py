"""What a clip's labels are held against: a network that finds boxes in its frames."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from dwm.models.weights import load_metadata
from evaluators.boxes import Boxes
from evaluators.detector.inference import Detector
from evaluators.detector.weights import KIND
from evaluators.vad.detector import VadDetector

Array = NDArray[np.float64]


class BoxFinder(Protocol):
    """See ``Detector`` and ``VadDetector``."""

    sha256: str
    operating_score: float | None  # from which on its boxes are to be believed; None where it was not measured
    image_hw: tuple[int, int]  # pixels; every image is resized to that
    reach_m: tuple[float, float]  # how far from the ego it can find things, ahead and behind alike, and to either side

    def detect_clip(
        self, images: NDArray[np.uint8], intrinsics: Array, camera_to_ego: Array, ego_to_global: Array
    ) -> list[Boxes]:
        """Boxes of T frames, each in its own ego frame.

        Args:
            images: [T, V, H, W, 3]; intrinsics [V, 3, 3]; camera_to_ego [V, 4, 4]; ego_to_global [T, 4, 4].
        """
        ...


def load_box_finder(path: Path, device: str = "cpu") -> BoxFinder:
    """By what the weights say they are; InputError for any other kind, and for broken ones."""
    kind = load_metadata(path).get("kind", "unknown")
    if kind not in (KIND, "vad"):
        raise InputError(path, f"holds '{kind}' weights", f"give a detector's, of kind 'vad' or '{KIND}'")
    return Detector.load(path, device) if kind == KIND else VadDetector.load(path, device)
