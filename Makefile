# `make demo` and `make test` do all the set-up they need: nothing but Python 3.11 or newer is expected.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint slow bench docs clean

demo: $(VENV)/.installed
	$(BIN)/crosstime demo --out runs/demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# BENCH holds flags for the benchmarks: where the code of others lies, another device.
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/results.py $(BENCH)

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Exact versions come from constraints.txt; the marker is made last, so an interrupted installation is begun again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "crosstime needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .ruff_cache
