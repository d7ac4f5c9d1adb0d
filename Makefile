# Two commands are enough on a fresh machine: `make run` and `make test`.
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup run test test-gil lint perf soak lock docs

# Options for `python3.13t -m gateway` (make run) or `python3.13t -m perf` (make perf), and for pytest.
ARGS ?=
TESTS ?=

gateway_python := .venv/bin/python3.13t
tools := .venv-tools/bin
pytest := PYTHON_GIL=0 $(gateway_python) -m pytest
# A process for each core; the tests of a file share their gateways.
side_by_side := -n logical --maxprocesses 4 --dist loadfile

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup:  ## an environment to run the gateway in: .venv
	@bash setup/bootstrap.sh

run: setup  ## the gateway, with ARGS="--port 9000 ..."
	@exec $(gateway_python) -m gateway $(ARGS)

test: lint  ## lint, types and all tests, with TESTS="tests/test_x.py -k name"
	$(pytest) $(side_by_side) $(TESTS)

test-gil:  ## the tests on a GIL CPython 3.13
	@bash setup/bootstrap.sh --tools --gil
	.venv-gil/bin/python -m pytest $(side_by_side) $(TESTS)

lint:  ## ruff and mypy
	@bash setup/bootstrap.sh --tools
	$(tools)/ruff check .
	$(tools)/ruff format --check .
	$(tools)/mypy --python-executable $(gateway_python) gateway
	$(tools)/mypy --python-version 3.10 engine_adapters

# The suite also wants a GIL build with the same flags (built once, minutes); without one it measures what there is.
perf: setup  ## the measurements, with ARGS="suite --quick" or another
	@bash setup/bootstrap.sh --tools --same-gil || bash setup/bootstrap.sh --tools --gil || true
	@exec $(gateway_python) -m perf $(or $(ARGS),suite --out perf/results/new)

soak: setup  ## the soak tests, two minutes each
	@bash setup/bootstrap.sh --tools
	$(pytest) -m soak --duration 120 --timeout 0 $(TESTS)

lock:  ## resolve the pinned versions anew (needs the package index)
	@bash setup/lock.sh

docs: setup  ## docs/configuration.md and docs/metrics.md, from the code
	@for page in config:configuration metrics:metrics; do \
	    $(gateway_python) -c "from gateway.$${page%:*} import as_markdown; print(as_markdown(), end='')" > docs/$${page#*:}.md; done
