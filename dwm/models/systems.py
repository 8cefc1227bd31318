"""The published systems that a ``MultiViewDiT`` can be: same inputs and output, another trunk."""

from __future__ import annotations

from dwm.errors import InputError
from dwm.models.dit import DiTConfig, MultiViewDiT
from dwm.models.longdwm import LongDWM
from dwm.models.maskgwm import MaskGWM

SYSTEMS: dict[str, type[MultiViewDiT]] = {"mila": MultiViewDiT, "maskgwm": MaskGWM, "longdwm": LongDWM}


def build_denoiser(config: DiTConfig) -> MultiViewDiT:
    """An untrained model of the system that the configuration names; InputError for one that does not exist."""
    if config.system not in SYSTEMS:
        raise InputError("model.system", f"unknown system '{config.system}'", f"choose one of {', '.join(SYSTEMS)}")
    return SYSTEMS[config.system](config)
