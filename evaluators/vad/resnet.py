"""ResNet with bottlenecks, under torchvision's parameter names (He et al., CVPR 2016).

The stride of a stage sits in the 3x3 convolution of its first block, as in torchvision ("pytorch style").
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.vad.config import VadConfig

EXPANSION = 4  # a block gives this many times the channels of its 3x3 convolution


def stage_channels(config: VadConfig, stage: int) -> int:
    """Channels that a stage, counted from 1, gives."""
    return config.stem_channels * 2 ** (stage - 1) * EXPANSION


class Bottleneck(nn.Module):
    """relu(shortcut(x) + f(x)), f: 1x1, 3x3 with the stride, 1x1."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = channels * EXPANSION
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(shortcut + self.bn3(self.conv3(x)))


class ResNet(nn.Module):
    """Images [N, 3, H, W] to one map [N, C, H / stride, W / stride] for each of ``feature_stages``; stage 1 has stride 4."""

    def __init__(self, config: VadConfig) -> None:
        super().__init__()
        self.feature_stages, self.frozen_norms = config.feature_stages, config.frozen_norms
        channels = config.stem_channels
        self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.stages = range(1, len(config.stage_blocks) + 1)
        inputs = channels
        for stage, blocks in zip(self.stages, config.stage_blocks, strict=True):
            outputs = stage_channels(config, stage)
            strides = [1 if stage == 1 else 2] + [1] * (blocks - 1)
            ins = [inputs] + [outputs] * (blocks - 1)
            layer = [Bottleneck(i, outputs // EXPANSION, s) for i, s in zip(ins, strides, strict=True)]
            self.add_module(f"layer{stage}", nn.Sequential(*layer))
            inputs = outputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self._freeze(config.frozen_stages)
        self.train()

    def _freeze(self, stages: int) -> None:
        frozen = [self.conv1, self.bn1, *(self.get_submodule(f"layer{s}") for s in self.stages if s <= stages)]
        self.frozen = frozen if stages >= 0 else []
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)] if self.frozen_norms else []
        for module in [*self.frozen, *norms]:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> ResNet:
        """As usual, but frozen stages and frozen norms stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        if self.frozen_norms:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        maps = []
        for stage in self.stages:
            x = self.get_submodule(f"layer{stage}")(x)
            if stage in self.feature_stages:
                maps.append(x)
        return maps
