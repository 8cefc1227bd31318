"""Features for Frechet distances where no public network is at hand: FID-pg and FVD-pg, from the detector's image encoder.

They are neither FID nor FVD and not comparable with them: other network, other features, other scale. What they can tell is
which of two sets of proving-ground images is nearer to true ones, at equal sample counts and equal weights.

FID-pg: one image, the ``stride8`` stage of the encoder, averaged over the image [C].
FVD-pg: ``CLIP_FRAMES`` successive frames of one camera, the same features averaged over time [C], and the mean over
places and adjacent frames of |change| [C]. Changes are taken before averaging over the image, so that flicker and
standing still count even where the mean colour stays.
Images are read at the network's own size: no resizing, no cropping. Shapes: N images, T frames, V views, C channels.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from dwm.errors import InputError
from evaluators.detector.decode import images_to_tensor
from evaluators.detector.inference import Detector
from evaluators.detector.model import normalised
from evaluators.frechet import FrechetScore
from evaluators.protocol import ProtocolCard

Array = NDArray[np.float64]
Images = NDArray[np.uint8]
CLIP_FRAMES = 8
LAYER = "images.stride8"
_BATCH = 12


class FrechetFeatures:
    """The extractor; ``sha256`` is that of the detector's weights and ``resize`` what happens to images: nothing."""

    resize = "none"

    def __init__(self, detector: Detector) -> None:
        self._encoder, self._device = detector.model.images, detector.device
        self.image_hw, self.sha256 = detector.model.config.image_hw, detector.sha256

    def of_images(self, images: Images) -> Array:
        """FID-pg features [N, C] of uint8 images [..., H, W, 3], all leading axes counted as samples."""
        return self._maps(images.reshape(-1, *images.shape[-3:])).mean((-2, -1)).double().numpy()

    def of_video(self, video: Images) -> Array:
        """FVD-pg features [V * (T // 8), 2 C] of successive uint8 frames [T, V, H, W, 3]; a shorter rest is left out."""
        clips = len(video) // CLIP_FRAMES
        if not clips:
            raise InputError("FVD-pg", f"{len(video)} frames", f"give {CLIP_FRAMES} successive frames or more")
        used = rearrange(video[: clips * CLIP_FRAMES], "(n t) v h w c -> (v n) t h w c", t=CLIP_FRAMES)
        return self.of_clips(used)

    def of_clips(self, clips: Images) -> Array:
        """FVD-pg features [N, 2 C] of uint8 clips [N, T, H, W, 3], T successive frames of one camera each."""
        return np.stack([_clip_features(self._maps(clip)) for clip in clips])

    def card(
        self, metric: str, score: FrechetScore, *, frames: int, frames_per_second: float, cameras: tuple[str, ...], seed: int
    ) -> ProtocolCard:
        """How a distance came about; ``frames`` of each clip were scored."""
        return ProtocolCard(
            metric=metric, samples=score.clips, unit="clip", frames=frames, frames_per_second=frames_per_second, cameras=cameras,
            image_hw=self.image_hw, resize=self.resize, source="generated frames", weights_sha256=self.sha256, seed=seed,
            interval=score.interval, notes=(f"layer {LAYER}", *score.notes()),
        )  # fmt: skip

    @torch.inference_mode()
    def _maps(self, images: Images) -> Tensor:
        """Feature maps [N, C, h, w] of images [N, H, W, 3]."""
        if images.shape[1:] != (*self.image_hw, 3) or images.dtype != np.uint8:
            problem = f"images {images.dtype}{images.shape[1:]}, the extractor reads uint8 {(*self.image_hw, 3)}"
            raise InputError("frechet features", problem, "give frames as they are scored, without resizing")
        batches = [images_to_tensor(images[i : i + _BATCH]).to(self._device) for i in range(0, len(images), _BATCH)]
        return torch.cat(
            [self._encoder.stride8(self._encoder.stride4(self._encoder.stem(normalised(b)))) for b in batches]
        ).cpu()


def _clip_features(maps_TCHW: Tensor) -> Array:
    change = maps_TCHW.diff(dim=0).abs().mean((0, 2, 3))
    return torch.cat([maps_TCHW.mean((0, 2, 3)), change]).double().numpy()
