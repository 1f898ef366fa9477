# make train    trains on built-in synthetic data
# make test     the tests; test-slow: those that take minutes; lint: ruff, mypy, pyright
# make test-tpu   checks the steps with the TPU compiler; needs no TPU
# make test-long   kills runs and breaks files at random, more often than test-slow
# make venv     .venv with everything these need (the targets make it themselves)
# make docs     docs/configs.md from the source, and the site in docs/_build/html;
#               runs changed notebooks, which takes some minutes
# make notebooks   runs the notebooks in colab/ from top to bottom
# make parity   compares with RecBole itself, in its own environment
# make parity-table   prints the table of differences from PyTorch in docs/pytorch.md

PYTHON ?= python3
BIN = .venv/bin
# One worker per core; a worker that runs out of tests takes over some of another's.
PYTEST = $(BIN)/python -m pytest --numprocesses=logical --dist=worksteal

.PHONY: venv train test test-slow test-tpu test-long lint docs notebooks parity parity-table clean

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@echo "making .venv: downloading and installing packages takes some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[test]'
	touch $@

train: venv
	$(BIN)/python -m srgnn_jax.main --config=configs/synthetic.py

test: venv
	$(PYTEST) -m 'not slow'

test-slow: venv
	$(PYTEST) -m slow

# Separate, because with libtpu installed JAX looks for a TPU in every command.
.venv-tpu/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test,tpu]'
	touch $@

test-tpu: .venv-tpu/installed
	.venv-tpu/bin/python -m pytest tests/test_tpu.py

.venv/ray: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]'
	touch $@

test-long: venv .venv/ray
	$(BIN)/python -m tests.kill_and_resume --kills=25
	$(BIN)/python -m tests.kill_search --trials=20 --kills=7
	$(BIN)/python -m tests.fuzz_readers --cases=5000 --seed=0
	$(BIN)/python -m tests.fuzz_http --cases=2000 --seed=0
	$(BIN)/python -m pytest tests/test_ray.py
	$(BIN)/python -m tests.smoke_wheel $(PYTHON)

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: .venv/docs .venv/torch .venv/notebooks
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --jobs=auto -q docs docs/_build/html

.venv/torch: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[torch]'
	touch $@

.venv/notebooks: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[notebooks]'
	touch $@

notebooks: .venv/torch .venv/notebooks
	$(BIN)/python -m pytest tests/test_notebooks.py

parity: venv
	$(BIN)/python -m tests.recreate_golden

parity-table: .venv/torch
	$(BIN)/python -m tests.parity_table

clean:
	rm -rf .venv .venv-recbole .venv-tpu .pytest_cache .mypy_cache .ruff_cache runs
