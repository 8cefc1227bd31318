"""A small camera bird's-eye-view detector.

Image features are sampled at every bird's-eye-view cell and four heights through the camera geometry, without predicting
depth (Harley et al., Simple-BEV, ICRA 2023), and centres are read off class heatmaps (Yin et al., CenterPoint, CVPR 2021).
An earlier key frame enters through its own cameras, expressed in the present ego frame, so nothing has to be warped.

Shapes: B batch, F key frames (present first), V views, C channels, H W pixels, h w feature map, P sampled points,
X Y cells of the bird's-eye-view grid (X along ego x, Y along ego y), Z heights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dwm.scenes.types import DETECTION_CLASSES
from evaluators.boxes import ATTRIBUTES

FEATURE_STRIDE = 4
# Regression channels of the head, in this order.
REGRESSIONS = {"offset": 2, "z": 1, "log_size": 3, "yaw": 2, "velocity": 2, "attribute": len(ATTRIBUTES)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorConfig:
    """Size and geometry of a detector."""

    image_hw: tuple[int, int] = (128, 224)  # pixels
    half_range_m: float = 51.2  # the grid covers +- this in x and y
    cell_m: float = 0.8
    heights_m: tuple[float, ...] = (0.3, 1.0, 1.8, 3.0)
    image_channels: int = 48
    bev_channels: int = 48
    frames: int = 1  # 1, or 2 to see the previous key frame too

    @property
    def cells(self) -> int:
        """Cells along each side of the grid."""
        return round(2 * self.half_range_m / self.cell_m)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rigs:
    """The cameras of a batch, each expressed in the ego frame of the present key frame."""

    intrinsics_BFV33: Tensor  # pixels of the network's input images; pixel (row i, column j) is centred at (j + .5, i + .5)
    camera_to_ego_BFV44: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Taps:
    """Where each bird's-eye-view point looks: ragged rows of bilinear weights into all feature pixels of a batch."""

    pixel_M: Tensor  # index into [(B F V h w)]
    weight_M: Tensor
    first_P: Tensor  # start of each point's taps, points in order (B F X Y Z)


