# Everything a newcomer needs: `make run`, `make test`. Both make the environment first.
.DEFAULT_GOAL := help
.PHONY: help setup run test lint clean benchmark reliability
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

help: ## Say what there is
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Make .venv with the tested versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Flywheel needs Python 3.11 or newer; say which with: make PYTHON=/path/to/python3"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

run: setup ## Five generations of Countdown: a model that overtakes its own search
	$(BIN)/flywheel run

test: lint ## What CI runs
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: setup ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: setup ## Speed against peers, in pairs
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/beam.py
	$(BIN)/python benchmarks/trainer.py
	$(BIN)/python benchmarks/bookkeeping.py
	$(BIN)/python benchmarks/board_net.py
	$(BIN)/python benchmarks/history.py

reliability: setup ## Kill, fill, lock and break registries many hundred times, and write docs/reliability.md
	$(BIN)/python -m tests.reliability --out docs/reliability.md

clean: ## Remove what can be made again (never the registry)
	rm -rf $(VENV) dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './registry/*' -prune -exec rm -rf {} +
