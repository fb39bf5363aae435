# cuda-nn: what a person types.  `make` lists it.  Everything is installed into .venv; nothing else on the machine changes.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NVCC   := $(VENV)/.nvcc

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup train test cuda native lint bench mutants gpu-check clean

help:      ## show this list
	@echo "usage: make COMMAND [ARGS=\"...\"] [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)      ## create .venv and install cuda-nn into it, once and whenever its dependencies change

train: setup      ## train on Python's own source, draw the loss, write a sample; ARGS="--steps 50" as for cuda-nn train
	@$(BIN)/cuda-nn train $(ARGS)

test: setup $(NVCC)      ## run the tests; ARGS="-k config" as for pytest
	@$(BIN)/python -m pytest $(ARGS)

cuda: setup $(NVCC)      ## build the CUDA kernels, for GPUs and for the emulated device; ARGS="--targets 80" for fewer
	@$(BIN)/python -m cuda.nn.build $(ARGS)

native: setup      ## build the native CPU kernels anew where they changed; ARGS="--tests --sanitize thread" for the test program
	@$(BIN)/python csrc/native/build.py $(ARGS)

lint: setup      ## style and types
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@echo "lint: clean"

# Some machines choose older BLAS kernels by environment, to be safe with old releases; a measurement wants this processor's.
bench: setup      ## measure training and generation against the machine's ceiling; ARGS="--preset tiny" as for cuda-nn bench
	@env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(BIN)/cuda-nn bench $(ARGS)

mutants: setup $(NVCC)      ## plant every bug of tests/mutants/device in a kernel, one at a time: each must be found
	@CUDA_NN_MUTANTS=all $(BIN)/python -m pytest -n 2 tests/mutants $(ARGS)

gpu-check: setup $(NVCC)      ## on a GPU: all tests, compute-sanitizer and benchmarks, in one report; ARGS="--device emulated" without
	@$(BIN)/python bench/gpu_check.py $(ARGS)

clean:      ## delete .venv and caches; what was trained in runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# --no-compile: Python compiles what is imported when it is imported; compiling all of it here would take longer than the rest.
$(STAMP): pyproject.toml setup.py requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    echo "cuda-nn needs Python 3.10 or newer, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | tail -n 1)"; \
	    echo "name another one, as in: make setup PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	    echo "creating $(VENV) with $$($(PYTHON) --version)"; \
	    $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
	        echo "Python's venv module is incomplete; on Debian and Ubuntu: apt install python3-venv"; exit 1; }; }
	@echo "installing cuda-nn and its tools into $(VENV) (half a minute, and four more on two cores for the native kernels where there is a C++ compiler)"
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-compile -e ".[plot,dev]"
	@touch $@

# The tests of the CUDA kernels need nvcc, though no GPU.  Where there is none, it comes from PyPI, in the version that pyproject.toml pins.
# Those packages lack two names under which nvcc looks for its libraries when it links.
$(NVCC): pyproject.toml $(STAMP)
	@$(BIN)/python -c 'import sys; from cuda.nn.emulator import toolchain; sys.exit(not toolchain.find("nvcc"))' || { \
	    echo "no nvcc found: installing version 13.0 into $(VENV) (400 MB)"; \
	    $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-compile -e ".[toolchain]" && \
	    cd $(VENV)/lib/python3*/site-packages/nvidia/cu13 && ln -sfn lib lib64 && ln -sf libcudart.so.13 lib/libcudart.so; }
	@touch $@
