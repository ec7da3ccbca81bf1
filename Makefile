# Each target sets up .venv if it is missing or older than a project file.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PLUGINS := $(sort $(dir $(wildcard plugins/*/pyproject.toml)))
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: browser demo test test-all-tasks lint bench setup clean

demo: $(READY)            ## train a small language model, evaluate it with Lightning and with lm-eval, compare
	$(BIN)/python -m xent_metrics.demo $(DEMO_ARGS)

# First with torch alone; then the tests of scoring and of models once more with the C plugin; then the Triton plugin's, by
# Triton's interpreter. Triton's wheels are for Linux.
NATIVE_TESTS := plugins/xent-metrics-native/tests tests/scoring tests/sums/test_metric.py tests/test_collection.py \
  tests/metrics/test_metrics.py tests/testing/test_contract.py tests/hosts/lm_eval/models
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

test: $(READY) browser    ## run every test, doctests included
	XENT_METRICS_PLUGINS=emd,focal $(PYTEST) --ignore=plugins/xent-metrics-native/tests --ignore=plugins/xent-metrics-triton/tests $(TEST_ARGS)
	$(PYTEST) $(NATIVE_TESTS) $(TEST_ARGS)
	[ "$$(uname)" != Linux ] || TRITON_INTERPRET=1 XENT_METRICS_PLUGINS=triton $(PYTEST) plugins/xent-metrics-triton/tests $(TEST_ARGS)

test-all-tasks: $(READY)  ## put metrics on all tasks that lm-eval ships, as far as that goes without their data (minutes)
	ALL_TASKS=1 $(BIN)/python -m pytest -q -s tests/hosts/lm_eval/test_shipped_tasks.py tests/doctor/test_tasks.py

lint: $(READY)            ## run ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

BENCHMARKS := $(filter-out benchmarks/claims.py,$(wildcard benchmarks/*.py))
bench: $(READY)           ## measure every claim about speed and memory beside its peer
	failed=0; for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file || failed=1; done; exit $$failed

setup: $(READY)           ## install everything that is tested into .venv

# A real browser for the tests of the report.
browser:
	@command -v chromedriver >/dev/null || { sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$sudo apt-get update -qq && $$sudo apt-get install -y -qq chromium chromium-driver >/dev/null; }

# torch goes first, so that pip keeps the pinned build.
$(READY): pyproject.toml constraints.txt $(addsuffix pyproject.toml,$(PLUGINS))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps $(PLUGINS)
	touch $(READY)

clean:                    ## remove .venv and what builds and demos wrote
	rm -rf $(VENV) demo_run build dist
