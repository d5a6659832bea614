# Everything from a bare checkout: `make demo`, `make test`. Needs Python 3.11 or later, and nothing else.
# The environment is .venv here; it is made anew only when a lock file changes.

SHELL := /bin/sh
# Byte code is kept, as in an installation: else each of the many processes compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first of these that is new enough; `make PYTHON=...` names another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
RUN := .venv/.installed
DEV := .venv/.installed-dev
# The Milvus server, for its tests: it exists for few platforms, and wants an environment of its own.
MILVUS := .venv-milvus/.installed

# The demo. Another folder has a home of its own, so that answers come from nowhere else.
DOCS ?= docs
# A question that fits any folder is answered by none in particular: it is not to be turned away for that.
ANYWAY := $(if $(filter-out docs,$(DOCS)),$(if $(filter undefined,$(origin QUESTION)),WHIMBREL_ANSWER_ABSTAIN=0))
QUESTION ?= $(if $(filter docs,$(DOCS)),What happens when a process is killed?,What is this about?)
DEMO_HOME ?= $(if $(filter docs,$(DOCS)),.demo/docs,.demo/$(shell printf %s "$$(cd "$(DOCS)" 2>/dev/null && pwd)" | cksum | cut -d' ' -f1))
PORT ?= 8000
export DOCS QUESTION
# The catalog is the home's own, whatever other programs' variables say.
WHIMBREL := env -u DATABASE_URL -u WHIMBREL_CATALOG -u WHIMBREL_CONFIG WHIMBREL_HOME="$(DEMO_HOME)" $(BIN)/whimbrel

# Half of their time tests wait for servers and processes that they started: two more than there are cores.
JOBS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2) + 2)))
UV ?= uv
LOCK := $(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header --no-emit-index-url

.PHONY: help setup demo test test-torch check milvus soak bench docs stores lock clean

help: ## List what there is to make.
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|' 2>/dev/null \
		|| grep -E '^[a-z-]+:.*## ' Makefile

setup: $(DEV) ## Make .venv with everything, tools of development included.

demo: $(RUN) ## Ingest docs/ (or DOCS=path), answer QUESTION with citations, then serve (ONCE=1: end there).
	@echo "Taking in $$DOCS ..."
	@$(WHIMBREL) ingest "$$DOCS"
	@printf '\nQ: %s\n\n' "$$QUESTION"
	@$(ANYWAY) $(WHIMBREL) ask "$$QUESTION"
ifeq ($(ONCE),)
	@printf '\nAsk more: WHIMBREL_HOME=%s %s ask "..."\n' "$(DEMO_HOME)" "$(BIN)/whimbrel"
	@$(WHIMBREL) serve --port $(PORT)
endif

test: $(DEV) $(MILVUS) ## Run all tests but the long ones, in two processes more than there are cores (JOBS=N: in N of them).
	$(BIN)/python -m pytest -m "not soak" -n $(JOBS) --maxprocesses 4 --dist worksteal

# An environment of its own: torch is larger than all the rest. The build for the CPU is enough; where pip finds a larger
# one, PIP_EXTRA_INDEX_URL leads it to that. All else stays as it is locked.
TORCH := .venv-torch
test-torch: $(TORCH)/.installed ## Test the models that torch runs (sentence-transformers).
	PYTHONPATH=src $(TORCH)/bin/python -m pytest tests/test_sentence_transformers.py

$(TORCH)/.installed: requirements-dev.lock $(RUN)
	@echo "Installing torch and all the rest into $(TORCH) ..."
	@test -x $(TORCH)/bin/python || $(PYTHON) -m venv $(TORCH)
	@tools/install.sh $(TORCH)/bin/python -r requirements-dev.lock
	@sed -n '/^[a-z0-9]/s/ *\\$$//p' requirements-dev.lock > $(TORCH)/locked.txt
	@$(TORCH)/bin/python -m pip --disable-pip-version-check --quiet install --constraint $(TORCH)/locked.txt \
		'torch==2.13.0' 'sentence-transformers>=6.2,<7'
	@touch $@

check: $(DEV) ## Lint, format, strict types, and who may import whom.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

milvus: $(MILVUS) ## Install the Milvus server that tests run against, where it is to be had.

soak: $(DEV) $(MILVUS) ## Kill it at random moments, hundreds of times.
	$(BIN)/python -m pytest -m soak --timeout=0

bench: $(DEV) $(MILVUS) ## Measure; docs/benchmarks.md says what.
	$(BIN)/python -m bench

docs: $(DEV) ## Build the documentation as a site in site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

stores: $(DEV) $(MILVUS) ## Run the suite of stores, and write the table of what each does into docs/.
	$(BIN)/python -m pytest -p whimbrel.testing.table --store-table docs/stores/behaviour.md -m "soak or not soak" \
		tests/test_store_*.py

lock: ## For maintainers: resolve all lock files anew (needs uv; `UV=path`). Upgrades nothing that still fits.
	$(LOCK) --extra all --group build pyproject.toml -o requirements.lock
	$(LOCK) --extra all --group dev --group bench -c requirements.lock pyproject.toml -o requirements-dev.lock
	echo milvus==2.3.5 | $(LOCK) - -o requirements-milvus.lock
	echo uv | $(LOCK) - -o requirements-install.lock

clean: ## Back to a bare checkout.
	rm -rf .venv .venv-milvus $(TORCH) .demo site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests bench tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Whimbrel needs Python 3.11 or later; none was found. Name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Whimbrel needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; exit 1; }
	@echo "Installing what Whimbrel needs into .venv (half a minute, or two) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@tools/install.sh $(BIN)/python -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(DEV): $(RUN) requirements-dev.lock
	@echo "Installing the tools of development ..."
	@tools/install.sh $(BIN)/python -r requirements-dev.lock
	@touch $@

$(MILVUS): requirements-milvus.lock $(RUN)
	@echo "Installing the Milvus server that tests run against ..."
	@test -x .venv-milvus/bin/python || $(BIN)/python -m venv .venv-milvus
	@tools/install.sh .venv-milvus/bin/python --only-binary :all: -r requirements-milvus.lock \
		|| { rm -rf .venv-milvus; mkdir .venv-milvus; echo "It is not to be had here: the tests that need it are skipped."; }
	@touch $@
