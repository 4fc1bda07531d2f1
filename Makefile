# Each target does its own set-up: it needs only Python >= 3.11, make and git.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: quickstart test test-all format clean

quickstart: $(VENV)/.run  ## Trains a small text-to-image model from scratch and writes runs/quickstart/report.html.
	$(RUN) -m experiments.quickstart $(ARGS)

test: $(VENV)/.dev  ## Lint, types, and the tests that a change waits for.
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)
	$(RUN) -m pytest -q -n 2 --dist worksteal $(ARGS)

test-all: test  ## And the second tier: trainings, real processes, notebooks, large grids.
	$(RUN) -m pytest -q -n 2 --dist worksteal -m long $(ARGS)

format: $(VENV)/.dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache build dist

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "nova_jax needs Python >= 3.11 (set PYTHON=/path/to/python3.11)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[data]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
