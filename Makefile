# make restore  restore IMAGE=FILE, or a noisy photograph of this package, into restored/
# make run      train the whole recipe on this machine and write a report
# make test     run the tests
# make lint     run the linters, check spelling and links
# make docs     build the documentation into site/
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/allinone.py
ARGS ?=
IMAGE ?=

.PHONY: restore run test lint docs clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/make/p' Makefile

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# The compiler for TPUs stands apart: where it can be imported, JAX looks for a TPU at every start.
$(VENV)/.test: $(VENV)/.run
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .[test,lpips,docs]
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --upgrade --target $(VENV)/libtpu "libtpu; sys_platform == 'linux' and platform_machine == 'x86_64'"
	touch $@

restore: $(VENV)/.run
	$(BIN)/python -m mperceiver_jax.restore $(if $(IMAGE),"$(IMAGE)",--example) --output=restored --side-by-side --overwrite $(ARGS)

run: $(VENV)/.run
	$(BIN)/python -m mperceiver_jax.main --config=$(CONFIG) $(ARGS)

# Passive waiting: torch's OpenMP threads otherwise spin against each other on small machines.
test: $(VENV)/.test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check benchmarks configs data_pipelines mperceiver_jax scripts tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir $(VENV)/site

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV)
