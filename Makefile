# Every target works on a fresh machine with Python 3.11 or newer; `make` alone lists them.

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
BIN := .venv/bin
PINS := pyproject.toml constraints.txt

# torch is named on the command line so that pip never looks at another version of it.
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0 --editable
SERVING := .[verifier,drafter,gateway,local]
EVERYTHING := .[dev]

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install run test lint format-check style types imports proto-lint proto-check \
	proto format unit families bench gpu-check synthesize train clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

install: .venv/everything ## Install the project and its tools into .venv

run: .venv/serving ## Start the whole stack on this machine; Ctrl-C stops it
	@exec $(BIN)/python deploy/local/die_with_parent.py $$PPID TERM $(BIN)/python -m deploy.local

test: lint unit ## Install, check and test everything

lint: format-check style types imports proto-lint proto-check ## All checks that run no test

format-check: .venv/everything
	$(BIN)/ruff format --check --quiet .

style: .venv/everything
	$(BIN)/ruff check --quiet .

types: .venv/everything
	$(BIN)/mypy

imports: .venv/everything
	$(BIN)/lint-imports

proto-lint: .venv/everything
	$(BIN)/buf lint

proto-check: .venv/everything
	$(BIN)/python proto/generate.py --check

unit: .venv/everything
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

format: .venv/everything ## Format the code and sort the imports
	$(BIN)/ruff check --quiet --fix-only .
	$(BIN)/ruff format --quiet .

proto: .venv/everything ## Generate the protocol's code from its .proto files
	$(BIN)/python proto/generate.py

families: .venv/everything ## Try tiny models of all families: each is exact, or refused with a reason
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.families $(ARGS)

bench: .venv/everything ## Measure the running stack, speculation on and off; ARGS="--help" shows how
	$(BIN)/python -m loadtests.bench $(ARGS)

# Nothing is installed for it: it is for machines that cannot install. `.venv` serves if it is there.
CHECKING = $(if $(filter file,$(origin PYTHON)),$(or $(wildcard $(BIN)/python),$(PYTHON)),$(PYTHON))

gpu-check: ## Try every path of a GPU in 8 minutes; PYTHON=, WHEELS=folder, OUT=folder, TARGET=file
	@PYTHONPATH=.:proto$(if $(PYTHONPATH),:$(PYTHONPATH)) $(CHECKING) -m loadtests.gpu_check \
		$(if $(OUT),--out '$(OUT)') $(if $(WHEELS),--wheels '$(WHEELS)') \
		$(if $(TARGET),--target '$(TARGET)') $(ARGS)

synthesize: .venv/everything ## Let a target write training conversations; ARGS="--help" shows how
	$(BIN)/python -m drafter_svc.train.synthesize $(ARGS)

train: .venv/everything ## Train a drafter; ARGS="--help" shows how
	$(BIN)/python -m drafter_svc.train $(ARGS)

clean: ## Remove .venv, caches and builds; fetched models stay
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/serving: $(PINS) | $(BIN)/python
	@echo "Installing what the services need into .venv: some minutes, 1.2 GB without CUDA's libraries ..."
	@$(INSTALL) '$(SERVING)'
	@touch $@

.venv/everything: $(PINS) | $(BIN)/python
	@echo "Installing the project and its tools into .venv: some minutes, 1.6 GB without CUDA's libraries ..."
	@$(INSTALL) '$(EVERYTHING)'
	@touch $@ .venv/serving

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none is on PATH." >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) cannot make a virtual environment; on Debian install python3-venv." >&2; \
		exit 1; }
