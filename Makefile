# `make up` runs weimq here, `make test` tests it; `make help` lists the rest. Needs Python 3.11 or newer and nothing else.

# The first Python that is new enough.
PY ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
GEN ?= gen
PIP := $(BIN)/pip --disable-pip-version-check --quiet
# A module's tests share what is slow to start, so they go to the same worker, in the order of tests/conftest.py.
WORKERS ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# What `make check` runs in pure Python, too; CI runs everything.
PURE_TESTS ?= tests/unit
# Builds what changed; nothing without a C compiler, or with WEIMQ_PURE=1.
COMPILE = $(BIN)/python -m services.compiled
.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: up
up: .venv/.compiling ## Run the whole mesh on this machine; options: make up ARGS="--port-base 20000"
	@$(COMPILE)
	@exec $(BIN)/weimq up $(ARGS)

.PHONY: test
test: .venv/.developing ## Run the tests; options: make test ARGS="tests/unit -k topics"
	$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),$(WORKERS))

.PHONY: chaos
chaos: .venv/.developing ## Run the long tests that break things
	$(BIN)/python -m pytest -m chaos $(ARGS)

.PHONY: setup
setup: .venv/.developing ## Make .venv with weimq and the tools to work on it, and compile the hot path
	@$(COMPILE)

.PHONY: check
check: .venv/.developing ## Run what CI runs; in pure Python the unit tests only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	@rm -rf build/gen && $(MAKE) --no-print-directory proto GEN=build/gen
	diff -r -x __pycache__ build/gen/weimq gen/weimq || { echo "gen/ is stale: run make proto" >&2; exit 1; }
	WEIMQ_PURE=1 $(BIN)/python -m pytest $(WORKERS) $(PURE_TESTS)
	$(COMPILE) --strict
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

.PHONY: fmt
fmt: .venv/.developing ## Format the sources and apply safe fixes
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	$(BIN)/buf format --write

.PHONY: fuzz
fuzz: .venv/.developing ## Feed a million hostile inputs to each parser; options: make fuzz ARGS="codec --inputs 10000"
	$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: bench
bench: .venv/.developing ## Measure the mesh next to other brokers; options: make bench ARGS="--rows qos0 --rounds 5"
	@$(COMPILE)
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: proto
proto: .venv/.developing ## Generate gen/ from protos/
	rm -rf $(GEN)/weimq && mkdir -p $(GEN)
	$(BIN)/python -m grpc_tools.protoc -I protos --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	  --python_out=$(GEN) --mypy_out=quiet:$(GEN) $$(find protos -name '*.proto' | sort)
	$(BIN)/python -m grpc_tools.protoc -I protos --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --grpc_python_out=$(GEN) --mypy_grpc_out=quiet,only_async:$(GEN) \
	  $$(grep -l '^service ' $$(find protos -name '*.proto') | sort)

.PHONY: docs
docs: .venv/.developing ## Write the tables of settings in docs/operations.md
	WEIMQ_WRITE_DOCS=1 $(BIN)/python -m pytest -q tests/unit/cli/test_operations_doc.py

.PHONY: lock
lock: .venv/.created ## Pin the dependencies of pyproject.toml again, in requirements/
	@rm -rf build/uv && $(BIN)/python -m venv build/uv && build/uv/bin/pip --disable-pip-version-check -q install uv
	@compile="build/uv/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url"; \
	export UV_CUSTOM_COMPILE_COMMAND="make lock"; set -ex; \
	$$compile pyproject.toml -o requirements/runtime.txt; \
	$$compile --extra embedded pyproject.toml -o requirements/embedded.txt; \
	$$compile --group compile pyproject.toml -o requirements/compile.txt; \
	$$compile --extra embedded --group dev pyproject.toml -o requirements/dev.txt; \
	printf 'hatchling==1.33.0\neditables\n' | $$compile - -o requirements/build.txt

# What running needs and what developing needs are two steps, so that `make up` on a fresh machine is quick.

.venv/.created:
	@test -n "$(PY)" || { echo "weimq needs Python 3.11 or newer: install it, or name it: make PY=/path/to/python" >&2; exit 1; }
	@$(PY) -c 'import ensurepip' 2>/dev/null || { \
	  echo "$(PY) can't make virtual environments: install its venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PY) -m venv .venv
	@touch $@

.venv/.installed: .venv/.created requirements/embedded.txt requirements/build.txt pyproject.toml
	$(PIP) install --require-hashes -r requirements/build.txt
	$(PIP) install --require-hashes -r requirements/embedded.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.compiling: .venv/.installed requirements/compile.txt
	@if [ -z "$$WEIMQ_PURE" ] && command -v $(firstword $(CC)) >/dev/null; then \
	  $(PIP) install --require-hashes -r requirements/compile.txt; fi
	@touch $@

.venv/.developing: .venv/.installed requirements/dev.txt
	$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@
