# Every target sets up what it needs in .venv; `make demo` and `make test` work on a fresh machine.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One thread a process: the tests run in parallel, and sums in a fixed order reproduce.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo study-small bench test test-slow lowest fuzz docs dist lint types clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch comes first and exactly, so that nothing below pulls in another build of it.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install torch==2.13.0
	$(BIN)/pip install -c constraints.txt -e '.[hf,demo,test,dev]'
	touch $@

setup: $(STAMP)

demo: $(STAMP)  ## Bound a small fine-tuned network; results in runs/demo
	$(BIN)/genbound evaluate examples/demo/finetuned.safetensors examples/demo/pretrained.safetensors \
	  --model examples/demo/model.py:build \
	  --data examples/demo/data.py:train --test-data examples/demo/data.py:test \
	  --out runs/demo

study-small: $(STAMP)  ## Run the study on its smallest task; results in runs/study-small
	PYTHONPATH=. $(BIN)/python examples/study/run.py ci --out runs/study-small --results runs/study-small/cells
	PYTHONPATH=. $(BIN)/python examples/study/report.py --results runs/study-small/cells --images runs/study-small --page runs/study-small/page.md

bench: $(STAMP)  ## Compare costs with the peers' (docs/performance.md says what it needs)
	$(BIN)/pip install -c constraints.txt -e '.[bench]'
	$(BIN)/pip uninstall -y torchvision  # which a peer brings along, and which breaks transformers beside a CPU torch
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.scaling

test: $(STAMP)  ## Run the tests
	$(BIN)/pytest -n 2

test-slow: $(STAMP)  ## Run the tests marked slow
	$(BIN)/pytest -n 2 -m slow

# What touches these libraries: formats, training and its callbacks, tables, plots, estimators and derivatives.
LOWEST := tests/checkpoints tests/callbacks tests/data tests/formats tests/finetune tests/results tests/figures tests/cli \
  tests/estimators tests/test_operations.py

lowest:  ## Run the tests of what touches other libraries on their oldest versions allowed
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install torch==2.13.0
	.venv-lowest/bin/pip install -c constraints-lowest.txt -e '.[hf,demo,test]'
	.venv-lowest/bin/pytest -n 2 $(LOWEST)

fuzz: $(STAMP)  ## Fuzz the readers for half an hour (atheris)
	$(BIN)/pip install atheris
	for kind in safetensors torch legacy sparse npz yaml; do \
	  PYTHONPATH=. $(BIN)/python tests/attack/fuzz.py $$kind -max_total_time=300 -rss_limit_mb=4096 || exit 1; done

docs: $(STAMP)  ## Build the documentation site strictly and run its tutorials; in build/site
	$(BIN)/pip install -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/site
	$(BIN)/pytest -m slow tests/test_tutorials.py

dist: $(STAMP)  ## Build the source distribution and the wheel; in dist
	$(BIN)/pip install -c constraints.txt build
	$(BIN)/python -m build

lint: $(STAMP)  ## Check the style (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## Check the types of the public surface (mypy)
	$(BIN)/mypy

clean:  ## Remove the environment, the caches and the demo's results
	rm -rf $(VENV) .venv-lowest build dist docs/gallery *.egg-info .pytest_cache .ruff_cache .mypy_cache runs/demo runs/study-small
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
