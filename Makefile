# Each target sets up .venv by itself (once; again when a project file changes).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PLUGINS := $(sort $(dir $(wildcard plugins/*/pyproject.toml)))
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint bench setup clean

demo: $(READY)            ## train a small language model, evaluate it in Lightning and in lm-eval, compare
	$(BIN)/python -m xent_metrics.demo $(DEMO_ARGS)

test: $(READY)            ## every test, doctests included
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q $(TEST_ARGS)

lint: $(READY)            ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)           ## every claim about speed and memory, beside its peer
	for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

setup: $(READY)

# The constraints pin a CPU build of torch first, so that nothing pulls in a larger one.
$(READY): pyproject.toml constraints.txt $(addsuffix pyproject.toml,$(PLUGINS))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' $(PLUGINS)
	touch $(READY)

clean:
	rm -rf $(VENV) demo_run build dist
