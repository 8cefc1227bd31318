"""Error against the true video of a path that nobody drove: PSNR and SSIM per frame and camera.

Shapes: T frames, V views, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dwm.errors import InputError
from evaluators.buckets import BUCKET_S, bucket_metrics

Array = NDArray[np.float64]
Images = NDArray[np.uint8]
# Identical images would be infinite, which no table or average can hold.
PSNR_CAP_DB = 100.0
_SSIM_SIGMA, _SSIM_WINDOW = 1.5, 11


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterfactualScore:
    """Fidelity of a generated clip to the rendered truth of its own path."""

    psnr_db: Array  # [T, V]
    ssim: Array  # [T, V]
    fps: float
    condition_frames: int  # given to the model; left out of the averages

    def metrics(self, prefix: str = "counterfactual.", bucket_s: float = BUCKET_S) -> dict[str, float]:
        """Means over generated frames, per stretch of ``bucket_s`` seconds, and the worst camera."""
        psnr, ssim = self.psnr_db.copy(), self.ssim.copy()
        psnr[: self.condition_frames] = ssim[: self.condition_frames] = np.nan
        generated = self.psnr_db[self.condition_frames :]
        if not len(generated):
            raise InputError("counterfactual", "the clip holds condition frames only", "generate at least one frame")
        flat = {"psnr_db": float(generated.mean()), "ssim": float(self.ssim[self.condition_frames :].mean())}
        flat["psnr_db.worst_camera"] = float(generated.mean(0).min())
        flat |= bucket_metrics("psnr_db", psnr, self.fps, bucket_s) | bucket_metrics("ssim", ssim, self.fps, bucket_s)
        return {prefix + name: value for name, value in flat.items()}


def psnr_db(images: Images, truth: Images) -> Array:
    """10 log10(255^2 / MSE) of uint8 images [..., H, W, 3], per image, capped at 100 dB for equal images."""
    _check(images, truth)
    flat = zip(images.reshape(-1, *images.shape[-3:]), truth.reshape(-1, *truth.shape[-3:]), strict=True)
    # Image by image: a minute of six cameras does not fit in float twice.
    errors = np.array([np.mean(np.square(a.astype(np.float32) - b), dtype=np.float64) for a, b in flat])
    with np.errstate(divide="ignore"):
        values = 10 * np.log10(255.0**2 / errors)
    return np.minimum(values, PSNR_CAP_DB).reshape(images.shape[:-3])


def ssim(images: Images, truth: Images) -> Array:
    """Structural similarity of the luma of uint8 images [..., H, W, 3], per image: Gaussian window of 11, sigma 1.5.

    Wang et al., TIP 2004, with K1 = .01, K2 = .03 and population moments; windows that leave the image are not counted.
    """
    _check(images, truth)
    if min(images.shape[-3:-1]) < _SSIM_WINDOW:
        raise InputError(
            "ssim", f"images of {images.shape[-3:-1]} pixels do not fit its window", f"give at least {_SSIM_WINDOW}"
        )
    flat = zip(images.reshape(-1, *images.shape[-3:]), truth.reshape(-1, *truth.shape[-3:]), strict=True)
    return np.array([_ssim(luma(a), luma(b)) for a, b in flat]).reshape(images.shape[:-3])


def luma(image: Images) -> NDArray[np.float32]:
    """Rec. 601 luma [H, W] of an RGB image."""
    return image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def score_counterfactual(images: Images, truth: Images, fps: float, condition_frames: int = 1) -> CounterfactualScore:
    """PSNR and SSIM of generated [T, V, H, W, 3] against true frames of the same path."""
    return CounterfactualScore(
        psnr_db=psnr_db(images, truth), ssim=ssim(images, truth), fps=fps, condition_frames=condition_frames
    )


def _ssim(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    def blur(x: NDArray[np.float32]) -> Array:
        return np.asarray(cv2.GaussianBlur(x.astype(np.float64), (_SSIM_WINDOW, _SSIM_WINDOW), _SSIM_SIGMA), np.float64)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    )
    edge = _SSIM_WINDOW // 2
    return float(similarity[edge:-edge, edge:-edge].mean())


def _check(images: Images, truth: Images) -> None:
    if images.shape != truth.shape or images.dtype != np.uint8 or truth.dtype != np.uint8:
        problem = f"images {images.dtype}{images.shape} against truth {truth.dtype}{truth.shape}"
        raise InputError("counterfactual", problem, "give uint8 arrays of one shape")
