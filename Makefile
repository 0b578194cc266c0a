# make demo | test | bench | lint | format | docs: each sets up all that it needs in .venv, and does nothing twice.
# make build: the native libraries in place (PYTHON=... for another environment).

PYTHON3 ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
BUILD := build/dev
export PATH := $(abspath $(VENV)/bin):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Data beside the project, where a checkout has them.
ifneq ($(wildcard ../shared/data),)
export METAFAST_DATA ?= $(abspath ../shared/data)
endif

# With a compiler at hand a broken native build must not pass unseen; without one the references run.
HAS_CXX := $(firstword $(foreach c,$(CXX) c++ g++ clang++,$(shell command -v $(c) 2>/dev/null)))
export METAFAST_REQUIRE_NATIVE ?= $(if $(HAS_CXX),1,0)
# nvcc is slow, so the CUDA library is built in place only where a device can run it.
export METAFAST_CUDA ?= $(if $(shell command -v nvidia-smi 2>/dev/null),1,0)

# Exact versions for the Python that has a file of them; torch is the same everywhere, so that nothing pulls another.
PIN_FILE := requirements/py$(shell $(PYTHON3) -c 'import sys; print("%d%d" % sys.version_info[:2])').txt
PINS := $(wildcard $(PIN_FILE))
PIP = $(PYTHON) -m pip install -q -c requirements/torch.txt $(addprefix -c ,$(PINS))

.PHONY: demo test bench lint format docs build ctest pins clean

demo: build
	$(PYTHON) -m metafast demo

test: $(VENV)/.dev build ctest
	$(PYTHON) -m pytest

bench: $(VENV)/.bench build
	$(PYTHON) -m pytest benchmarks

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs $(VENV)/bin/clang-format --dry-run -Werror
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check -q --fix .
	$(VENV)/bin/ruff format -q .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs $(VENV)/bin/clang-format -i

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# The venv's own installs come first only where that venv is used.
build: $(if $(filter $(VENV)/bin/python,$(PYTHON)),$(VENV)/.base)
	$(PYTHON) setup.py -q build_ext --inplace

ctest: build
ifneq ($(HAS_CXX),)
	cmake --build $(BUILD) --target cpp_tests
	ctest --test-dir $(BUILD) --output-on-failure
else
	@echo "no C++ compiler: the C++ tests are left out"
endif

# torch first and alone: the pinned one, which everything after it must accept.
$(VENV)/.torch: requirements/torch.txt
	$(PYTHON3) -m venv $(VENV)
	$(PYTHON) -m pip install -q -r requirements/torch.txt
	touch $@

$(VENV)/.base: $(VENV)/.torch pyproject.toml requirements/build.txt $(PINS)
	$(PIP) -r requirements/build.txt
	METAFAST_REQUIRE_NATIVE=0 $(PIP) --no-build-isolation -e '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.base requirements/torch.txt
	$(PIP) --no-build-isolation -e '.[demo,dev,hf,peft,hpo,lightning,plots,metrics,triton]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) --no-build-isolation -e '.[bench]'
	touch $@

$(VENV)/.docs: $(VENV)/.base
	$(PIP) --no-build-isolation -e '.[docs]'
	touch $@

# Exact versions of everything above, as installed now.
pins: $(VENV)/.bench $(VENV)/.docs
	(echo "# Exact versions for one Python, written by make pins."; \
	  $(PYTHON) -m pip freeze --exclude torch --exclude metafast) > $(PIN_FILE)

clean:
	rm -rf build site metafast/lib metafast/_host.*.so
