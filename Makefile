# `make demo` and `make test` work on a bare machine with Python 3.11. Everything is installed into .venv; stamp files make a
# second call cost nothing. Variables a caller may set: PYTHON, EXTRAS, PYTEST_ARGS, PIP_ARGS.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXTRAS ?= dev,torch
PIP_ARGS ?=
PYTEST_ARGS ?=
TORCH := $(shell grep '^torch==' constraints.txt)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# Named by what was asked for, so that other extras install again.
COMMA := ,
READY := $(VENV)/.ready-$(subst $(COMMA),-,$(EXTRAS))

SOURCES := $(wildcard elastic_train checkpointing storage chaos)
PYTHON_CODE := $(SOURCES) $(wildcard tests examples benchmarks scripts)
BENCHMARKS := $(subst /,.,$(basename $(filter-out %/__init__.py %/common.py,$(wildcard benchmarks/*.py))))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup lint format types contracts unit integration tests examples test demo bench soak clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## make .venv with everything in it

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "elastic-train needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# torch goes in first and by itself: its index decides whether it is the CPU or a CUDA build, and nothing may replace it.
$(VENV)/.torch: $(BIN)/python
	$(PIP) install $(PIP_ARGS) $(TORCH)
	touch $@

$(READY): $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) install $(PIP_ARGS) --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check $(PYTHON_CODE)
	$(BIN)/ruff format --check $(PYTHON_CODE)

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix $(PYTHON_CODE)
	$(BIN)/ruff format $(PYTHON_CODE)

types: $(READY) ## mypy --strict everywhere, pyright strict on the cores and ports
	$(BIN)/mypy --strict $(PYTHON_CODE)
	$(BIN)/pyright

contracts: $(READY) ## the layers (import-linter)
	$(BIN)/lint-imports

unit: $(READY) ## the tests that neither sleep nor open sockets
	$(BIN)/python -m pytest tests/unit tests/architecture $(PYTEST_ARGS)

integration: $(READY) ## the tests with real processes and a real etcd
	$(BIN)/python -m pytest $(wildcard tests/conformance tests/integration tests/chaos) $(PYTEST_ARGS)

tests: $(READY) ## all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

examples: $(READY) ## run every example under a time bound
	$(BIN)/python -m scripts.run_examples

# Tests come last, so that the last thing printed is pytest's own summary.
test: lint types contracts examples tests ## everything that must pass before a push

demo: $(READY) ## a real run in which workers are killed, drained and added while you watch
	$(BIN)/python -m examples.demo

bench: $(READY) ## all benchmarks, one after another; each ends with a line of JSON
	set -e; for name in $(BENCHMARKS); do $(BIN)/python -m $$name; done

soak: $(READY) ## long random histories: more hypothesis examples, the slow and the chaos tests, three times
	set -e; for round in 1 2 3; do HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest $(PYTEST_ARGS); done

clean: ## remove what was built; .venv too
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
