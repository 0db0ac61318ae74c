# Every target is complete on a fresh clone with only Python >= 3.11 and make: the first one run creates .venv.
# PYTHON chooses the interpreter that .venv is made from, VENV another place for it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
STAMP := $(VENV)/.installed
CODE := sb3_maesn scripts tests

.PHONY: help install demo test lint type format bench docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     meta-train MAESN for about 5 minutes, adapt to unseen sparse goals, draw figures into demo/"
	@echo "make test     run the tests"
	@echo "make lint     ruff, formatting and import order;  make type: mypy;  make format: reformat the code"
	@echo "make bench    measure speed against bare physics (about 10 minutes, idle machine), CSV into results/"
	@echo "make docs     build the API documentation from the docstrings into docs/; warnings are errors"

install: $(STAMP)

# torch goes first, pinned and alone: a looser requirement pulls a CUDA build of several GB.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/python scripts/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/lint-imports --no-cache

type: $(STAMP)
	$(BIN)/mypy $(CODE)

format: $(STAMP)
	$(BIN)/ruff check --fix-only $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(STAMP)
	$(BIN)/python scripts/benchmark_speed.py --csv results/speed.csv

docs: $(STAMP)
	$(BIN)/python scripts/make_docs.py

clean:
	rm -rf build dist docs .mypy_cache .pytest_cache .ruff_cache demo
