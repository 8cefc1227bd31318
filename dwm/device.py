"""Where tensors live, and what is multiplied in half precision there."""

from __future__ import annotations

import torch

from dwm.errors import InputError

PRECISIONS = ("auto", "bfloat16", "float32")


def pick_device(name: str) -> torch.device:
    """The device of a configuration; "auto" is cuda where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def in_bfloat16(precision: str, device: torch.device, *, on_cpu: bool) -> bool:
    """Whether networks run under bfloat16 autocast: "auto" is yes on a GPU, and on a CPU with AMX where ``on_cpu``.

    Raises InputError for another word.
    """
    if precision not in PRECISIONS:
        raise InputError("precision", f"'{precision}' is none", f"choose {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    fast = device.type == "cuda" or (on_cpu and torch.cpu._is_amx_tile_supported())
    return precision == "bfloat16" or (precision == "auto" and fast)


def half_precision(precision: str, device: torch.device, *, on_cpu: bool) -> torch.autocast:
    """The context in which networks run so (``in_bfloat16``)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(precision, device, on_cpu=on_cpu))
