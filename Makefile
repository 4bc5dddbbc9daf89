# `make help` lists the targets. Each one does its own set-up.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
# Another package index for torch, such as that of its CPU or CUDA builds; empty: the usual one.
# Heeded when the dependencies are installed, so set it for the first call.
TORCH_INDEX ?=
# More arguments for `make demo` and `make test`, such as ARGS="-k signing".
ARGS ?=

VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
EXTRAS := build ros train dev
PINS := requirements/constraints.txt
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built
# Folders too: their time changes when a file is removed.
SOURCES := CMakeLists.txt package.xml pyproject.toml setup.py $(wildcard README.md LICENSE) \
	$(shell find msg kdmarl_core kdmarl_ros launch config models \
	-name __pycache__ -prune -o -print 2>/dev/null)

# Only the ROS 2 of the virtual environment, and no robots beyond this machine unless asked for.
export VIRTUAL_ENV := $(VENV)
export PATH := $(BIN):$(PATH)
export AMENT_PREFIX_PATH := $(VENV)
export CMAKE_PREFIX_PATH := $(VENV)
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST
unexport PYTHONPATH PYTHONHOME RMW_IMPLEMENTATION _ROS_WHEELS_BOOTSTRAP_COMPLETE
# Waiting torch threads must not take the processor from those that work.
export OMP_WAIT_POLICY := passive

# pytest's exit code where ARGS chooses none of a part's tests.
NONE_CHOSEN = [ $$? -eq 5 ]

say = @echo "==> $(1)"

.PHONY: help demo test check build clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON, TORCH_INDEX, ARGS. A shell with ROS 2: source .venv/ros_env.sh"

demo: $(BUILT) ## Run the demonstration
	$(call say,demo)
	@kdmarl demo $(ARGS)

test: $(BUILT) ## Run the tests
	$(call say,tests of the core: two processes)
	@pytest -m "not ros" --numprocesses 2 --dist worksteal $(ARGS) || $(NONE_CHOSEN)
	$(call say,tests of the nodes: three files at a time, since nodes mostly wait)
	@pytest -m ros --numprocesses 3 --dist loadfile $(ARGS) || $(NONE_CHOSEN)

check: $(INSTALLED) ## Check format, style, types and import boundaries
	$(call say,format)
	@ruff format --check --quiet
	$(call say,style)
	@ruff check --quiet
	$(call say,types)
	@mypy --no-error-summary
	$(call say,import boundaries)
	@lint-imports --no-logo

build: $(BUILT) ## Install the package with its messages into .venv

clean: ## Remove what was built; to start over, remove .venv as well
	@rm -rf build dist install log .mypy_cache .pytest_cache .ruff_cache .import_linter_cache \
		.hypothesis $(BUILT)

$(BIN)/python:
	$(call say,creating .venv)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13) and \
		"Python 3.11 or 3.12 is needed; choose one with PYTHON=...")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/ros_env.sh: Makefile | $(BIN)/python
	@printf '%s\n' '# Source this for a shell with kdmarl and ROS 2.' \
		'source "$(BIN)/activate"' \
		'export AMENT_PREFIX_PATH="$(VENV)" CMAKE_PREFIX_PATH="$(VENV)" OMP_WAIT_POLICY=passive' \
		'export ROS_AUTOMATIC_DISCOVERY_RANGE="$${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}"' \
		'unset PYTHONPATH RMW_IMPLEMENTATION _ROS_WHEELS_BOOTSTRAP_COMPLETE' > $@

$(INSTALLED): pyproject.toml $(PINS) scripts/requirements.py | $(VENV)/ros_env.sh
	$(call say,installing pinned dependencies (the first time: minutes))
	@$(if $(TORCH_INDEX),$(PIP) install -c $(PINS) --index-url $(TORCH_INDEX) torch)
	@$(BIN)/python scripts/requirements.py $(EXTRAS) > $(VENV)/requirements.txt
	@$(PIP) install -c $(PINS) -r $(VENV)/requirements.txt
	@touch $@

$(BUILT): $(INSTALLED) $(SOURCES)
	$(call say,building and installing kdmarl)
	@touch $@.new # the time before, lest an edit made during the build be missed
	@$(PIP) install --no-build-isolation --no-deps --force-reinstall .
	@mv $@.new $@
