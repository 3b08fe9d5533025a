# `make run` sets up and runs the study of params.yaml; `make help` lists the rest.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
READY := $(VENV)/.ready
# `python`, `snakemake` and `dvc` mean those of this study.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export UV_PYTHON_DOWNLOADS := never

.PHONY: help
help:  ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

.PHONY: setup
setup: $(READY)  ## .venv with everything, from requirements.lock

.PHONY: run
run: $(READY)  ## the study of params.yaml, from images to results/report/index.html
	snakemake --cores 4 --resources gpu=1

.PHONY: test
test: $(READY)  ## every test, with the real snakemake, dvc and git
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: check
check: $(READY)  ## format, lint, types and fast tests
	ruff format --check .
	ruff check .
	snakefmt --check Snakefile workflow
	mypy
	OMP_NUM_THREADS=1 python -m pytest -n 2 -q -m "not slow and not stories"

.PHONY: format
format: $(READY)  ## put code into its form
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

.PHONY: bench
bench: $(READY)  ## what is how fast on this machine, as ratios
	python benchmarks/run.py

.PHONY: lock
lock: $(READY)  ## pin requirements.in anew in requirements.lock
	uv pip compile requirements.in --python-version 3.11 --generate-hashes --upgrade \
		--no-header --no-emit-index-url --no-emit-find-links --output-file requirements.lock

.PHONY: clean
clean:  ## what tools left behind; results, logs, caches of jobs and .venv stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find kdsteps tests benchmarks workflow -name __pycache__ -type d -prune -exec rm -rf {} +

# Compiled now, so that every job starts quickly, also where Python may not write beside its modules.
$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: there is no python3; install Python 3.11" >&2; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	command -v uv >/dev/null || $(VENV)/bin/python -m pip install --quiet uv
	uv pip install --python $(VENV)/bin/python --require-hashes --compile-bytecode -r requirements.lock
	uv pip install --python $(VENV)/bin/python --no-deps --no-build-isolation --editable .
	touch $@
