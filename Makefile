# Two commands on a fresh machine:  make chat   and   make test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help setup chat test test-slow check format bench clean

help:
	@echo "make chat [MODEL=name|folder]  install what a conversation needs, then talk to a model"
	@echo "make test                      install everything, then the fast and parity tests"
	@echo "make check                     format, lint, types and the fast tests"
	@echo "make test-slow                 true MiniCPM-2B shapes (20 GB of disk, 12 GB of memory)"
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

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
