import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dwm", "evaluators", "pipelines")
MODULES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
HEAVY = ("ray", "mmdet3d", "diffusers", "transformers", "pipelines", "evaluators")


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(root)})


def copy_of_contracts(folder: Path) -> Path:
    """Empty packages under the project's own contracts."""
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    for package in PACKAGES:
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text("")
    return folder


def test_the_packages_import_each_other_in_one_direction_only():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("package", "line"),
    [("dwm", "import evaluators"), ("evaluators", "import pipelines"), ("evaluators", "import ray"), ("dwm", "import mmdet3d")],
)
def test_the_contracts_catch_a_planted_violation(tmp_path, package, line):
    root = copy_of_contracts(tmp_path)
    assert lint_imports(root).returncode == 0
    (root / package / "planted.py").write_text(f"def late():\n    {line}\n")
    result = lint_imports(root)
    assert result.returncode == 1
    assert "2 kept, 1 broken" in result.stdout


def test_importing_the_world_library_loads_nothing_heavy_and_no_layer_above():
    modules = "dwm, dwm.geometry, dwm.config, dwm.scenes.types, dwm.scenario.types"
    code = f"import sys, json, {modules}; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(result.stdout) == []


def test_every_module_stays_within_500_lines():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in MODULES}
    assert {path: n for path, n in lengths.items() if n > 500} == {}
    assert len(lengths) > 20


def test_every_configuration_is_a_yaml_mapping_without_class_names():
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict), path
        assert "_target_" not in path.read_text(), path
