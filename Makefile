# Every target sets up the virtual environment by itself when it is missing or stale.
#   make demo    install, train the demo (about two minutes), draw its figures, print the verdict
#   make test    install the test tools, run the fast tests
#   make lint    ruff, mypy, import-linter
#   make bench   side-by-side measurements against other libraries (slow; prints tables)
# Settings: PYTHON=python3.12  VENV=/tmp/venv  ARGS="-k hessian"

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
RUN    := $(VENV)/bin/python

.PHONY: demo test test-slow lint format bench clean help

help:
	@sed -n '2,7p' Makefile

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 ..."; exit 2; }
	@# Debian splits ensurepip off; virtualenv does the same work without it.
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); \
	  $(PYTHON) -m pip install --quiet --target .virtualenv virtualenv && \
	  PYTHONPATH=.virtualenv $(PYTHON) -m virtualenv --quiet $(VENV); }

$(VENV)/.base: requirements.txt | $(VENV)/bin/python
	@# Two calls: nothing may resolve "torch" before the pinned one is in.
	$(RUN) -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.txt)"
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.base requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.base
	@# A finished demo is only drawn again, an interrupted one goes on; ARGS means that something else is wanted.
	@if [ -n "$(ARGS)" ]; then $(RUN) train.py --preset demo --run_name demo --overwrite $(ARGS); \
	elif [ -e runs/demo/model_final.pt ]; then echo "runs/demo is finished; delete it to train it again"; \
	elif [ -e runs/demo/config.json ]; then $(RUN) train.py --resume runs/demo; \
	else $(RUN) train.py --preset demo --run_name demo; fi
	$(RUN) visualize_results.py runs/demo

test: $(VENV)/.dev
	$(RUN) -m pytest -n 2 $(ARGS)

test-slow: $(VENV)/.dev
	$(RUN) -m pytest -m slow $(ARGS)

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --config pyproject.toml

format: $(VENV)/.dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(VENV)/.base
	$(RUN) -m benchmarks.curvature $(ARGS)

clean:
	rm -rf $(VENV) .virtualenv
