"""Facts about the code and the machine that a run or a shard came from."""

from __future__ import annotations

import functools
import platform
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("roadreel", "torch", "numpy", "pyarrow", "ray", "av", "decord", "nuscenes-devkit")


@functools.cache
def git_state() -> tuple[str, bool]:
    """Commit of the checkout this code runs from and whether it has changes; ("", False) outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "", False


def package_versions() -> dict[str, str]:
    """Versions of what takes part in making pixels."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def host_facts() -> dict[str, str]:
    """Where a shard runs. The GPU is named only when the worker has already loaded torch."""
    facts = {"host": socket.gethostname()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
