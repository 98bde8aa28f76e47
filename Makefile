# make demo   set everything up and train on real digits (runs/demo, report.html)
# make test   set everything up and run the tests, but for those that start a cluster of their own or break things
# make check  everything a reviewer would run: lint, types, import contracts, all tests but the long fault tests
# make docs   the documentation site, in site/index.html, with warnings as errors
# make faults the whole fault matrix (long), and docs/faults.md from what it measured
# make soak   a storm of faults over one long run, MINUTES=20 long
# Needs Python 3.10 or newer and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
# Processes share cores: busy waiting of idle threads costs a factor of three and more.
export OMP_WAIT_POLICY ?= passive

.PHONY: venv demo test check docs faults soak lint clean

venv: .venv/.installed

.venv/.installed: setup.py setup.cfg pyproject.toml constraints.txt cluster/lloyd.cpp
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Subspace needs Python 3.10 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,dicom,wsi,deepspeed,onnx,serve,mlflow,wandb,docs,dev]'
	touch $@

demo: venv
	$(BIN)/subspace train configs/demo.yaml --run-dir runs/demo --resume auto

test: venv
	$(BIN)/python -m pytest -m "not site" --ignore=tests/faults

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(BIN)/python -m pytest -m "not matrix"

docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

faults: venv
	rm -f docs/faults.jsonl
	SUBSPACE_FAULTS=docs/faults.jsonl $(BIN)/python -m pytest tests/faults; code=$$?; \
	$(BIN)/python -m tests.faults.report docs/faults.jsonl docs/faults.md && exit $$code

MINUTES ?= 20
SEED ?= 0
soak: venv
	SUBSPACE_FAULTS=docs/faults.jsonl $(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --seed $(SEED); code=$$?; \
	$(BIN)/python -m tests.faults.report docs/faults.jsonl docs/faults.md && exit $$code

clean:
	rm -rf .venv runs shards site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
