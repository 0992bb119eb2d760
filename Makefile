# All of it runs in .venv, which is made when it is missing or when its lists of packages have changed.
PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable

.PHONY: fit test test-slow lint format

fit: .venv/installed  ## train on real data, test, show where to look
	$(BIN)/python -m proj fit --config configs/digits.yaml
	$(BIN)/python -m proj test

test: .venv/installed-dev  ## the whole suite, but for what is slow
	$(BIN)/python -m pytest

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-dev  ## formatting, mistakes, types, who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected Python 3.11 or newer, got $$($(PYTHON) --version); run make PYTHON=python3.x" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) '.[tune]'
	@touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) '.[dev]'
	@touch .venv/installed $@

.PHONY: docs
docs: .venv/installed-docs  ## the documentation site in docs/_build/html; a warning is an error
	$(BIN)/python docs/file_map.py
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --builder html \
		--doctree-dir docs/_build/doctrees docs docs/_build/html

.venv/installed-docs: .venv/installed
	$(INSTALL) '.[docs]'
	@touch $@
