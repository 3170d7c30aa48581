# Each target creates .venv if it is missing. Required: python3 (3.11 or later) and make.
#
#   make test ARGS='-k migrations -x'     more arguments for pytest
#   make test-fast                        before each commit; starts no database server
#   make test WORKERS=0                   in one process, for a debugger
#   make bench BENCH_ARGS=--quick         a short run of the benchmark
#   make PYTHON=python3.13 test           another interpreter (after `make clean`)

PYTHON ?= python3
WORKERS ?= 4
ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# worksteal: a worker that has finished takes tests from another. loadscope: one worker runs all tests of a module,
# so that a resource which they share (a cluster, the installed wheel) is created once.
BALANCED := -n $(WORKERS) --dist worksteal
BY_MODULE := -n $(WORKERS) --dist loadscope --no-loadscope-reorder

USUAL := -m 'not exhaustive and not cluster and not wheel'

# Unit tests, the contract in memory and on SQLite, and a part of the command line. Every path must exist: pytest fails
# otherwise. Tests whose name or parameters contain a server's name are left out.
FAST_TESTS := \
	tests/project/test_architecture.py \
	tests/project/test_contributing.py \
	tests/test_errors.py \
	tests/test_memory.py \
	tests/model/test_session.py \
	tests/test_public_api.py \
	tests/repository/test_retry.py \
	tests/test_settings.py \
	tests/model/test_validation.py \
	tests/sql/migrations/test_old_databases.py \
	tests/cli/test_inspection.py \
	tests/repository/test_contract.py::TestInMemory \
	tests/repository/test_contract.py::TestSQLiteFile \
	tests/repository/test_contract_async.py::TestInMemory \
	tests/repository/test_contract_async.py::TestSQLiteInThreads
NO_SERVERS := -k 'not postgresql and not mariadb'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo serve test test-all coverage test-fast faults bench docs lint types wheel-test constraints clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## run a session through all phases, with a crash in the middle
	@$(BIN)/python examples/forge_run.py

serve: $(STAMP) ## run the example service on http://127.0.0.1:8000, on SQLite or VIBEFORGE_SESSIONS_DATABASE_URL
	@$(BIN)/python -m uvicorn examples.service.app:app --port 8000

test: $(STAMP) ## run the tests of a user's machine
	@$(BIN)/python -m pytest $(BALANCED) $(USUAL) $(ARGS)

test-all: $(STAMP) ## run all tests: also clusters, soak, scale, all drivers, values and fault points
	@$(BIN)/python -m pytest $(BY_MODULE) $(ARGS)

coverage: $(STAMP) ## run the same tests, and report the coverage of the package (at least 95 %)
	@$(BIN)/python -m pytest $(BALANCED) $(USUAL) --cov --cov-report=term:skip-covered --cov-fail-under=95 $(ARGS)

test-fast: $(STAMP) ## run unit tests and the contract in memory and on SQLite, without database servers
	@$(BIN)/python -m pytest $(FAST_TESTS) $(NO_SERVERS) $(BALANCED) $(ARGS)

faults: $(STAMP) ## run the fault tests of docs/reliability.md: killed servers, cut connections, full disks, damaged files
	@$(BIN)/python -m pytest tests/faults $(BY_MODULE) $(ARGS)

bench: $(VENV)/.bench ## compare each call with hand-written code and other stores; results in benchmarks/results
	@$(BIN)/python -m benchmarks.run $(BENCH_ARGS)

docs: $(STAMP) ## build the documentation with the API reference into site/
	@$(BIN)/python -m mkdocs build --strict --quiet

lint: $(STAMP) ## check style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP) ## check types
	@$(BIN)/mypy

wheel-test: $(STAMP) ## build the wheel into dist/, and test it in a new environment
	@rm -rf dist
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist .
	@VIBEFORGE_SESSIONS_TEST_WHEEL_DIR="$(CURDIR)/dist" $(BIN)/python -m pytest tests/project/test_packaging.py $(ARGS)

# Installs the newest versions that pyproject.toml allows. Run the tests afterwards.
constraints: ## renew the pins in constraints.txt
	@rm -rf .venv-constraints
	@$(PYTHON) -m venv .venv-constraints
	@.venv-constraints/bin/python -m pip install --disable-pip-version-check --quiet --upgrade pip
	@.venv-constraints/bin/python -m pip install --disable-pip-version-check --quiet -e '.[dev,bench]'
	@{ sed -n '/^#/p' constraints.txt; \
	   .venv-constraints/bin/python -m pip list --disable-pip-version-check --format=freeze --exclude-editable \
	     --exclude pip --exclude setuptools; } > constraints.new
	@mv constraints.new constraints.txt
	@rm -rf .venv-constraints

clean: ## remove the environment, builds and caches
	rm -rf $(VENV) .venv-constraints .venv-peers build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.bench: $(STAMP)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[bench]'
	@touch $@

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or later is required, $(PYTHON) is older: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot create environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@
