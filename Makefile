# Every target makes what it needs in .venv and goes on from there; the first run takes a minute.
#   make demo    the main job, on an embedded authorization server
#   make test    the tests
#   make check   linters, types, layers, docs in step
#   make bench   what it costs, against OpenTelemetry's own propagators
#   make soak    the long run: many users, two hops, no wrong token
#   make matrix  the tests on every Python there is, and with the lowest allowed dependencies

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV = $(BIN)/uv
# Twice as many workers as cores: most tests wait for servers of their own.
PYTEST_ARGS ?= -n $(shell $(PYTHON) -c 'import os; print(2 * os.cpu_count())') --dist worksteal

.PHONY: demo test check bench soak matrix docs clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "otel-token-relay needs Python 3.11 or newer; say PYTHON=python3.13")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" uv
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --editable ".[verify,exchange,demo]" --group test --group check
	touch $@

demo: $(VENV)/.ready
	$(BIN)/otel-token-relay demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python docs/reference.py --check

docs: $(VENV)/.ready
	$(BIN)/python docs/reference.py

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.redaction
	$(BIN)/python -m benchmarks.carry
	$(BIN)/python -m benchmarks.verification

soak: $(VENV)/.ready
	$(BIN)/python -m tools.soak
	$(BIN)/python -m tools.soak.threads

matrix: $(VENV)/.ready
	$(BIN)/python tests/matrix.py

clean:
	rm -rf $(VENV) .venv-* dist build
