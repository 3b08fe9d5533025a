# `make run` sets up .venv and runs the study of params.yaml; `make help` lists every target.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
OLDEST := .venv-oldest
READY := $(VENV)/.ready
REMOTES := $(VENV)/.remotes
# `python`, `snakemake` and `dvc` are those of .venv.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export UV_PYTHON_DOWNLOADS := never

.PHONY: help
help:  ## show this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

.PHONY: setup
setup: $(READY)  ## create .venv from requirements.lock

.PHONY: remotes
remotes: $(REMOTES)  ## add DVC remotes (S3, SSH, Google Cloud) and storage to .venv

.PHONY: run
run: $(READY)  ## run the study of params.yaml, from images to results/report/index.html
	snakemake --cores 4 --resources gpu=1

.PHONY: test
test: $(REMOTES)  ## run every test, with the real snakemake, dvc and git
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: check
check: $(READY)  ## check format, lint and types, and run the fast tests
	ruff format --check .
	ruff check .
	snakefmt --check Snakefile workflow
	mypy
	OMP_NUM_THREADS=1 python -m pytest -n 2 -q -m "not slow and not stories"

.PHONY: oldest
oldest: $(READY)  ## run the fast tests with the oldest packages that pyproject.toml accepts
	uv venv --clear --python $(VENV)/bin/python $(OLDEST)
	uv pip install --python $(OLDEST)/bin/python --resolution lowest-direct \
		--editable '.[dev,dvclive,export,mlflow,parallel,tensorboard,workflow]'
	export PATH=$(CURDIR)/$(OLDEST)/bin:$$PATH OMP_NUM_THREADS=1; \
		python -m pytest -n 2 -q -m "not slow and not stories"

.PHONY: format
format: $(READY)  ## format the code and fix what ruff can
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

.PHONY: bench
bench: $(READY)  ## measure speed on this machine, as ratios
	python benchmarks/run.py

.PHONY: torture
torture: $(READY)  ## break a small study in every way and check that nothing is lost (hours)
	python tools/torture

.PHONY: lock
lock: $(READY)  ## update the two locks from requirements.in and requirements-remotes.in
	for name in requirements requirements-remotes; do \
		uv pip compile $$name.in --python-version 3.11 --generate-hashes --upgrade \
			--no-header --no-emit-index-url --no-emit-find-links --output-file $$name.lock; \
	done

.PHONY: clean
clean:  ## remove tool caches; keep results, logs, the job cache and .venv
	rm -rf .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find kdsteps tests benchmarks tools workflow -name __pycache__ -type d -prune -exec rm -rf {} +

# Compile bytecode now, so that jobs start quickly even if Python may not write next to its modules.
$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: python3 not found; install Python 3.11 to 3.14" >&2; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	command -v uv >/dev/null || $(VENV)/bin/python -m pip install --quiet uv
	uv pip install --python $(VENV)/bin/python --require-hashes --compile-bytecode -r requirements.lock
	uv pip install --python $(VENV)/bin/python --no-deps --no-build-isolation --editable .
	touch $@

$(REMOTES): requirements-remotes.lock $(READY)
	uv pip install --python $(VENV)/bin/python --require-hashes --compile-bytecode -r requirements-remotes.lock
	touch $@