def grid_points(config: DetectorConfig) -> Tensor:
    """Ego-frame points [X * Y * Z, 3] at the cell centres and heights."""
    centers = (torch.arange(config.cells) + 0.5) * config.cell_m - config.half_range_m
    x, y, z = torch.meshgrid(centers, centers, torch.tensor(config.heights_m), indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


def project_points(points_P3: Tensor, rigs: Rigs) -> tuple[Tensor, Tensor]:
    """Pixels [B, F, V, P, 2] and depths [B, F, V, P] of ego-frame points."""
    ego_to_camera = torch.linalg.inv(rigs.camera_to_ego_BFV44.float())
    matrix = rigs.intrinsics_BFV33.float() @ ego_to_camera[..., :3, :]
    uvd = torch.einsum("bfvij,pj->bfvpi", matrix[..., :3], points_P3) + matrix[..., None, :, 3]
    depth = uvd[..., 2]
    return uvd[..., :2] / depth.clamp(min=1e-6)[..., None], depth


def seen(pixels: Tensor, depth_m: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Whether projected points lie in front of the camera and inside its image."""
    u, v = pixels.unbind(-1)
    return (depth_m > 0.2) & (u >= 0) & (u < image_hw[1]) & (v >= 0) & (v < image_hw[0])


def lift_taps(points_P3: Tensor, rigs: Rigs, image_hw: tuple[int, int]) -> Taps:
    """Bilinear taps of every point in every camera that sees it, weighted to the mean over those cameras."""
    pixels, depth = project_points(points_P3, rigs)
    h, w = image_hw[0] // FEATURE_STRIDE, image_hw[1] // FEATURE_STRIDE
    visible = rearrange(seen(pixels, depth, image_hw), "b f v p -> (b f) p v")
    count = visible.sum(-1)
    frame, point, view = visible.nonzero(as_tuple=True)
    xy = rearrange(pixels, "b f v p c -> (b f) p v c")[frame, point, view] / FEATURE_STRIDE - 0.5
    corner = xy.floor()
    fraction, corner = xy - corner, corner.long()
    share = 1.0 / count[frame, point]
    image = frame * visible.shape[-1] + view
    indices, weights = [], []
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = corner[:, 0] + dx, corner[:, 1] + dy
        weight = (fraction[:, 0] if dx else 1 - fraction[:, 0]) * (fraction[:, 1] if dy else 1 - fraction[:, 1])
        # Outside the map counts as zero, as grid_sample with zero padding.
        inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
        indices.append((image * h + y.clamp(0, h - 1)) * w + x.clamp(0, w - 1))
        weights.append(weight * inside * share)
    taps_per_point = 4 * count.reshape(-1)
    return Taps(
        pixel_M=torch.stack(indices, -1).reshape(-1),
        weight_M=torch.stack(weights, -1).reshape(-1),
        first_P=taps_per_point.cumsum(0) - taps_per_point,
    )


def lift(features: Tensor, taps: Taps) -> Tensor:
    """Point features [P, C] from image features [(B F V), C, h, w]; zero where no camera looks."""
    table = rearrange(features, "n c h w -> (n h w) c").float()
    return F.embedding_bag(taps.pixel_M, table, taps.first_P, mode="sum", per_sample_weights=taps.weight_M)


def lift_slowly(features: Tensor, points_P3: Tensor, rigs: Rigs, image_hw: tuple[int, int]) -> Tensor:
    """The twin of ``lift`` by dense ``grid_sample``: [P, C] with P in order (B F X Y Z)."""
    pixels, depth = project_points(points_P3, rigs)
    mask = rearrange(seen(pixels, depth, image_hw), "b f v p -> (b f) v 1 p").float()
    grid = rearrange(pixels / pixels.new_tensor([image_hw[1], image_hw[0]]) * 2 - 1, "b f v p c -> (b f v) 1 p c")
    sampled = F.grid_sample(features, grid, align_corners=False)
    sampled = rearrange(sampled, "(n v) c 1 p -> n v c p", v=mask.shape[1]) * mask
    mean = sampled.sum(1) / mask.sum(1).clamp(min=1)
    return rearrange(mean, "n c p -> (n p) c")


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.GroupNorm(8, outputs), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(8, channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def _upsampled(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def normalised(images: Tensor) -> Tensor:
    """Images with values in [0, 1] as the encoder reads them."""
    return (images - 0.45) / 0.25


class ImageEncoder(nn.Module):
    """Images [N, 3, H, W] to features [N, C, H/4, W/4] with context down to stride 16."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        c4, c8, c16 = channels, 2 * channels, 3 * channels
        self.stem = _conv(3, 32, stride=2)
        self.stride4 = nn.Sequential(_conv(32, c4, stride=2), _Residual(c4))
        self.stride8 = nn.Sequential(_conv(c4, c8, stride=2), _Residual(c8))
        self.stride16 = nn.Sequential(_conv(c8, c16, stride=2), _Residual(c16))
        self.lateral8, self.lateral4 = nn.Conv2d(c16, c8, 1), nn.Conv2d(c8, c4, 1)
        self.out = _conv(c4, c4)

    def forward(self, images: Tensor) -> Tensor:
        s4 = self.stride4(self.stem(images))
        s8 = self.stride8(s4)
        s8 = s8 + _upsampled(self.lateral8(self.stride16(s8)), s8)
        return self.out(s4 + _upsampled(self.lateral4(s8), s4))


class BevEncoder(nn.Module):
    """Grid features [B, C, X, Y] to the same shape with context."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        c2, c4 = 2 * channels, 3 * channels
        self.fine = nn.Sequential(_conv(channels, c2, stride=2), _Residual(c2), _Residual(c2))
        self.coarse = nn.Sequential(_conv(c2, c4, stride=2), _Residual(c4), _Residual(c4))
        self.lateral2, self.lateral1 = nn.Conv2d(c4, c2, 1), nn.Conv2d(c2, channels, 1)
        self.merge, self.out = _Residual(c2), _conv(channels, channels)

    def forward(self, grid: Tensor) -> Tensor:
        half = self.fine(grid)
        half = self.merge(half + _upsampled(self.lateral2(self.coarse(half)), half))
        return self.out(grid + _upsampled(self.lateral1(half), grid))


class BevDetector(nn.Module):
    """Six cameras to class heatmaps and box regressions on a bird's-eye-view grid."""

    points: Tensor
    place: Tensor

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        c = config.bev_channels
        self.images = ImageEncoder(config.image_channels)
        self.collapse = nn.Linear(config.frames * len(config.heights_m) * config.image_channels + 3, c)
        self.norm = nn.GroupNorm(8, c)
        self.bev = BevEncoder(c)
        self.neck = _conv(c, 64)
        self.heatmap = nn.Conv2d(64, len(DETECTION_CLASSES), 1)
        self.regression = nn.Conv2d(64, sum(REGRESSIONS.values()), 1)
        # Focal loss needs rare positives at the start (RetinaNet's prior).
        nn.init.constant_(self.heatmap.bias, -4.0)  # type: ignore[arg-type]
        points = grid_points(config)
        self.register_buffer("points", points, persistent=False)
        xy = points.reshape(config.cells**2, len(config.heights_m), 3)[:, 0, :2]
        radius = xy.norm(dim=1, keepdim=True)
        self.register_buffer("place", torch.cat([xy / radius, radius / config.half_range_m], -1), persistent=False)

    def taps(self, rigs: Rigs) -> Taps:
        """Sampling taps of a batch of rigs; reusable while the cameras do not move on the car."""
        with torch.no_grad():
            return lift_taps(self.points, rigs, self.config.image_hw)

    def forward(self, images_BFVCHW: Tensor, taps: Taps) -> dict[str, Tensor]:
        """Logits ``heatmap`` [B, 10, X, Y] and ``REGRESSIONS`` maps [B, ., X, Y] of images with values in [0, 1]."""
        batch, n = images_BFVCHW.shape[0], self.config.cells
        flat = rearrange(images_BFVCHW, "b f v c h w -> (b f v) c h w")
        features = self.images(normalised(flat).contiguous(memory_format=torch.channels_last))
        points = lift(features, taps)
        cells = rearrange(points, "(b f xy z) c -> b xy (f z c)", b=batch, f=self.config.frames, z=len(self.config.heights_m))
        cells = self.collapse(torch.cat([cells, self.place.expand(batch, -1, -1)], dim=-1))
        grid = F.relu(self.norm(rearrange(cells, "b (x y) c -> b c x y", x=n)))
        shared = self.neck(self.bev(grid))
        regressions = self.regression(shared).float().split(list(REGRESSIONS.values()), dim=1)
        return {"heatmap": self.heatmap(shared).float(), **dict(zip(REGRESSIONS, regressions, strict=True))}
