"""Worker processes for long parallel work on CPUs: one thread each, and none that outlives the process it works for."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor

import torch


def one_thread_pool(processes: int) -> ProcessPoolExecutor:
    """A pool of spawned processes (a forked one cannot use the GPU) of one thread each, which end with this one, however it ends."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's worker notices that its parent is gone only when its task is done: that may take hours."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
