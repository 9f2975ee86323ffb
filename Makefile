# Everything a person or CI runs. `make demo` and `make test` work in a fresh clone: they make .venv themselves.

SHELL := /bin/bash -o pipefail
.DEFAULT_GOAL := help

# The first interpreter of 3.11 or newer that can make a virtual environment; 3.11 first because the pins were tested on it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
PACKAGES := client common export server simulations

# Flower must neither phone home nor install anything at run time.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1

.PHONY: help demo test lint fix contracts stubs types check typescript wheel clean

help:  ## List the targets.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.demo  ## A small fleet learns together, offline; ends with a table and a report.
	$(BIN)/fleetdraft demo

# Two processes, since many tests wait for processes of their own; a file stays in one of them, for its fixtures.
test: $(VENV)/.dev  ## Run the tests.
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=10

lint: $(VENV)/.dev  ## Check style and complexity.
	$(BIN)/ruff check .

fix: $(VENV)/.dev  ## Mend what ruff can mend.
	$(BIN)/ruff check --fix .

contracts: $(VENV)/.dev  ## Check which folder may import what.
	$(BIN)/lint-imports --no-cache

stubs: $(VENV)/.dev  ## Generate the gRPC stubs from common/wire/*.proto.
	@rm -rf build/wire && mkdir -p build/wire/fleetdraft && ln -s ../../../common build/wire/fleetdraft/common
	$(BIN)/python -m grpc_tools.protoc -I build/wire --python_out=build/wire --pyi_out=build/wire --grpc_python_out=build/wire \
	  build/wire/fleetdraft/common/wire/*.proto

types: wheel  ## Check types on the built wheel, as a user would get it.
	@rm -rf build/types
	@$(PIP) --no-deps --target build/types dist/*.whl
	MYPYPATH=build/types $(BIN)/mypy -p fleetdraft

check: lint contracts types test  ## Everything CI runs.

PHONE := client/typescript

typescript: $(PHONE)/node_modules/.package-lock.json  ## Build and test the device in TypeScript; needs Node.js 20 or newer.
	cd $(PHONE) && npm run --silent build && npm test --silent

$(PHONE)/node_modules/.package-lock.json: $(PHONE)/package-lock.json
	@command -v npm >/dev/null || { echo "error: found no npm; install Node.js 20 or newer" >&2; exit 1; }
	cd $(PHONE) && npm ci

wheel: $(VENV)/.dev  ## Build dist/fleetdraft-*.whl.
	@rm -rf dist build/lib build/bdist.*
	@$(BIN)/python -m pip wheel -qq --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean:  ## Remove what the other targets made, the virtual environment included.
	rm -rf $(PHONE)/dist $(PHONE)/generated $(PHONE)/node_modules
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: found no Python 3.11 or newer with the module venv; install one or run: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@echo "creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing fleetdraft[simulation] into $(VENV) (about a minute)"
	@$(PIP) --editable '.[simulation]'
	@touch $@

# torch first and alone, under its pin: what depends on it would otherwise choose a build.
$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing torch into $(VENV) (a minute or two)"
	@$(PIP) torch
	@echo "installing fleetdraft[dev] into $(VENV) (about a minute)"
	@$(PIP) --editable '.[dev]'
	@touch $@
