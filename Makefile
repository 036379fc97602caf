# make run, make test: all they need beside Python 3.11 and make is installed into .venv on first use.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PACKAGES := arictl bench devstack listener scheduler shared simulator workers

# make test: how many tests run side by side, each lane with servers of its own. One by one when only some are asked for.
LANES ?= $(if $(ARGS),0,auto)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# make run: ASTERISK=real takes a real Asterisk instead of the simulator, CALLS=n ends after n calls, RATE is calls a second.
export ASTERISK CALLS RATE

.PHONY: help run test simulate mutants lint bench-broker bench-failover bench-setup clean
.DEFAULT_GOAL := help

help:
	@echo 'make run    start everything with demo callers, Ctrl-C stops it  [ASTERISK=real] [CALLS=n] [RATE=calls per second]'
	@echo 'make test   lint and all tests; the real-Asterisk part wherever one can be had  [ARGS="pytest arguments"] [LANES=n]'
	@echo 'make mutants   put known faults back, and show that the tests and the simulation see them  [NAMES="beginnings of names"]'
	@echo 'make simulate  histories of faults against the real steps  [HISTORIES=n] [SEED=n: the story of one]'
	@echo 'make lint   ruff and mypy'
	@echo 'make bench-broker   our broker beside the one that comes with Dramatiq: docs/bench.md  [ARGS="parts"]'
	@echo 'make bench-failover   listeners and schedulers that come, go and die: docs/bench.md  [ARGS="parts"]'
	@echo 'make bench-setup   how long a call takes to set up, beside one process and a bare client: docs/bench.md  [ARGS="..."]'
	@echo 'make clean  remove what was made in this folder'

run: $(STAMP)
	@$(BIN)/python -m devstack.run

test: lint
	@$(BIN)/python -m pytest --numprocesses $(LANES) $(ARGS)

simulate: $(STAMP)
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),$(if $(HISTORIES),--histories $(HISTORIES)))

mutants: $(STAMP)
	@$(BIN)/python -m tests.mutants $(NAMES)

lint: $(STAMP)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo 'not formatted: run $(BIN)/ruff format' >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary $(PACKAGES) tests

bench-broker: $(STAMP)
	@$(BIN)/python -m bench.broker $(ARGS)

bench-failover: $(STAMP)
	@$(BIN)/python -m bench.failover $(ARGS)

bench-setup: $(STAMP)
	@$(BIN)/python -m bench.setup $(ARGS)

# An environment without its stamp was not finished, or made by hand: pip makes it whole, unless it has none.
$(STAMP): pyproject.toml
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed: install it, or name it by make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) \
		|| { echo '$(PYTHON) cannot make a virtual environment (on Debian: apt-get install python3-venv)' >&2; exit 1; }
	@echo 'installing into $(VENV) ...'
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
