"""The written record of a run: ``log.jsonl``, TensorBoard scalars, image strips."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

logger = logging.getLogger(__name__)


class Journal:
    """Appends to the logs of a run; on resumption what lies beyond the checkpoint is dropped first."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self._folder = folder
        self._lines = folder / "log.jsonl"
        _drop_after(self._lines, resumed_step)
        self._board = _open_board(folder / "tensorboard", resumed_step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of numbers; NaN and Inf are written as null."""
        row = {key: value if math.isfinite(value) else None for key, value in values.items()}
        with self._lines.open("a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def strip(self, step: int, image_HWC: NDArray[np.uint8]) -> None:
        """A picture of how the model does."""
        path = self._folder / "samples" / f"step_{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image_HWC).save(path)
        if self._board is not None:
            self._board.add_image("sample", image_HWC, step, dataformats="HWC")

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        if self._board is not None:
            self._board.close()


def _drop_after(lines: Path, step: int) -> None:
    if not lines.is_file():
        return
    kept = [line for line in lines.read_text().splitlines() if (row := _parse(line)) and row["step"] <= step]
    partial = lines.with_name(lines.name + ".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    partial.replace(lines)


def _parse(line: str) -> dict[str, float] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # the line a killed run was writing
        return None


def _open_board(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning("tensorboard is not installed: scalars go to log.jsonl only")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
