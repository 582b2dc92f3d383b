# make demo and make test do everything on a bare machine with Python 3.11+.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT ?= demo_out
# More for the server of make serve: SERVE_FLAGS="--server.port=9000".
SERVE_FLAGS ?=
# Test processes; each uses one core.
JOBS ?= 2

# TensorFlow only reads data here; without these it talks at every start.
export TF_CPP_MIN_LOG_LEVEL := 2
export TF_ENABLE_ONEDNN_OPTS := 0
# XLA asks for its buffers anew at every step; in pages of 2 MB that is quick (glibc; elsewhere this
# does nothing).
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1

.PHONY: help setup demo serve test test-beam test-plan lint clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(VENV)/.rendering  ## Create .venv and install everything (the others do this first)

demo: setup  ## Data, training, evaluation and a report, on this machine
	$(BIN)/python tools/demo.py --out=$(DEMO_OUT)

serve: $(DEMO_OUT)/bundle/manifest.json  ## Serve the demo's policy, with a page to try it in
	$(BIN)/python -m vla_jax.serve --bundle=$(DEMO_OUT)/bundle --max_batch_size=4 --server.demo=true $(SERVE_FLAGS)

test: setup $(VENV)/.browser  ## The whole test suite
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --durations=5

# Apache Beam wants older packages than the lock has, so it has an environment of its own.
test-beam:  ## The tests of the conversion by Apache Beam
	@test -x $(VENV)-beam/bin/uv || { $(PYTHON) -m venv $(VENV)-beam; $(VENV)-beam/bin/pip install --quiet uv; }
	@$(VENV)-beam/bin/uv pip install --quiet --python $(VENV)-beam/bin/python -e '.[beam,dev]'
	$(VENV)-beam/bin/python -m pytest tests/data/convert_test.py -W ignore:label

# The TPU compiler is half a gigabyte that only planning needs.
test-plan:  ## The tests of the plan, with the TPU compiler
	@test -x $(VENV)-plan/bin/uv || { $(PYTHON) -m venv $(VENV)-plan; $(VENV)-plan/bin/pip install --quiet uv; }
	@$(VENV)-plan/bin/uv pip install --quiet --python $(VENV)-plan/bin/python -r requirements.txt -e '.[plan]'
	$(VENV)-plan/bin/python -m pytest tests/planning

lint: setup  ## Format, lint and type checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:  ## Remove .venv, caches and the demo's output
	rm -rf $(VENV) $(VENV)-beam $(VENV)-plan .pytest_cache .ruff_cache *.egg-info $(DEMO_OUT)
	find . -name __pycache__ -prune -exec rm -rf {} +

# What is there already is kept: a demo that was interrupted goes on.
$(DEMO_OUT)/report.html:
	$(MAKE) demo

$(DEMO_OUT)/bundle/manifest.json: $(DEMO_OUT)/report.html | setup
	@rm -rf $(DEMO_OUT)/bundle
	$(BIN)/python -m vla_jax.export --workdir=$(DEMO_OUT)/cotrain --out=$(DEMO_OUT)/bundle

# The stamps make setup a no-op until the lock or the project file changes. uv installs in half of
# pip's time; where it cannot be had (a mirror that only pip knows), pip does the same.
$(VENV)/.packages: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements.txt into $(VENV) (one to three minutes) ..."
	@if $(BIN)/python -m pip install --quiet uv && \
	    $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.txt; then :; \
	  else $(BIN)/python -m pip install --quiet -r requirements.txt; fi
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
# It asks for a NumPy older than JAX's, which it does not need: so the lock cannot hold it.
	@$(BIN)/python -m pip install --quiet --no-deps openpi-client==0.1.2
	@touch $@

$(VENV)/.rendering: $(VENV)/.packages tools/setup_rendering.sh
	@bash tools/setup_rendering.sh $(BIN)/python
	@touch $@

$(VENV)/.browser: $(VENV)/.packages tools/setup_browser.sh
	@bash tools/setup_browser.sh
	@touch $@
