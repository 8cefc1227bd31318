"""Sizes of VAD: the two published ones and a small one for the proving ground.

VAD: Jiang et al., "Vectorized Scene Representation for Efficient Autonomous Driving", ICCV 2023, and its public
configurations ``VAD_tiny_e2e`` and ``VAD_base_e2e``.
"""

from __future__ import annotations

from dataclasses import dataclass

# In the order of the checkpoints' class logits; not the order of ``dwm.scenes.types.DETECTION_CLASSES``. That of map lines is
# ``evaluators.mapping.MAP_CLASSES``.
OBJECT_CLASSES = (
    "car", "truck", "construction_vehicle", "bus", "trailer",
    "barrier", "motorcycle", "bicycle", "pedestrian", "traffic_cone",
)  # fmt: skip
COMMANDS = ("right", "left", "straight")
# The learned camera embeddings are bound to this order, which is not the ring order of ``dwm.scenes.types.CAMERAS``.
CAMERA_ORDER = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
CAN_BUS_SIZE = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class VadConfig:
    """Sizes, ranges and thresholds of one network. Metres are in the LiDAR frame: x right, y forward, z up."""

    image_hw: tuple[int, int]  # pixels, after scaling and before padding
    pixel_mean_bgr: tuple[float, float, float] = (103.53, 116.28, 123.675)  # of values in [0, 255]
    pixel_std_bgr: tuple[float, float, float] = (1.0, 1.0, 1.0)
    can_motion: bool = False  # whether it reads acceleration, rotation rate and velocity, which the published ones do

    stem_channels: int = 64  # of the first convolution; stage k (from 1) gives 4 * 2 ** (k - 1) times as many
    stage_blocks: tuple[int, ...] = (3, 4, 6, 3)  # bottlenecks of each stage
    feature_stages: tuple[int, ...] = (4,)  # stages, counted from 1, that feed the pyramid
    feature_levels: int = 1  # of the pyramid: one per stage, and at most one coarser level more
    frozen_stages: int = 1  # the stem and this many stages are not trained; -1 trains all
    frozen_norms: bool = True  # batch norms keep their statistics and are not trained

    width: int = 256
    heads: int = 8
    feed_forward: int = 512
    dropout: float = 0.1
    encoder_layers: int = 3
    decoder_layers: int = 3  # of the object decoder and of the map decoder

    range_m: tuple[float, float, float, float, float, float] = (-15.0, -30.0, -2.0, 15.0, 30.0, 2.0)  # low xyz, high xyz
    bev_hw: tuple[int, int] = (100, 100)  # rows along y, columns along x
    rotation_center_xy: tuple[float, float] = (100.0, 100.0)  # cells; the past grid is turned about this point
    pillar_points: int = 4  # heights above each cell that are looked up in the images
    camera_points: int = 8  # samples of each head and level in the images
    bev_points: int = 4  # samples of each head on a grid

    object_queries: int = 300
    map_instances: int = 100
    map_points: int = 20  # of each map instance
    modes: int = 6  # futures of each object
    steps: int = 6  # of 0.5 s, of objects and of the ego
    map_score: float = 0.5  # objects attend to map instances above this score ...
    map_reach: float = 0.2  # ... and within this distance, as a share of the range


CONFIGS: dict[str, VadConfig] = {
    "vad_tiny": VadConfig(image_hw=(360, 640), can_motion=True),
    "vad_base": VadConfig(
        image_hw=(720, 1280), can_motion=True, feature_stages=(2, 3, 4), feature_levels=4, encoder_layers=6, decoder_layers=6,
        bev_hw=(200, 200),
    ),
    # Trained from scratch at a few frames a step: nothing is frozen, the grid has square cells of 1.25 m and is turned about its own centre.
    "vad_proving_ground": VadConfig(
        image_hw=(128, 224), pixel_std_bgr=(57.375, 57.12, 58.395), stem_channels=32, stage_blocks=(2, 2, 3),
        feature_stages=(2, 3), feature_levels=2, frozen_stages=-1, frozen_norms=False, width=128, feed_forward=256,
        dropout=0.0, bev_hw=(48, 24), rotation_center_xy=(12.0, 24.0), object_queries=100, map_instances=30,
    ),
}  # fmt: skip
