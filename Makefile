# make demo     everything from nothing: environment, model, ontology, a patient's findings, an explained ranking
# make test     style, types and tests           make lint   style and types alone
# make install  what vGLM needs to run, into .venv: the command is then .venv/bin/vglm
# make bench    the figures of docs/benchmarks.md (let the machine do nothing else meanwhile)
# make clean    remove what these commands made here; fetched models stay in ~/.cache/vglm
#
# PYTHON chooses the interpreter that the environment is made with. pip's own configuration is used as it is.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.vglm-installed
TOOLS  := $(VENV)/.vglm-tools-installed
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
BUILT_FROM := pyproject.toml README.md $(wildcard native/*.txt native/*.cpp native/*.hpp native/kernels/*)
PYTEST_ARGS ?=
SHELL  := /bin/bash

.DELETE_ON_ERROR:
.PHONY: demo help test lint bench clean install

demo: $(STAMP)
	@$(BIN)/vglm demo
	@echo "== the command is $(BIN)/vglm: try $(BIN)/vglm demo --help"

help:
	@sed -n -e '/^#/!q' -e 's/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

test: lint
	@echo "== tests"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(TOOLS)
	@echo "== style"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== types"
	@$(BIN)/mypy
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

bench: $(STAMP)
	@mkdir -p build/bench
	@for what in kernels throughput latency memory accuracy; do \
	  echo "== $$what"; $(BIN)/vglm bench $$what --json build/bench/$$what.json || exit $$?; \
	done
	@echo "figures: build/bench/*.json"

install: $(STAMP)

$(BIN)/python:
	@echo "== environment: $(VENV), made with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(STAMP): $(BUILT_FROM) | $(BIN)/python
	@echo "== installing vGLM into $(VENV): compiles the native core, some minutes"
	@start=$$SECONDS; $(PIP) -e . && echo "== installed in $$((SECONDS - start)) s"
	@touch $@

$(TOOLS): $(BUILT_FROM) | $(BIN)/python
	@echo "== installing vGLM and what its tests need into $(VENV): PyTorch and more, the native core; some minutes"
	@start=$$SECONDS; $(PIP) -e '.[dev]' && echo "== installed in $$((SECONDS - start)) s"
	@touch $(STAMP) $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
