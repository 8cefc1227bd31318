"""Pages that list names are held to the code that uses the names."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from evaluators.boxes import Boxes
from evaluators.clip_detection import score_clip_detections
from evaluators.cross_view import cross_view_metrics
from evaluators.ego_motion.score import score_ego_motion
from evaluators.flicker import score_appearance
from evaluators.gate import GateConfig
from pipelines.bench import BENCHES
from pipelines.schema import MANIFEST, SORT_KEYS, TABLES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SCHEMAS = {**TABLES, "manifest": MANIFEST}
PAGES = ("architecture.md", "dataset-schema.md", "metrics.md", "methods.md", "operations.md")


def type_name(kind: pa.DataType) -> str:
    """As the schema page writes it."""
    if pa.types.is_dictionary(kind):
        return "category"
    if pa.types.is_fixed_size_list(kind):
        return f"double[{kind.list_size}]"
    if pa.types.is_list(kind):
        return "list of double"
    return str(kind).replace("timestamp[us, tz=UTC]", "timestamp[us, UTC]")


def schema_page() -> dict[str, tuple[list[str], list[tuple[str, str]]]]:
    """Table -> (key, [(column, type)]) as documented."""
    parts = re.split(r"^## `(\w+)`$", (DOCS / "dataset-schema.md").read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        key = re.search(r"Key: (.*)\.$", text, flags=re.MULTILINE)
        assert key is not None, name
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|\n]*\w[^|\n]* \|$", text, flags=re.MULTILINE)
        found[name] = (re.findall(r"`(\w+)`", key[1]), rows)
    return found


def test_the_schema_page_names_every_table_and_no_other():
    assert list(schema_page()) == list(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schema_page_names_every_column_with_its_type_in_order_and_no_other(name):
    key, rows = schema_page()[name]
    assert rows == [(field.name, type_name(field.type)) for field in SCHEMAS[name]]
    assert tuple(key) == SORT_KEYS[name]


def documented_metrics() -> set[str]:
    page = (DOCS / "metrics.md").read_text().split("## The gate")[0]
    return set(re.findall(r"^\| `([\w.]+)` \|", page, flags=re.MULTILINE))


def written_metrics() -> set[str]:
    """Names in ``clip_scores`` and those of the scores it writes as they are."""
    source = "".join((ROOT / "pipelines" / f"{name}.py").read_text() for name in ("clip_scores", "metric_table"))
    names = set(re.findall(r'\badd(?:_buckets)?\(\s*"([\w.]+)"', source)) | set(re.findall(r'"(detection\.\w+)"', source))
    video = np.random.default_rng(0).integers(0, 255, (3, 1, 16, 16, 3), dtype=np.uint8)
    appearance = score_appearance(video, 12.0, ego_speed_mps=np.ones(3)).metrics()
    detection = score_clip_detections([Boxes.empty()], [Boxes.empty()]).metrics()
    still = np.zeros((3, 3))
    motion = score_ego_motion(still, still, np.repeat(np.eye(4)[None], 4, axis=0)).metrics()
    names |= set(motion) | set(cross_view_metrics(np.ones((1, 6))))
    return names | {n for n in appearance if not n.endswith("s")} | set(detection)


def test_the_metrics_page_defines_every_metric_that_is_written_and_no_other():
    assert documented_metrics() == written_metrics()


def test_the_metrics_page_names_every_limit_of_the_gate_and_every_bench():
    page = (DOCS / "metrics.md").read_text()
    assert set(re.findall(r"`((?:min|max)_\w+)`", page)) == set(GateConfig.__dataclass_fields__)
    assert all(f"| `{name}` |" in page for name in BENCHES)


@pytest.mark.parametrize("page", [*PAGES, "../README.md"])
def test_files_that_a_page_names_exist(page):
    text = (DOCS / page).read_text()
    named = set(re.findall(r"`((?:dwm|evaluators|pipelines|conf|tests|docs|notebooks)/[\w./-]*[\w/])`", text))
    named |= {m for m in re.findall(r"\]\(([\w./-]+\.md)\)", text) if "results" not in m}
    folder = (DOCS / page).parent
    missing = [name for name in sorted(named) if not (ROOT / name).exists() and not (folder / name).exists()]
    assert missing == []
    assert named
