"""YAML merged over frozen dataclasses: unknown keys are errors, overrides are ``key=value``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dwm.errors import InputError

T = TypeVar("T")


def load_config(
    schema: type[T], path: Path | None = None, overrides: list[str] | None = None, parts: dict[str, Any] | None = None
) -> T:
    """The dataclass ``schema`` filled from a YAML file and ``key=value`` overrides (dots reach into nested fields).

    ``parts`` take the place of what the file says of the same fields.
    """
    where = str(path) if path else "command line"
    try:
        config = OmegaConf.structured(schema)
        if path is not None:
            if not path.is_file():
                raise InputError(path, "no such configuration file", "give the path of a YAML file, e.g. conf/demo.yaml")
            content = OmegaConf.create(yaml.safe_load(path.read_text()) or {})
            config = OmegaConf.merge(config, OmegaConf.merge(content, parts or {}))
        config = OmegaConf.merge(config, OmegaConf.from_dotlist(overrides or []))
        return OmegaConf.to_object(config)  # type: ignore[return-value]
    except (OmegaConfBaseException, yaml.YAMLError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        first = str(error).strip().splitlines()[0]
        key = getattr(error, "full_key", None)
        raise InputError(
            where, f"{first} (key '{key}')" if key else first, f"see the fields of {schema.__name__} and the files in conf/"
        ) from error


def to_yaml(config: Any) -> str:
    """A resolved configuration as YAML text, as stored with each run."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)
