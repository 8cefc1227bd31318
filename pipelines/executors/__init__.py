"""Ways to run shards. Each module is imported only when asked for, so that Ray stays optional at import time."""

from __future__ import annotations

from dwm.errors import InputError
from pipelines.executors.base import Executor


def get_executor(name: str) -> Executor:
    """The executor called ``serial`` or ``ray``."""
    if name == "serial":
        from pipelines.executors.serial import run_serial

        return run_serial
    if name == "ray":
        from pipelines.executors.ray_executor import run_ray

        return run_ray
    raise InputError("execution.executor", f"unknown executor '{name}'", "use serial or ray")
