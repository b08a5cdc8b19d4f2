# The developers' manual: every task is a target. `make demo` and `make test` are all a fresh machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# One compute thread per process: thread counts change bits, and busy-waiting threads slow a small machine down.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
PYTHON_SOURCES := hpcrl tests benchmarks pipelines slurm/dev-cluster slurm/dev_cluster
CPP_SOURCES := $(wildcard kernels/*.h kernels/*.cpp kernels/*.cu kernels/*.cuh tests/kernels/*.h tests/kernels/*.cpp)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slurm check bench soak soak-slurm gpu clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: pyproject.toml CMakeLists.txt $(wildcard kernels/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" numpy "scikit-build-core>=0.11" "pybind11>=3.0" "cmake>=3.24" ninja
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation $(if $(HPCRL_CUDA),-C cmake.define.HPCRL_CUDA=$(HPCRL_CUDA)) -e ".[mpi,atari,mujoco,render,slurm]"
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --group test
	touch $@

$(VENV)/checked: $(VENV)/tested
	$(BIN)/pip install --quiet --disable-pip-version-check --group check
	touch $@

install: $(VENV)/installed  ## make .venv and install hpcrl into it

demo: $(VENV)/installed  ## train CartPole on 2 ranks until it is solved; leaves a report
	$(BIN)/hpcrl run pipelines/ppo_cartpole.py --ranks 2
	$(BIN)/hpcrl report runs/ppo-cartpole

test: $(VENV)/tested  ## all tests but the long ones
	$(BIN)/python -m pytest -m "not soak and not gpu and not slurm"

check: $(VENV)/checked  ## formatting, types, floors
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/mypy
	cd slurm && ../$(BIN)/mypy --strict --scripts-are-modules dev-cluster dev_cluster
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)

bench: $(VENV)/checked  ## every benchmark of this machine, into benchmarks/results/
	$(BIN)/pip install --quiet --disable-pip-version-check --group bench
	PYTHON=$(BIN)/python benchmarks/all.sh

test-slurm: $(VENV)/tested  ## tests on a real SLURM of four nodes, started and ended here; installs Debian's packages
	slurm/install-packages
	$(BIN)/python -m pytest tests/slurm -m "slurm and not soak" || { \
	  echo "once more, what failed: on a busy machine a real SLURM misses times that tests wait for"; \
	  $(BIN)/python -m pytest tests/slurm -m "slurm and not soak" --last-failed --last-failed-no-failures none; }

soak: $(VENV)/tested  ## the long tests: 100 kills, all layouts, all replays
	$(BIN)/python -m pytest -m "soak and not slurm" -o log_cli=true

soak-slurm: $(VENV)/tested  ## a run on SLURM while nodes crash and jobs are cancelled, preempted, requeued
	slurm/install-packages
	$(BIN)/python -m pytest tests/slurm -m "slurm and soak" -o log_cli=true

gpu:  ## build with CUDA, test and measure the kernels on this machine's GPU
	$(if $(wildcard $(BIN)/python),PYTHON=$(BIN)/python) benchmarks/gpu.sh

clean:  ## remove builds and caches; runs/ stays
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV)
