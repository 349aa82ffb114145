# `make demo` and `make test` work on a fresh clone: the environment is made when it is missing or stale.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint types imports check docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv with AccuQuant, everything it can use here, and the tools

$(STAMP): pyproject.toml requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "AccuQuant needs Python 3.10 or later; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not there)."; \
	  echo "Give another one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing AccuQuant and its dependencies into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint requirements/constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Calibrate, export, run and verify the bundled model
	@$(BIN)/accuquant demo

test: $(STAMP) ## Run the fast tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not slow and not gpu' --quiet

test-all: $(STAMP) ## Run every test that this machine can run
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations 10 --quiet

lint: $(STAMP) ## Check the style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP) ## Check the types
	@$(BIN)/mypy

imports: $(STAMP) ## Check who imports whom
	@$(BIN)/lint-imports --no-cache

check: lint types imports test ## Everything that CI runs

$(DOCS_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint requirements/constraints.txt --editable '.[docs]'
	@touch $@

docs: $(DOCS_STAMP) ## Make the documentation as a site: site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean: ## Remove what the targets above made, .venv too
	rm -rf $(VENV) demo-output site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
