# Everything a person or a machine runs here. The first call makes .venv from the lock; later calls reuse it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test lint types unit signatures bench table setup clean

setup: .venv/.installed

# The lock is complete, so nothing is resolved: TorchRec's own requirement (CUDA) is met by fbgemm-gpu-cpu.
.venv/.installed: requirements-cpu.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), f"Python 3.11 is needed, found {sys.version}"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-cpu.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: setup ## Run the main job on an embedded log and show the result.
	$(BIN)/recdistill run jobs/applications/privileged_features.yaml

test: lint types unit ## What CI runs.

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

unit: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not signature"

signatures: setup ## All seeds and wrong twins of the bibliography rows, all slips of every job; 40 minutes or so.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m signature tests/signatures tests/contract

table: setup ## All rows of the bibliography on one log, over five seeds; writes jobs/RESULTS.md. An hour or so.
	$(BIN)/python -m tests.benchmarks.rows

bench: setup ## Speed, as ratios side by side; writes tests/benchmarks/RESULTS.md.
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf .venv .recdistill runs
