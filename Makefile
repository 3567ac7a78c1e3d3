# STACK=openmmlab (default) or onedl; PYTHON names the interpreter that makes the environment.
PYTHON ?= python3
STACK ?= openmmlab
# JOBS: test processes side by side, each with one thread.
JOBS ?= 2
override STACK := $(shell $(PYTHON) tools/setup_env.py --resolve $(STACK))
PY := .envs/$(STACK)/bin/python

.PHONY: env demo demo-det demo-pretrain test test-slow lint benchmark

env:
	@test -n "$(STACK)"  # empty when the stack or the Python does not fit: its message stands above
	@$(PYTHON) tools/setup_env.py $(STACK)

demo: env
	@$(PY) tools/demo/run.py

demo-det: env
	@$(PY) tools/demo/detect.py

demo-pretrain: env
	@$(PY) tools/demo/pretrain.py

test: env lint
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n $(JOBS)

test-slow: env
	@$(PY) -m pytest -m slow

lint: env
	@$(PY) -m ruff check .

benchmark: env
	@$(PY) tools/benchmark.py moto
	@$(PY) tools/benchmark.py backbones
	@$(PY) tools/benchmark.py size
	@$(PY) tools/benchmark.py classifier
