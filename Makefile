# make demo | make test | make bench | make lint | make docs: each sets up all that it needs in .venv.
# make build: the native libraries in place (PYTHON=... uses another environment).

PYTHON3 ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Data beside the project, where a checkout has it.
ifneq ($(wildcard ../shared/data),)
export METAFAST_DATA ?= $(abspath ../shared/data)
endif

# With a compiler at hand a broken native build must not pass unseen; without one the references run.
HAS_CXX := $(firstword $(foreach c,$(CXX) c++ g++ clang++,$(shell command -v $(c) 2>/dev/null)))
export METAFAST_REQUIRE_NATIVE ?= $(if $(HAS_CXX),1,0)
# nvcc is slow, so the CUDA library is built in place only where a device can run it.
export METAFAST_CUDA ?= $(if $(shell command -v nvidia-smi 2>/dev/null),1,0)

.PHONY: build
build:
	$(PYTHON) setup.py -q build_ext --inplace
