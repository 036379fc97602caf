# Needs Python 3.11 and make; everything else is installed into .venv on first use.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# Of the interpreters of one version the fastest: devstack/python_speed.py.
PYTHON ?= $(eval PYTHON := $$(shell $$(FASTEST_PYTHON)))$(PYTHON)
FASTEST_PYTHON = for name in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	(IFS=:; for folder in $$PATH; do "$$folder/$$name" devstack/python_speed.py 2>/dev/null; done) \
	| LC_ALL=C sort -n | sed 's/^[^ ]* //' | grep -v ' ' | head -n 1 | grep . && break; done
PACKAGES := arictl bench chaos console devstack listener scheduler shared simulator workers

# make test: number of xdist workers, each with its own servers. None, so one test after the other, when ARGS selects tests.
XDIST_WORKERS ?= $(if $(ARGS),0,auto)

# Where it is set, each process would compile all it imports: a run of the tests starts hundreds of them.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# make run: ASTERISK=real starts a real Asterisk instead of the simulator, PLATFORM=newest (or 2026-02) the stand-in of the platform's
# API instead of the agent alone, CALLS=n stops after n calls, RATE is calls per second.
export ASTERISK PLATFORM CALLS RATE

.PHONY: help run test check-docs simulate mutants mutation chaos soak lint bench-broker bench-failover bench-setup bench-console screenshots clean
.DEFAULT_GOAL := help

help:
	@echo 'make run             start the pipeline with demo callers; Ctrl-C stops it  [ASTERISK=real] [PLATFORM=newest|2026-02] [CALLS=n] [RATE=calls per second]'
	@echo 'make test            lint and all tests, those on a real Asterisk where one can be had  [ARGS="pytest arguments"] [XDIST_WORKERS=n]'
	@echo 'make check-docs      check pages, names, imports and the tests themselves; UPDATE_DOCS=1 generates the tables again  [ARGS="pytest arguments"]'
	@echo 'make simulate        run the steps through random histories of faults, in virtual time  [HISTORIES=n] [SEED=n: one history, told]'
	@echo 'make mutants         put known faults back and show that tests and simulation find them  [NAMES="prefixes of names"]'
	@echo 'make chaos           real processes under faults and load, judged from outside; as root  [FAULT="name"|all] [SEED=n]'
	@echo 'make soak            the same for long, with kills: what grows?  [MINUTES=30] [SEED=n]'
	@echo 'make mutation        change core, steps and writer in random small ways, and count the changes that tests notice  [MINUTES=60] [SEED=n]'
	@echo 'make lint            ruff and mypy'
	@echo 'make bench-setup     set-up time of a call, beside a single process and a bare client: docs/bench.md  [ARGS="..."]'
	@echo 'make bench-broker    our broker beside the one of Dramatiq: docs/bench.md  [ARGS="parts"]'
	@echo 'make bench-failover  listeners and schedulers that start, stop and die: docs/bench.md  [ARGS="parts"]'
	@echo 'make bench-console   many open overviews, and the first paint of a page: docs/bench.md  [ARGS="--viewers 50"]'
	@echo 'make screenshots     pictures of the console for docs/console.md  [ARGS="names of pages"]'
	@echo 'make clean           remove what make created in this folder'

run: $(STAMP)
	@$(BIN)/python -m devstack.run

# The tests are collected once before: else each xdist worker would compile all of them. The linters run meanwhile, and beside
# the tests, which they leave the processors to; what they find is printed at the end, and fails the run.
test: $(STAMP)
	@nice -n 19 $(MAKE) --no-print-directory lint >$(VENV)/lint.log 2>&1 & linting=$$!; \
	$(if $(filter-out 0,$(XDIST_WORKERS)),$(BIN)/python -m pytest --collect-only --quiet $(ARGS) >/dev/null 2>&1;) \
	$(BIN)/python -m pytest --numprocesses $(XDIST_WORKERS) $(ARGS); tested=$$?; \
	wait $$linting; linted=$$?; cat $(VENV)/lint.log; exit $$((tested > linted ? tested : linted))

check-docs: $(STAMP)
	@$(BIN)/python -m pytest --numprocesses 0 $(or $(ARGS),tests/checks)

simulate: $(STAMP)
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),$(if $(HISTORIES),--histories $(HISTORIES))) $(ARGS)

mutants: $(STAMP)
	@$(BIN)/python -m tests.mutants $(NAMES)

# Without FAULT: all kinds of fault, mixed by two seeds, of which one is drawn. FAULT=all plays each kind by itself (an hour).
CHAOS = $(if $(FAULT),$(if $(filter all,$(FAULT)),,--fault "$(FAULT)") $(if $(SEED),--seed $(SEED)),--mixed $(if $(SEED),--seed $(SEED),--seed 1 --draw))

chaos: $(STAMP)
	@$(BIN)/python -m chaos $(CHAOS) $(ARGS)

soak: $(STAMP)
	@$(BIN)/python -m chaos --soak $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED)) $(ARGS)

mutation: $(STAMP)-mutation
	@$(BIN)/python -m tests.mutation $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo 'not formatted: run $(BIN)/ruff format' >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary $(PACKAGES) tests

bench-broker: $(STAMP)
	@$(BIN)/python -m bench.broker $(ARGS)

bench-failover: $(STAMP)
	@$(BIN)/python -m bench.failover $(ARGS)

bench-console: $(STAMP)
	@$(BIN)/python -m bench.console $(ARGS)

screenshots: $(STAMP)
	@$(BIN)/python -m devstack.screenshots $(ARGS)

bench-setup: $(STAMP)
	@$(BIN)/python -m bench.setup --save docs/bench-setup.json --chart docs/bench-setup.png $(ARGS)

# An environment without the stamp is incomplete or hand-made: pip completes it; without pip it is created again.
$(STAMP): pyproject.toml
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed: install it, or run make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) \
		|| { echo '$(PYTHON) cannot make a virtual environment (on Debian: apt-get install python3-venv)' >&2; exit 1; }
	@echo 'installing into $(VENV) ...'
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(STAMP)-mutation: $(STAMP)
	@$(BIN)/python -m pip install --quiet --editable '.[mutation]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
