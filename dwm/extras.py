"""Packages that not everyone installs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from dwm.errors import InputError


def optional_package(name: str, extra: str, fix: str | None = None) -> Any:
    """The imported package; InputError naming the extra that brings it where it is missing, or what to do where pip alone cannot."""
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(name, f"cannot be imported ({error})", fix or f"pip install 'roadreel[{extra}]'") from error
