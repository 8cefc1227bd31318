"""Several processes train one model (``torchrun --nproc-per-node N``): each takes its own samples, gradients are averaged.

Everything that decides how a run goes on (when to stop, the time that has passed) is agreed on before every step, so the
copies of the model stay the same bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """The processes of a run; one alone is a crew too."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def agree(self, stop: bool, elapsed_s: float) -> tuple[bool, float]:
        """Stop when anyone wants to; the longest time counts."""
        if self.size == 1:
            return stop, elapsed_s
        wishes = torch.tensor([float(stop), elapsed_s], dtype=torch.float64, device=_device())
        dist.all_reduce(wishes, dist.ReduceOp.MAX)
        return bool(wishes[0]), float(wishes[1])

    def wait(self) -> None:
        """Until everyone has come this far."""
        self.agree(stop=True, elapsed_s=0.0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Mean over the crew; a parameter that a process did not use counts as zero there."""
        if self.size == 1:
            return
        used = [p for p in parameters if p.requires_grad]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in used])
        dist.all_reduce(flat)
        shares: tuple[Tensor, ...] = flat.div_(self.size).split([p.numel() for p in used])
        for parameter, share in zip(used, shares, strict=True):
            parameter.grad = share.view_as(parameter)


def join_crew() -> Crew:
    """The crew that ``torchrun`` started, or one process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Crew()
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Crew(rank=dist.get_rank(), size=size)


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
