# Two commands for a newcomer: `make run` and `make test`. Both make .venv first; RUN_ARGS goes to the pipeline.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RUN_ARGS ?=
# A file's tests stay with one worker, as they share runs; files go in order, so that the long ones do not come last.
# Three workers for two cores: many of the first tests wait for processes of theirs.
WORKERS := -n 3 --dist loadfile --no-loadscope-reorder --durations=10
# After so many seconds the tests are ended; what they leave running is, too.
LIMIT ?= 2400
PYTEST := $(BIN)/python -m tests.limited $(LIMIT) $(BIN)/python -m pytest $(WORKERS)

.PHONY: run test unit lab lint docs install clean

run: $(VENV)/installed
	$(BIN)/ray-fed formation-energy $(RUN_ARGS)

test: $(VENV)/installed-dev
	$(PYTEST) --ignore=tests/lab

unit: $(VENV)/installed-dev
	$(PYTEST) tests/unit

# Hosts of their own on this machine, in network namespaces: needs root, openssh-server, rsync and iproute2.
lab: $(VENV)/installed-dev
	$(PYTEST) -rs tests/lab

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The documentation site, into build/site; a link that leads nowhere fails it.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

install: $(VENV)/installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml constraints.txt $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
