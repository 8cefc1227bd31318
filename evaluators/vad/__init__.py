"""VAD on current torch: the network, its inputs, its outputs and its weights."""

from evaluators.vad.model import VAD, VadOutputs, build_vad

__all__ = ["VAD", "VadOutputs", "build_vad"]
