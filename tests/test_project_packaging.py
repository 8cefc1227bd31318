import json
import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = {
    canonicalize_name(line.split("==")[0]): line.split("==")[1]
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}


def closure(requirement: str, seen: set[tuple[str, str]]) -> None:
    """Adds what installing ``requirement`` brings in, by the metadata of what is installed here."""
    parsed = Requirement(requirement)
    for extra in ("", *parsed.extras):
        key = (canonicalize_name(parsed.name), extra)
        if key in seen or (parsed.marker and not parsed.marker.evaluate({"extra": ""})):
            continue
        seen.add(key)
        for child in distribution(parsed.name).requires or []:
            marker = Requirement(child).marker
            if marker is None or marker.evaluate({"extra": extra}):
                closure(child.split(";")[0], seen)


def test_every_package_the_project_brings_in_is_pinned_at_a_version_it_accepts():
    seen: set[tuple[str, str]] = set()
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    for requirement in wanted:
        closure(requirement, seen)
        parsed = Requirement(requirement)
        if parsed.marker is None or parsed.marker.evaluate():
            assert parsed.specifier.contains(PINS[canonicalize_name(parsed.name)])
    installed = {name for name, _ in seen} - {"setuptools"}
    assert installed - set(PINS) == set()


def test_torch_leads_the_constraints_and_the_makefile_installs_that_version():
    assert next(iter(PINS)) == "torch"
    assert f'"torch=={PINS["torch"]}"' in (ROOT / "Makefile").read_text()


def test_the_command_and_the_report_template_are_part_of_the_distribution():
    assert PROJECT["project"]["scripts"] == {"roadreel": "pipelines.cli:main"}
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["pipelines.report"]
    assert {p for pattern in patterns for p in (ROOT / "pipelines" / "report").glob(pattern)} == {
        ROOT / "pipelines" / "report" / "template.html.j2"
    }


def test_notebooks_are_stored_without_outputs():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        assert all(c["outputs"] == [] and c["execution_count"] is None for c in cells), path.name


def test_the_license_is_the_whole_apache_text():
    text = (ROOT / "LICENSE").read_text()
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", text)
    assert "END OF TERMS AND CONDITIONS" in text
