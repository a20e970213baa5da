# `make quickstart` and `make test` are all a fresh machine needs; both run `setup` first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup setup-gpu quickstart test test-all lint docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

setup: $(STAMP)  ## environment in .venv/ for CPU and continuous integration

$(STAMP): pyproject.toml constraints/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "hpdm needs Python 3.10 or newer: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e '.[dev]'
	@touch $@

setup-gpu:  ## the same with the newest CUDA torch, or the one that is already in .venv/
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

quickstart: setup  ## make a data set, train a tiny model on it, generate videos
	$(BIN)/hpdm prep shapes data --num 512
	$(BIN)/hpdm train quickstart
	$(BIN)/hpdm sample --checkpoint runs/quickstart --overlap fhw --preset fast --num 9 --out samples/quickstart
	$(BIN)/hpdm sample --checkpoint shipped --overlap fhw --preset fast --num 9 --out samples/shipped
	@echo
	@echo "Done. Output:"
	@echo "  data/shapes           the data set: moving shapes with classes and captions"
	@echo "  runs/quickstart       the run: metrics.jsonl, checkpoints, previews in samples/"
	@echo "  samples/quickstart    videos of the model trained just now"
	@echo "  samples/shipped       videos of the model shipped with the package"
	@echo "Loss curves: $(BIN)/tensorboard --logdir runs"

test: setup  ## all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8

test-all: setup  ## the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 -m ''

lint: setup  ## style and import order
	$(BIN)/ruff check .

docs: setup  ## write the reference of recipe fields again
	$(BIN)/python -m hpdm_core.recipe.reference > docs/recipes.md.new
	mv docs/recipes.md.new docs/recipes.md

clean:  ## remove the environment and caches, not data or runs
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist *.egg-info
