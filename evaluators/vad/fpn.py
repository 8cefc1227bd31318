"""Feature pyramid (Lin et al., CVPR 2017), under the parameter names of mmdet's FPN."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.vad.config import VadConfig
from evaluators.vad.resnet import stage_channels


class NamedConv(nn.Module):
    """A convolution one name deeper, as the checkpoints have it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FeaturePyramid(nn.Module):
    """Maps [N, C_i, h_i, w_i], fine to coarse, to ``feature_levels`` maps [N, D, h_l, w_l].

    One level more than there are inputs is a convolution of stride 2 on the coarsest output. The public configuration asks
    for a relu before further levels; it would act only from the second one on.
    """

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        inputs = [stage_channels(config, stage) for stage in config.feature_stages]
        extra = config.feature_levels - len(inputs)
        assert extra in (0, 1), "a level for every stage, and at most one more"
        self.lateral_convs = nn.ModuleList([NamedConv(channels, config.width, 1) for channels in inputs])
        fine = [NamedConv(config.width, config.width, 3) for _ in inputs]
        self.fpn_convs = nn.ModuleList([*fine, *(NamedConv(config.width, config.width, 3, stride=2) for _ in range(extra))])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=levels[i - 1].shape[-2:], mode="nearest")
        for i, conv in enumerate(self.fpn_convs):
            if i < len(levels):
                levels[i] = conv(levels[i])
            else:
                levels.append(conv(levels[-1]))
        return levels
