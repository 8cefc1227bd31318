# Two commands for newcomers: `make demo` and `make test`. Each sets up .venv by itself; PYTHON=... picks the interpreter.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
DEMO_WORLD := out/demo/world
DEMO_RUN := out/demo/run

.PHONY: help setup demo test lint mmdet3d format clean

help:
	@echo "make demo   build a small world, generate two scored one-minute clips, write their report"
	@echo "make test   run the tests"
	@echo "make lint   ruff, pyright and the layer contracts"
	@echo "make mmdet3d  add mmdet3d; without a wheel of mmcv for this torch that is a build of about 20 minutes"
	@echo "make clean  remove .venv, out and caches"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	  { echo "roadreel needs Python 3.11 or 3.12: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/pip || "$(PYTHON)" -m venv .venv || "$(PYTHON)" -m virtualenv .venv || \
	  { echo "no venv module: install python3-venv (or pip install virtualenv)" >&2; exit 2; }
	$(BIN)/pip install --quiet -c constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@test -d $(DEMO_WORLD) || $(BIN)/roadreel world build --out $(DEMO_WORLD) --scenes 1 --seed 7
	$(BIN)/roadreel generate conf/demo.yaml
	@echo "report: $(DEMO_RUN)/versions/$$(cat $(DEMO_RUN)/LATEST)/report.html"

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# mmcv finds the torch of this environment only where pip does not build it apart from it; its setup needs pkg_resources, which
# setuptools no longer brings from 82 on.
mmdet3d: $(STAMP)
	$(BIN)/pip install --quiet "setuptools<81" wheel ninja psutil
	MMCV_WITH_OPS=1 $(BIN)/pip install --quiet --no-build-isolation -c constraints.txt -e ".[dev,mmdet3d]"

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv out build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
