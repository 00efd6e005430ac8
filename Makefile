# Two commands: `make quickstart` runs the main job, `make test` the tests. Each makes its own
# virtual environment in .venv, so each works alone on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
OUT ?= shapelaw-quickstart
BIN := $(VENV)/bin

.PHONY: quickstart test check
quickstart: $(VENV)/main.stamp
	$(BIN)/shapelaw quickstart --out $(OUT)

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shapelaw report --check
	SMOKE=1 $(BIN)/python -m pytest -n 0 --nbmake --nbmake-timeout=600 notebooks

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/main.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
