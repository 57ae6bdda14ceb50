# Each target creates what it needs in .venv. The first run takes a minute.
#   make demo          run the demo, on an embedded authorization server
#   make test          run the tests, except those that start many programs
#   make test-programs run the tests that start many programs: every server, other projects' servers, a browser
#   make check         check lint rules, types, layers, prose, links, spelling, workflows and generated pages
#   make docs          write the generated pages of docs/ again, and build the site into build/site
#   make dist          build the source distribution and the wheel, and check them
#   make bench         measure the cost, compared with OpenTelemetry's own code
#   make bench-instructions
#                      count the instructions of one request, compared with OpenTelemetry alone; needs valgrind
#   make soak          a long run: many users, several hops and exchanges, and no user gets another user's token
#   make suites        run other projects' test suites with the relay off and on: SUITES="starlette flask" BOUND=1
#   make matrix        run the tests on every Python present, and with the oldest allowed dependencies
#   make coverage      the same, and fail if too few branches are covered
#   make requirements  pin the newest versions of the development environment

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV = $(BIN)/uv
# Two workers for each core: most tests wait for servers of their own.
PYTEST_ARGS ?= -n $(shell $(PYTHON) -c 'import os; print(2 * os.cpu_count())') --dist worksteal
PINS := requirements/development.txt
PROGRAM_TESTS := $(shell cat requirements/program-tests.txt)

.PHONY: demo test test-programs check docs dist bench bench-instructions soak suites matrix coverage requirements clean

$(VENV)/.ready: pyproject.toml $(PINS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "otel-token-relay needs Python 3.11 or newer: run make with PYTHON=python3.13")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" uv
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes --requirements $(PINS)
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: $(VENV)/.ready
	$(BIN)/otel-token-relay demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest $(addprefix --ignore=,$(PROGRAM_TESTS)) $(PYTEST_ARGS)

test-programs: $(VENV)/.ready
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(PROGRAM_TESTS)

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --verifytypes otel_token_relay --ignoreexternal
	$(BIN)/lint-imports
	$(BIN)/python tools/prose.py
	$(BIN)/python tools/links.py
	$(BIN)/codespell -D - -D tools/dictionary.txt
	$(BIN)/zizmor --offline --quiet .github/workflows
	$(BIN)/python docs/reference.py --check
	$(BIN)/python tools/sizing.py --check
	$(BIN)/python tools/pictures.py --check

docs: $(VENV)/.ready
	$(BIN)/python docs/reference.py
	$(BIN)/python tools/sizing.py
	$(BIN)/python tools/pictures.py
	$(BIN)/zensical build --clean --strict

dist: $(VENV)/.ready
	rm -rf dist
	$(UV) build --quiet --out-dir dist
	$(BIN)/twine check --strict dist/*

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.redaction
	$(BIN)/python -m benchmarks.carry
	$(BIN)/python -m benchmarks.verification
	$(BIN)/python -m benchmarks.exchange

bench-instructions: $(VENV)/.ready
	$(BIN)/python -m benchmarks.instructions

soak: $(VENV)/.ready
	$(BIN)/python -m tools.soak
	$(BIN)/python -m tools.soak.threads
	$(BIN)/python -m tools.soak.exchange

suites: $(VENV)/.ready
	$(BIN)/python -m tools.suites $(if $(BOUND),--bound) $(SUITES)

matrix: $(VENV)/.ready
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nox

coverage: export COVERAGE = 1
coverage: export FULL_MATRIX = 1
coverage: matrix

requirements: $(VENV)/.ready
	$(UV) pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-annotate --no-emit-index-url --extra verify --extra exchange --extra demo --group test --group check --group docs \
	    --output-file $(PINS)

clean:
	rm -rf $(VENV) .nox dist build
