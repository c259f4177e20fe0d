# Two commands on a fresh machine: `make run` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# What benchmarks and examples need not prove: that they call what exists, and as it is called now, they do.
LOOSE := assignment arg-type func-returns-value import-not-found index misc no-any-return no-untyped-def \
  operator return-value union-attr unused-ignore var-annotated

.PHONY: help setup setup-dev run test check bench golden docs torture gpu clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Surefoot needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (torch first, a few minutes the first time)"
	@$(PIP) torch==2.13.0
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) --editable '.[dev]'
	@touch $@

setup: $(VENV)/.installed  ## Create .venv and install the pinned packages

setup-dev: $(VENV)/.installed-dev  ## The same with what tests and checks need

run: setup  ## Train the character model on Shakespeare (about two minutes)
	@$(BIN)/surefoot train charlm --new

test: setup-dev  ## Run the test suite (about six minutes on two cores)
	@$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4

check: setup-dev  ## Lint, types, import floors, size budget, duplicate code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy $(addprefix --disable-error-code=,$(LOOSE)) benchmarks examples
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python tools/size_budget.py
	@$(BIN)/python tools/duplicates.py

golden: setup-dev  ## Write golden files anew after a change that is meant
	@$(BIN)/python -m pytest tests/golden --update-golden

docs: setup  ## Write the generated reference pages anew
	@$(BIN)/surefoot config docs charlm > docs/reference/config.md
	@$(BIN)/python tools/cli_reference.py > docs/reference/cli.md

bench: setup-dev  ## Measure against a bare loop and the peers; writes benchmarks/results.md
	@$(BIN)/python benchmarks/run.py

torture: setup-dev  ## The whole crash and damage sweep (hours; EVERY=10 tries one case in ten)
	@$(BIN)/python -m pytest -m slow tests/crash --every $(or $(EVERY),1)

gpu: setup-dev  ## What only a CUDA card can show: operations, predictions, resume (minutes)
	@$(BIN)/python -m pytest tests/gpu -n 0 -rfs

clean:  ## Remove what is generated (not runs, not the environment)
	@rm -rf build dist src/*.egg-info .mypy_cache .ruff_cache .hypothesis
