# make train   the main job on the embedded default data
# make test    the tests; test-slow: the long ones; lint: ruff and mypy
# make venv    .venv, with all that these need (they make it themselves)

PYTHON ?= python3
BIN = .venv/bin

.PHONY: venv train test test-slow lint clean

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

train: venv
	$(BIN)/python -m srgnn_jax.main --config=configs/synthetic.py

test: venv
	$(BIN)/python -m pytest -m 'not slow'

test-slow: venv
	$(BIN)/python -m pytest -m slow

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache runs
