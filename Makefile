# Every target runs in .venv, which is made if it is missing or if its list of packages has changed.
PYTHON ?= python3
BIN := .venv/bin
# Bytecode is compiled once, at installation, on all cores. Without it a start takes twice as long.
unexport PYTHONDONTWRITEBYTECODE
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '/tests?/' .venv/lib/python3*/site-packages src

SERVE = src/proj/engine/deployment/templates/requirements-serve

LOCK = $(BIN)/pip-compile --quiet --generate-hashes --strip-extras --no-emit-index-url \
	--no-emit-trusted-host --no-emit-find-links --no-annotate --no-header \
	--constraint .venv/constraints.txt

.PHONY: fit test test-long test-slow lint format lock lock-cpu lock-cuda

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

fit: .venv/installed  ## train on a real data set, test, print where the results are
	$(BIN)/python -m proj fit --config configs/digits.yaml
	$(BIN)/python -m proj test

test: .venv/installed-dev  ## run all tests except the long and the slow ones
	$(BIN)/python -m pytest

test-long: .venv/installed-dev  ## run the tests that take seconds each
	$(BIN)/python -m pytest -m "long and not slow"

test-slow: .venv/installed-dev  ## run the slow tests
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-dev  ## check formatting, style, types and the import direction
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-dev  ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: .venv/locks  ## write the versions of the server of bundles with their hashes
	$(LOCK) --output-file $(SERVE).txt $(SERVE).in

# The build of torch is the one that pip finds: that of your package index.
lock-cpu lock-cuda: lock-%: .venv/locks  ## write all versions for CPUs or CUDA with their hashes
	$(LOCK) --allow-unsafe --extra tune --extra serve --output-file requirements-$*.txt \
		pyproject.toml
	sed -i '/^proj @ /d' requirements-$*.txt

.PHONY: .venv/locks
.venv/locks: .venv/installed-dev
	$(BIN)/python -m pip install --quiet pip-tools
	grep -v '^#' constraints.txt > .venv/constraints.txt

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected Python 3.11 or newer, got $$($(PYTHON) --version);" \
		"run make PYTHON=python3.x" >&2; exit 2; }
	$(PYTHON) -m venv .venv

# A file of a package that does not compile is not needed either.
.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) '.[tune]'
	@$(COMPILE) || true
	@$(BIN)/python -m proj complete --build
	@touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) '.[dev]'
	@$(COMPILE) || true
	@$(BIN)/python -m proj complete --build
	@touch .venv/installed $@

.PHONY: docs
docs: .venv/installed-docs  ## the documentation site in docs/_build/html; a warning is an error
	$(BIN)/python docs/file_map.py
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --builder html \
		--doctree-dir docs/_build/doctrees docs docs/_build/html

.venv/installed-docs: .venv/installed
	$(INSTALL) '.[docs]'
	@$(COMPILE) || true
	@touch $@
