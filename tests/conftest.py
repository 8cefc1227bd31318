"""A tiny proving-ground dataroot, built once for all tests that read one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dwm.scenes.proving_ground.build import build_world

VERSION = "v1.0-mini"


@pytest.fixture(scope="session")
def pg_dataroot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of one second, images of 32 x 56, in two small cities."""
    out = tmp_path_factory.mktemp("proving_ground") / "world"
    return build_world(out, 2, 3, size_hw=(32, 56), duration_s=1.0, n_agents=30, city_size_m=200.0, progress=False)
