"""VAD over a stretch of video: key frame after key frame, the grid of the one before handed on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from evaluators.vad.inputs import VadFrame, since
from evaluators.vad.model import VAD, VadOutputs


@torch.inference_mode()
def run_stretch(model: VAD, frames: Iterable[VadFrame], device: str = "cpu") -> Iterator[VadOutputs]:
    """Outputs of every key frame of one scene, in order; the first has no past. Never run two scenes as one."""
    past, before = None, None
    for frame in frames:
        can_bus = torch.from_numpy(since(frame.can_bus_18, before)).float()[None].to(device)
        outputs = model(frame.images_V3hw[None].to(device), frame.lidar_to_image_V44[None].to(device), can_bus, past)
        past, before = outputs.bev_BQD, frame.can_bus_18
        yield outputs
