# Two commands: `make quickstart` runs the main job, `make test` the tests. Each makes its own
# virtual environment in .venv and installs nothing but what locks/ pins, so each works alone on a
# fresh machine, whatever has been released since.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
NEWEST_VENV ?= .venv-newest
OUT ?= shapelaw-quickstart
# Build of torch: cpu or cuda. Where no index offers the CPU build, the CUDA build is installed.
TORCH ?= cpu
# Address of a further package index: PyTorch's own, for example, which has the CPU build.
TORCH_INDEX ?=
UV ?= uv
BIN := $(VENV)/bin
LOCKED := pip install --quiet --no-deps --require-hashes
EXTRA_INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: quickstart test test-slow test-environment slow-environment check notebooks docs vllm lock test-newest
quickstart: $(VENV)/main.stamp
	$(BIN)/shapelaw quickstart --out $(OUT)

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

# Real kills, browsers, Ray, whole quickstarts, and packages that few tests need.
test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow

test-environment: $(VENV)/test.stamp
slow-environment: $(VENV)/dev.stamp

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini
	$(BIN)/lint-imports
	$(BIN)/shapelaw report --check
	SMOKE=1 $(BIN)/python -m pytest -m "" -n 0 --nbmake --nbmake-timeout=600 notebooks
	$(MAKE) docs

# Run the notebooks in full and keep their outputs, which the documentation shows.
notebooks: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "" -n 0 --nbmake --nbmake-timeout=600 --overwrite notebooks

# The documentation, in build/site. Fails where a page prints another output than its command does,
# and on every warning: broken links and anchors, missing pictures, names that do not exist.
docs: $(VENV)/dev.stamp
	$(BIN)/python docs/examples.py
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/site

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/torch.stamp: locks/torch-cpu.txt locks/torch-cuda.txt | $(BIN)/python
	@if [ $(TORCH) = cpu ] && ! $(BIN)/python -m $(LOCKED) $(EXTRA_INDEX) -r locks/torch-cpu.txt; then \
	  echo "No index offers torch's CPU build: installing the CUDA build, about 5 GB. For the CPU build" \
	    "give TORCH_INDEX=ADDRESS, the address that PyTorch's installation page names for CPU."; \
	  $(BIN)/python -m $(LOCKED) -r locks/torch-cuda.txt; \
	elif [ $(TORCH) != cpu ]; then \
	  $(BIN)/python -m $(LOCKED) $(EXTRA_INDEX) -r locks/torch-$(TORCH).txt; \
	fi
	@touch $@

$(VENV)/%.stamp: locks/%.txt pyproject.toml $(VENV)/torch.stamp
	$(BIN)/python -m $(LOCKED) -r locks/$*.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# vLLM for the CPU, in an environment of its own because it pins its libraries. Then
# `SHAPELAW_VLLM_PYTHON=.venv-vllm/bin/python shapelaw measure --engine vllm ...` runs it. With a
# GPU, `pip install vllm` in any other environment does as well.
vllm: $(VLLM_VENV)/vllm.stamp

$(VLLM_VENV)/vllm.stamp: locks/vllm.txt locks/torch-cpu.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m $(LOCKED) --no-compile $(EXTRA_INDEX) -r locks/torch-cpu.txt
	$(VLLM_VENV)/bin/python -m $(LOCKED) --no-compile -r locks/vllm.txt
	touch $@

# Pin the newest versions that pyproject.toml allows (needs uv; UPGRADE= keeps what can stay). torch
# is pinned by hand: its version and hashes in locks/torch-cpu.txt, its version in locks/torch.in.
UPGRADE ?= --upgrade
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes $(UPGRADE) \
  --custom-compile-command "make lock" --override locks/without-torch.txt --no-emit-package torch
lock:
	$(COMPILE) pyproject.toml locks/base.in --extra dev --output-file locks/dev.txt
	$(COMPILE) pyproject.toml locks/base.in --extra test --constraint locks/dev.txt --output-file locks/test.txt
	$(COMPILE) pyproject.toml locks/base.in --extra train --constraint locks/dev.txt --output-file locks/main.txt
	$(COMPILE) pyproject.toml locks/build.in --constraint locks/dev.txt --output-file locks/core.txt
	$(COMPILE) locks/vllm.in locks/base.in --output-file locks/vllm.txt \
	  $(addprefix --no-emit-package ,torchaudio torchcodec torchvision)
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes $(UPGRADE) \
	  --custom-compile-command "make lock" --constraint locks/dev.txt locks/torch.in \
	  --output-file locks/torch-cuda.txt

# The tests with the newest release of everything, in an environment of its own; never CI's gate.
# It ends with what was tried in place of what is locked, and with the tests that broke.
# NEWEST_TESTS="-m 'not slow'" leaves the slow ones out.
NEWEST_TESTS ?= -m ""
test-newest:
	$(PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager $(EXTRA_INDEX) --editable ".[dev]"
	-$(NEWEST_VENV)/bin/python -m pytest $(NEWEST_TESTS) -rfE
	$(NEWEST_VENV)/bin/python -m pip freeze --exclude-editable | tr A-Z_ a-z- | sort > $(NEWEST_VENV)/newest.txt
	@grep -ohE '^[a-z0-9.-]+==[^ ;]+' locks/dev.txt locks/torch-*.txt | sort -u \
	  | comm -13 - $(NEWEST_VENV)/newest.txt | sed 's/^/not what is locked: /'
