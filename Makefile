# Two commands on a fresh machine:  make chat   and   make test
PYTHON ?= python3
VENV := .venv
comma := ,
BIN := $(VENV)/bin
# Talk goes to stderr and stdin is left alone: `echo "Hello" | make chat` prints the answer and nothing else.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INSTALL = @echo "Installing $(1) into $(VENV), once ..." >&2; $(PIP_INSTALL) --editable '$(2)' </dev/null >&2

.PHONY: help setup chat test test-slow check format bench clean

help:
	@echo "make chat                      install the core (no torch), then talk to the built-in MiniCPM-nano"
	@echo "make chat MODEL=name|folder    install torch, too, then talk to another model"
	@echo "make test                      install everything, then the fast and parity tests"
	@echo "make check                     format, lint, types and the fast tests"
	@echo "make test-slow                 true MiniCPM-2B shapes (20 GB of disk, 12 GB of memory)"
	@echo "make bench                     time and memory on the true MiniCPM-2B shapes"

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) </dev/null >&2

# One environment that grows: a stamp holds while neither requirements nor pins changed, a larger set-up also sets the
# smaller ones' stamps, and none takes away what another installed.
REQUIREMENTS := $(BIN)/python pyproject.toml constraints.txt

$(VENV)/.core: $(REQUIREMENTS)
	$(call INSTALL,the core,.)
	@touch $@

$(VENV)/.torch: $(REQUIREMENTS)
	$(call INSTALL,the core and torch,.[torch])
	@touch $@ $(VENV)/.core

$(VENV)/.all: $(REQUIREMENTS)
	$(call INSTALL,everything,.[all$(comma)dev])
	@touch $@ $(VENV)/.torch $(VENV)/.core

setup: $(VENV)/.all

chat: $(VENV)/.$(if $(MODEL),torch,core)
	@$(BIN)/minicpm chat $(if $(MODEL),--model '$(MODEL)')

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

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
