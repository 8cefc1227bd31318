"""Settings of a roll-out: how a minute of video is put together from short windows."""

from __future__ import annotations

from dataclasses import dataclass

STRATEGY_NAMES = ("recurrent", "coarse_to_refine", "divide_and_conquer", "hierarchical")
MEMORY_MODES = ("past", "none", "log")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """Everything about the sampler that changes pixels."""

    strategy: str = "recurrent"  # recurrent | coarse_to_refine | divide_and_conquer | hierarchical
    window_frames: int = 24  # frames denoised together: every window's memory is resampled once, and resampling blurs
    condition_frames: int = 1  # clean frames at the start of each window, taken from the one before
    logged_frames: int = 1  # leading frames of the video that are the log's own pictures (MiLA: 1 or 4; MaskGWM: up to 3)
    steps: int = 1  # denoising steps per window
    precision: str = "auto"  # of the networks' products: bfloat16, float32, or auto, which is the first on a GPU
    guidance: float = 1.0  # classifier-free guidance scale; 1 is off
    layout: bool = True  # condition on projected boxes and map lines
    # past: re-project earlier frames along the new path; log: and what the whole log's LiDAR and cameras saw, also later; none
    memory: str = "past"
    appearance: bool = True  # lay the first frame's look over the layout; needs the layout
    detail: bool = True  # give back what the codec lost of memory and appearance
    progressive_omega: float = 0.0  # temporal progressive denoising (MiLA eq. 13-14) [rad], 0 is off
    anchor_fps: float = 2.0  # all but recurrent: rate of the anchors or key frames [Hz]
    gaps_at_once: int = 4  # hierarchical: gaps between key frames filled side by side
    correct_anchors: bool = (
        True  # coarse_to_refine: anchors are denoised again with what is between (JDC); off: given as they are
    )
    anchor_error: float = 0.2  # coarse_to_refine: alpha_1, the noise that predicted anchors are taken to carry (MiLA eq. 8)
    anchor_noise: float = 0.5  # coarse_to_refine: g, noise level from which anchors are corrected (MiLA eq. 12); above alpha_1
