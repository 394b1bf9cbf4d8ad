# Each target sets up what it needs. `make install` is repeated only when what it depends on has changed.

VENV := .venv
PYTHON ?= python3
PY ?= $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: install demo quick test test-full test-gpu check bench

install: $(READY)

# An editable install holds the version and the list of packages, so those files count too.
$(READY): pyproject.toml .ci/install.sh tuco_vllm/__init__.py $(wildcard kernels/*/__init__.py)
	PYTHON=$(PYTHON) .ci/install.sh $(VENV)
	@touch $@

demo: install
	$(VENV)/bin/tuco demo

# All tests without an engine, and two engines. Two processes: most tests wait for another, or compute on one core.
quick: install
	$(VENV)/bin/pytest -q -m "not gpu and not slow and (quick or not engine)" -n 2 --no-loadscope-reorder

# What is not slow.
test: install
	$(VENV)/bin/pytest -q -m "not gpu and not slow" -n 2 --no-loadscope-reorder

# The whole parity product: hours on two cores. It can be stopped, and goes on.
test-full: install
	PYTHONPATH=tests $(VENV)/bin/python tests/full_product.py

# With PY=python3 any interpreter that has the packages, and nothing is installed.
test-gpu: $(if $(filter $(VENV)/bin/python,$(PY)),install)
	$(PY) -m pytest -q -m gpu

check: install
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

bench: install
	$(VENV)/bin/python bench/score.py
