# Everything stands on `make venv`: .venv with the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.built
export HF_HUB_DISABLE_TELEMETRY := 1
# One thread per process: the tiny model's matrices are so small that a second thread only gets in the way.
export OMP_NUM_THREADS := 1

.PHONY: venv demo test check clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,gguf,bfcl,dev]'
	# Its dependencies are those of a leaderboard of hosted models; tasks, executors and checker need only mpmath.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps bfcl-eval
	touch $@

# `make demo CI=true` serves no page and asks nothing.
demo: venv
	$(BIN)/collapsewatch demo $(if $(CI),--no-dashboard) $(if $(SEED),--seed $(SEED))

test: venv
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
