# Two commands on a fresh machine:  make chat   and   make test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help setup chat test test-slow check format bench native native-sanitize native-thread-sanitize native-avxvnni-check \
	clean

help:
	@echo "make chat [MODEL=name|folder]  install what a conversation needs, then talk to a model"
	@echo "make test                      install everything, then the fast and parity tests"
	@echo "make check                     format, lint, types and the fast tests"
	@echo "make test-slow                 true MiniCPM-2B shapes (20 GB of disk, 12 GB of memory)"
	@echo "make native                    build the C++ engine into src/minicpm, warnings being errors"
	@echo "make native-sanitize           its tests under the address and undefined sanitizers"
	@echo "make native-thread-sanitize    its tests under the thread sanitizer"
	@echo "make bench                     time and memory on the true MiniCPM-2B shapes"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps hold when neither the requirements nor the pins changed.
$(VENV)/.chat: $(BIN)/python pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[torch]'
	@touch $@

$(VENV)/.all: $(BIN)/python pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[all,dev]'
	@touch $@ $(VENV)/.chat

setup: $(VENV)/.all

chat: $(VENV)/.chat
	@$(BIN)/minicpm chat $(if $(MODEL),--model $(MODEL))

test: setup
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python benchmarks/true_shapes.py
	$(BIN)/python benchmarks/versus_transformers.py

# In place, for work on csrc/: `PYTHONPATH=src` finds it. `make setup` installs a copy of its own.
NATIVE_CMAKE = cmake -S . -G Ninja -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DMINICPM_WERROR=ON
NATIVE_TESTS = $(BIN)/python -m pytest -q -p no:cacheprovider tests/engine/test_native.py

native: setup
	$(NATIVE_CMAKE) -B build/native -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/src/minicpm
	cmake --build build/native

# A sanitized extension needs its runtime loaded before Python. It is built beside a copy of the package.
define native_checked
	mkdir -p build/$(1)-src && cp -r src/minicpm build/$(1)-src/ && rm -f build/$(1)-src/minicpm/_native*.so
	$(NATIVE_CMAKE) -B build/$(1) -DCMAKE_BUILD_TYPE=RelWithDebInfo $(2) \
	  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/build/$(1)-src/minicpm
	cmake --build build/$(1)
	PYTHONPATH=build/$(1)-src:tests $(3) $(NATIVE_TESTS)
endef

native-sanitize: setup
	$(call native_checked,sanitize,-DMINICPM_SANITIZE=address$(comma)undefined,ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)")

native-thread-sanitize: setup
	$(call native_checked,thread,-DMINICPM_SANITIZE=thread,LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so)")

# The AVX-VNNI kernels with AVX-512's encoding of the same instruction, for machines that have only that one.
native-avxvnni-check: setup
	$(call native_checked,avxvnni,-DMINICPM_AVXVNNI_AS_AVX512=ON,)

comma := ,

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
