# Everything a fresh clone needs: Python 3.11 or later with venv, a C++ compiler, and a package index.
#   make demo     the whole story on two cores: data, training, scores, a registered model, pictures, a served answer
#   make test     lint, import contracts, types and tests
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# The environment is made once; only a change of these two files brings pip back.
STAMP := $(VENV)/.complete
# Processes that share the tests, a file at a time. Each has a Ray of its own: more of them want more cores and memory.
TEST_WORKERS ?= 2

# One thread a process: Ray runs several processes, and two threads each on two cores wait for one another.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export MLFLOW_DISABLE_TELEMETRY ?= true
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo test check format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv and install everything that runs without a GPU (once)

$(STAMP): pyproject.toml constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11 setup"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]' --constraint constraints-cpu.txt
	@touch $@

demo: setup  ## the toy recipe end to end (about ten minutes on two cores)
	$(BIN)/padt demo

test: check  ## lint, import contracts, types and all tests
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --reruns 1

check: setup  ## lint, import contracts and types only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

format: setup  ## format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what runs and tools leave behind (keeps .venv and runs/)
	rm -rf .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
